"""From a suite and a model's slots to cells: which weights each edited model has reduced, by what, to what rank.

Cells are ordered by the first decoder block they touch, so that an engine can move upward once; cells that differ in
nothing but the rank stand together, so that one factorization serves them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lrbench.errors import FOREIGN, ModelError, PluginError, ReducerError
from lrbench.models.factored_layers import is_whole_layer
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reducers.base import STATISTICS, Reducer
from lrbench.reducers.parameters import ParameterError, values
from lrbench.reducers.ranks import CALIBRATED, AllocationKind, RankRequest, closed_rank
from lrbench.reducers.registry import Registry
from lrbench.reduction.allocation.budget import ranks_by_shape, tied
from lrbench.reduction.calibration.refusal import uncalibrated
from lrbench.suite.load import BASE, ReducerSpec, Suite, SweepSpec
from lrbench.system.text import one_line


@dataclass(frozen=True)
class Method:
    """A reducer with its parameters, as a suite labels it."""

    label: str
    reducer: Reducer
    params: Mapping[str, Any]
    source_hash: str


@dataclass(frozen=True, eq=False)
class Cell:
    """One edited model: `slots` reduced by `method`, each to the rank that `request`, or its own of `requests`, says.

    The baseline is the cell without a method. A cell without requests drops its slots' updates: the weights are
    the base's. `skip` says why the method does not do this one, `failure` why it could not even be asked. `seed` is
    that of the method's random draws; None where it draws nothing. `predicted` is what a screening says of it. With an
    `allocation`, `request` is that of the whole model's size, and the slots' ranks are found when the cell is reduced.

    A cell equals itself alone, so that it can be the key of a dict.
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
        """What is asked of one slot's rank."""
        request = self.requests[self.slots.index(slot)] if self.requests else self.request
        assert request is not None
        return request

    @property
    def drops_updates(self) -> bool:
        """Whether nothing is reduced, and the weights are the base's own."""
        return self.method is not None and self.mode == BASE

    @property
    def needs(self) -> frozenset[str]:
        """Statistics wanted of each slot: the method's, and those by which numbers are shared out."""
        own = self.method.reducer.needs if self.method is not None else frozenset()
        return own | {"second_moment"} if self.allocation == "output-error" else own

    @property
    def calibrated(self) -> bool:
        """Whether the calibration text has a part in the result."""
        return bool(self.needs) or self.allocation in CALIBRATED

    @property
    def requested(self) -> dict[str, float | int]:
        """The rank as the suite asked for it, `{"keep": 0.5}`; empty for the baseline."""
        return {self.request.kind: self.request.value} if self.request else {}

    @property
    def setting(self) -> str:
        """The rank as it was asked for, in words: `keep 0.5`."""
        return f"{self.request.kind} {self.request.value:g}" if self.request else ""

    @property
    def first_modules(self) -> tuple[str, ...]:
        """Names of the modules edited in the first block; none where something that comes before it is edited too."""
        if any(slot.about.layer is None and slot.about.role != "head" for slot in self.slots):
            return ()
        return tuple(dict.fromkeys(slot.module_name for slot in self.slots if slot.about.layer == self.first_block))

    def digest(self, *, inference: str = "dense", **setting: Any) -> str:
        """SHA-256 of what defines the result: this cell, and `setting` (weights, documents, prompts, seed, ...).

        Labels count, though they change no result: two cells that a suite tells apart are two rows. How edits run
        (`inference`) counts where it can change a number.
        """
        if inference != "dense" and any(map(is_whole_layer, self.slots)):
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
        """The rank of each slot as far as shapes tell it; raises ReducerError where none is possible."""
        assert self.method is not None
        if self.drops_updates:
            return [0] * len(self.slots)
        if self.allocation is not None:
            assert self.request is not None
            reducer, label, keep = self.method.reducer, self.method.label, float(self.request.value)
            return ranks_by_shape(reducer, label, self.slots, keep, self.allocation)
        return [closed_rank(self.request_of(slot), self.method.reducer, slot.about) for slot in self.slots]


class _Base(Reducer):
    """Stands for none: the cell without updates is no method's."""

    name = BASE


#: Of the cell whose weights are the base's own.
WITHOUT_UPDATE = Method(BASE, _Base(), {}, "")


@dataclass(frozen=True)
class Plan:
    """The cells of one model, baseline first, in the order in which they are to be run."""

    cells: tuple[Cell, ...]

    def groups(self) -> Iterator[list[Cell]]:
        """Runs of cells that differ in the rank alone."""
        group: list[Cell] = []
        for cell in self.cells:
            first = group[0] if group else cell
            alike = _but_for_the_rank(cell) == _but_for_the_rank(first)
            if cell.method is not first.method or not alike:
                yield group
                group = []
            group.append(cell)
        if group:
            yield group

    def impossible(self) -> list[tuple[Cell, str]]:
        """Cells that are known beforehand to fail (a rank above the maximum, a keep that fits no rank), and why."""
        found = []
        for cell in self.cells:
            if cell.method is None or cell.skip:
                continue
            if cell.failure:
                found.append((cell, cell.failure))
                continue
            try:
                cell.ranks()
            except ReducerError as error:
                found.append((cell, str(error)))
        return found


def _but_for_the_rank(cell: Cell) -> tuple[Any, ...]:
    """Equal for cells of one method that differ in the (last) rank alone."""
    return cell.slots, cell.seed, cell.allocation, cell.requests[:-1]


def methods(suite: Suite, registry: Registry) -> list[Method]:
    """The suite's reducers, built.

    Raises:
        SuiteError: an unknown name, a bad parameter, or a reducer that needs a calibration where there is none; at the
            suite's line.
    """
    built = []
    for spec in suite.reducers:
        try:
            reducer = registry.build(spec.name, spec.params)
        except ParameterError as error:
            raise suite.error(spec.parameter_path(error.parameter), str(error)) from None
        except PluginError as error:
            raise suite.error(spec.path, str(error)) from None
        _check_needs(suite, spec, reducer)
        built.append(Method(spec.label, reducer, values(reducer), registry.source_hash(spec.name)))
    return built


def _check_needs(suite: Suite, spec: ReducerSpec, reducer: Reducer) -> None:
    unknown = sorted(set(reducer.needs) - STATISTICS)
    if unknown:
        known = ", ".join(sorted(STATISTICS))
        raise suite.error(spec.path, f"{spec.label} needs {unknown[0]!r}, which is no statistic; there are {known}")
    if reducer.needs and suite.calibration is None:
        needs = ", ".join(sorted(reducer.needs))
        raise suite.error(
            spec.path, f"{spec.label} needs calibration ({needs}); add `calibration: {{text: FILE}}` to the suite"
        )


def slots_of(suite: Suite, sweep: SweepSpec, inventory: Inventory) -> list[WeightSlot]:
    """The slots that a sweep names, in the model's order.

    Raises:
        SuiteError: a layer out of range or a word under `weights` that selects nothing, at the suite's line.
    """
    try:
        layers = sweep.layers.resolve(len(inventory.blocks))
    except ValueError as error:
        raise suite.error((*sweep.path, "layers"), str(error)) from None
    try:
        return inventory.select(layers, sweep.weights)
    except ModelError as error:
        raise suite.error((*sweep.path, "weights"), str(error)) from None


def make_plan(suite: Suite, inventory: Inventory, built: Sequence[Method]) -> Plan:
    """The cells of a suite on one model. Raises as `slots_of`."""
    cells: dict[Hashable, Cell] = {}
    blocks = len(inventory.blocks)
    for sweep in suite.sweep:
        chosen = slots_of(suite, sweep, inventory)
        if sweep.mode == "greedy":  # its cells depend on what is decided; see `lrbench.reduction.greedy_plan`
            continue
        for method in built:
            if sweep.reducers is not None and method.label not in sweep.reducers:
                continue
            seeds = suite.repeats if method.reducer.randomized else (None,)
            for slots in _edits(sweep.mode, chosen):
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
    label_order = {method.label: place for place, method in enumerate(built)}

    def order(cell: Cell) -> tuple[Any, ...]:
        assert cell.method is not None
        slots = [position[slot.name] for slot in cell.slots]
        return cell.first_block, slots, label_order[cell.method.label], cell.seed or 0

    in_order = sorted(cells.values(), key=order)
    if suite.delta is not None:
        all_slots = {slot for cell in in_order for slot in cell.slots}
        targets = tuple(sorted(all_slots, key=lambda slot: position[slot.name]))
        in_order.insert(0, Cell(WITHOUT_UPDATE, BASE, targets, first_block=first_block_of(targets, blocks)))
    return Plan((Cell(), *in_order))


def _edits(mode: str, slots: list[WeightSlot]) -> list[tuple[WeightSlot, ...]]:
    """The sets of slots that are reduced at the same time."""
    if mode == "each":
        return [(slot,) for slot in slots]
    if mode == "together":
        return [tuple(slots)]
    by_layer: dict[int | None, list[WeightSlot]] = {}
    for slot in slots:
        by_layer.setdefault(slot.about.layer, []).append(slot)
    return [tuple(layer) for layer in by_layer.values()]


def first_block_of(slots: Sequence[WeightSlot], blocks: int) -> int:
    """The first of a model's blocks that an edit of some slots touches; the number of blocks for the head alone."""

    def block(slot: WeightSlot) -> int:
        if slot.about.layer is not None:
            return slot.about.layer
        return blocks if slot.about.role == "head" else 0

    return min(map(block, slots))


def refusal(
    method: Method, slots: tuple[WeightSlot, ...], allocation: AllocationKind | None = None
) -> tuple[str | None, str | None]:
    """(why to skip, why it fails) for a cell that cannot be what was asked.

    A method that does without one of the slots would be another experiment.
    """
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
        reason = uncalibrated(slot, frozenset({"second_moment"})) if allocation == "output-error" else None
        if reason:
            return f"{slot.name} has no output error to share out by: {reason}", None
    return None, tied(slots) if allocation is not None else None
