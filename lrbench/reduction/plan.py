"""Turns a suite and a model's slots into cells: the weights, method and rank of each edited model.

Cells are ordered by the first decoder block they edit, so that an engine moves through the blocks once. Cells that
differ only in the rank are adjacent, so that they share one factorization.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lrbench.errors import FOREIGN, ModelError, PluginError, ReducerError
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reducers.base import STATISTICS, Reducer, Slot
from lrbench.reducers.parameters import ParameterError, values
from lrbench.reducers.ranks import CALIBRATED, AllocationKind, RankRequest, closed_rank
from lrbench.reducers.registry import Registry
from lrbench.reduction.allocation.budget import ranks_by_shape, tied
from lrbench.reduction.calibration.loss_moments import MOMENTS
from lrbench.reduction.calibration.refusal import uncalibrated
from lrbench.suite.load import BASE, ReducerSpec, Suite, SweepSpec
from lrbench.system.text import one_line

#: The calibration statistics that allocations need of each weight.
_NEEDS_OF_ALLOCATION: dict[AllocationKind | None, frozenset[str]] = {
    "output-error": frozenset({"second_moment"}),
    "loss": MOMENTS,
}


@dataclass(frozen=True)
class Method:
    """A reducer with its parameters, under the suite's label."""

    label: str
    reducer: Reducer
    params: Mapping[str, Any]
    source_hash: str
    _ranks: dict[tuple[RankRequest, tuple[int, int]], int | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def closed_rank(self, request: RankRequest, slot: Slot) -> int | None:
        """The rank that a weight's shape determines, computed once for each shape. Raises as `ranks.closed_rank`."""
        key = request, slot.shape
        if key not in self._ranks:
            self._ranks[key] = closed_rank(request, self.reducer, slot)
        return self._ranks[key]


@dataclass(frozen=True, eq=False)
class Cell:
    """One edited model. The baseline is the cell without a method. Cells compare by identity and are hashable.

    Attributes:
        slots: the weights reduced by `method`.
        request: the rank of every slot; with an `allocation`, the size of the whole model, and the ranks of the slots
            are chosen when the cell is reduced. None, without `requests`: the base's weights replace the slots'.
        requests: the rank of each slot, where they differ.
        first_block: the first decoder block that is edited.
        skip: why the method does not apply.
        failure: why the cell cannot be reduced, if that is known beforehand.
        seed: of the method's random draws; None if it is deterministic.
        predicted: the predicted changes of a screening.
    """

    method: Method | None = None
    mode: str | None = None
    slots: tuple[WeightSlot, ...] = ()
    request: RankRequest | None = None
    first_block: int | None = None
    skip: str | None = None
    failure: str | None = None
    seed: int | None = None
    requests: tuple[RankRequest, ...] = ()
    predicted: dict[str, float] | None = None
    allocation: AllocationKind | None = None

    def request_of(self, slot: WeightSlot) -> RankRequest:
        """The rank request of one slot."""
        request = self.requests[self.slots.index(slot)] if self.requests else self.request
        assert request is not None
        return request

    @property
    def drops_updates(self) -> bool:
        """Whether the cell replaces the weights by the base's instead of reducing them."""
        return self.method is not None and self.mode == BASE

    @property
    def needs(self) -> frozenset[str]:
        """The calibration statistics that the method and the allocation need of each slot."""
        own = self.method.reducer.needs if self.method is not None else frozenset()
        return own | _NEEDS_OF_ALLOCATION.get(self.allocation, frozenset())

    @property
    def calibrated(self) -> bool:
        """Whether the result depends on the calibration text."""
        return bool(self.needs) or self.allocation in CALIBRATED

    @property
    def requested(self) -> dict[str, float | int]:
        """The rank as the suite requests it, `{"keep": 0.5}`; empty for the baseline."""
        return {self.request.kind: self.request.value} if self.request else {}

    @property
    def setting(self) -> str:
        """The requested rank as text: `keep 0.5`."""
        return f"{self.request.kind} {self.request.value:g}" if self.request else ""

    @property
    def first_modules(self) -> tuple[str, ...]:
        """Names of the modules edited in the first block; empty if something before that block is edited too."""
        if any(slot.about.layer is None and slot.about.role != "head" for slot in self.slots):
            return ()
        return tuple(dict.fromkeys(slot.module_name for slot in self.slots if slot.about.layer == self.first_block))

    def digest(self, *, inference: str = "dense", **setting: Any) -> str:
        """SHA-256 over this cell and `setting` (weights, documents, prompts, seed, ...), which define the result.

        Includes the label, so that cells with different labels have separate rows, and `inference` where it can change
        a score.
        """
        if inference != "dense":
            from lrbench.models.factored_layers import (
                is_whole_layer,  # imports transformers, which a plan does not need
            )

            if any(map(is_whole_layer, self.slots)):
                setting["inference"] = inference
        method = self.method
        content = {
            **setting,
            "label": method and method.label,
            "reducer": method and {"name": method.reducer.name, "params": method.params, "source": method.source_hash},
            "slots": sorted(slot.name for slot in self.slots),
            "requested": self.requested,
            **({"seed": self.seed} if self.seed is not None else {}),
        }
        if self.allocation is not None:
            content["allocation"] = self.allocation
        if self.requests:
            each = zip(self.slots, self.requests, strict=True)
            content["each"] = sorted([slot.name, request.kind, request.value] for slot, request in each)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def ranks(self) -> list[int | None]:
        """The rank of each slot, None where shapes do not determine it. Raises ReducerError if none is possible."""
        assert self.method is not None
        if self.drops_updates:
            return [0] * len(self.slots)
        if self.allocation is not None:
            assert self.request is not None
            reducer, label, keep = self.method.reducer, self.method.label, float(self.request.value)
            return ranks_by_shape(reducer, label, self.slots, keep, self.allocation)
        return [self.method.closed_rank(self.request_of(slot), slot.about) for slot in self.slots]


class _Base(Reducer):
    """The placeholder reducer of the cell that drops all updates."""

    name = BASE


#: The method of the cell that replaces weights by the base's.
WITHOUT_UPDATE = Method(BASE, _Base(), {}, "")


@dataclass(frozen=True)
class Plan:
    """The cells of one model in the order of the run, the baseline first."""

    cells: tuple[Cell, ...]

    def groups(self) -> Iterator[list[Cell]]:
        """Consecutive cells that differ only in the rank."""
        group: list[Cell] = []
        for cell in self.cells:
            first = group[0] if group else cell
            alike = _all_but_the_rank(cell) == _all_but_the_rank(first)
            if cell.method is not first.method or not alike:
                yield group
                group = []
            group.append(cell)
        if group:
            yield group

    def impossible(self) -> list[tuple[Cell, str]]:
        """Cells that are known to fail, with the reason: a rank above the maximum, a keep that fits no rank."""
        failing = []
        for cell in self.cells:
            if cell.method is None or cell.skip:
                continue
            if cell.failure:
                failing.append((cell, cell.failure))
                continue
            try:
                cell.ranks()
            except ReducerError as error:
                failing.append((cell, str(error)))
        return failing


def _all_but_the_rank(cell: Cell) -> tuple[Any, ...]:
    """Equal for cells of one method that differ only in the (last) rank."""
    return cell.slots, cell.seed, cell.allocation, cell.requests[:-1]


def methods(suite: Suite, registry: Registry) -> list[Method]:
    """Instantiates the suite's reducers.

    Raises:
        SuiteError: an unknown name, a bad parameter, or a reducer that needs calibration in a suite without it; names
            the suite's line.
    """
    built = []
    for spec in suite.reducers:
        try:
            reducer = registry.build(spec.name, spec.params)
        except ParameterError as error:
            raise spec.parameter_error(str(error), error.parameter) from None
        except PluginError as error:
            raise spec.error_at(str(error)) from None
        _check_needs(spec, reducer, calibrated=suite.calibration is not None)
        built.append(Method(spec.label, reducer, values(reducer), registry.source_hash(spec.name)))
    return built


def _check_needs(spec: ReducerSpec, reducer: Reducer, *, calibrated: bool) -> None:
    unknown = sorted(set(reducer.needs) - STATISTICS)
    if unknown:
        known = ", ".join(sorted(STATISTICS))
        raise spec.error_at(f"{spec.label} needs {unknown[0]!r}, which is no statistic; known are {known}")
    if reducer.needs and not calibrated:
        needs = ", ".join(sorted(reducer.needs))
        raise spec.error_at(f"{spec.label} needs calibration ({needs}); add `calibration: {{text: FILE}}` to the suite")


def slots_of(sweep: SweepSpec, inventory: Inventory) -> list[WeightSlot]:
    """The slots that a sweep selects, in the model's order.

    Raises:
        SuiteError: a layer is out of range or an entry of `weights` selects nothing; names the suite's line.
    """
    try:
        layers = sweep.layers.resolve(len(inventory.blocks))
    except ValueError as error:
        raise sweep.error_at(str(error), "layers") from None
    try:
        return inventory.select(layers, sweep.weights)
    except ModelError as error:
        raise sweep.error_at(str(error), "weights") from None


def swept_slots(sweeps: Sequence[SweepSpec], inventory: Inventory) -> list[WeightSlot]:
    """The slots that any of the sweeps selects, in the model's order. Raises as `slots_of`."""
    selected = {slot for sweep in sweeps for slot in slots_of(sweep, inventory)}
    return [slot for slot in inventory.slots if slot in selected]


def make_plan(suite: Suite, inventory: Inventory, methods: Sequence[Method]) -> Plan:
    """The cells of a suite on one model. Raises as `slots_of`."""
    cells: dict[Hashable, Cell] = {}
    blocks = len(inventory.blocks)
    for sweep in suite.sweep:
        selected = slots_of(sweep, inventory)
        if sweep.mode == "greedy":  # its cells depend on earlier results; see `lrbench.reduction.greedy_plan`
            continue
        for method in methods:
            if sweep.reducers is not None and method.label not in sweep.reducers:
                continue
            seeds = suite.repeats if method.reducer.randomized else (None,)
            for slots in _edits(sweep.mode, selected):
                names = tuple(slot.name for slot in slots)
                for request, seed in product(sweep.rank.requests, seeds):
                    identity = (method.label, names, (request.kind, request.value), seed, sweep.shared_by)
                    if identity not in cells:
                        skip, failure = refusal(method, slots, sweep.shared_by)
                        cells[identity] = Cell(
                            method, sweep.mode, slots, request, first_block_of(slots, blocks), skip, failure, seed,
                            allocation=sweep.shared_by,
                        )  # fmt: skip
    position = {slot.name: place for place, slot in enumerate(inventory.slots)}
    label_order = {method.label: place for place, method in enumerate(methods)}

    def order(cell: Cell) -> tuple[Any, ...]:
        assert cell.method is not None
        slots = [position[slot.name] for slot in cell.slots]
        return cell.first_block, slots, label_order[cell.method.label], cell.seed or 0

    in_order = sorted(cells.values(), key=order)
    if suite.delta is not None:
        targets = tuple(swept_slots(suite.sweep, inventory))
        in_order.insert(0, Cell(WITHOUT_UPDATE, BASE, targets, first_block=first_block_of(targets, blocks)))
    return Plan((Cell(), *in_order))


def _edits(mode: str, slots: list[WeightSlot]) -> list[tuple[WeightSlot, ...]]:
    """The sets of slots that are reduced together."""
    if mode == "each":
        return [(slot,) for slot in slots]
    if mode == "together":
        return [tuple(slots)]
    by_layer: dict[int | None, list[WeightSlot]] = {}
    for slot in slots:
        by_layer.setdefault(slot.about.layer, []).append(slot)
    return [tuple(layer) for layer in by_layer.values()]


def first_block_of(slots: Sequence[WeightSlot], blocks: int) -> int:
    """The first block that an edit of `slots` changes; the number of blocks for the head alone."""

    def block(slot: WeightSlot) -> int:
        if slot.about.layer is not None:
            return slot.about.layer
        return blocks if slot.about.role == "head" else 0

    return min(map(block, slots))


def refusal(
    method: Method, slots: tuple[WeightSlot, ...], allocation: AllocationKind | None = None
) -> tuple[str | None, str | None]:
    """(reason to skip, reason to fail) of a cell; a cell is refused if its method does not support one of the slots."""
    for slot in slots:
        try:
            reason = method.reducer.supports(slot.about)
        except FOREIGN as error:
            return None, f"{slot.name}: {method.label}: supports() failed: {one_line(error)}"
        if not (reason is None or isinstance(reason, str)):
            return None, f"{slot.name}: {method.label}: supports() returned {reason!r}; return a reason, or None"
        if reason:
            return f"{method.label} does not support {slot.name}: {' '.join(reason.split())}", None
        reason = uncalibrated(slot, method.reducer.needs)
        if reason:
            return f"{method.label} cannot be calibrated on {slot.name}: {reason}", None
        reason = uncalibrated(slot, _NEEDS_OF_ALLOCATION.get(allocation, frozenset()))
        if reason:
            return f"{slot.name} cannot be allocated by {allocation}: {reason}; write 'allocation: uniform'", None
    return None, tied(slots) if allocation is not None else None
