"""`lrbench.reduce`: reduces a model's weights in place."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, get_args
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import InputError, LrbenchError
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import Inventory, WeightSlot, count_parameters
from lrbench.reducers.base import Reducer
from lrbench.reducers.factors import Factors
from lrbench.reducers.parameters import values
from lrbench.reducers.ranks import RankKind, RankRequest
from lrbench.reducers.registry import Registry
from lrbench.reducers.source_hash import source_hash
from lrbench.reduction.apply import Inference, in_place, record_inference
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method
from lrbench.reduction.reduced_weight import Reduction, sizes
from lrbench.results.rows import Edit
from lrbench.suite.layers import Layers

_COUNT = count()
#: Model -> its edits that are in place.
_LIVE: WeakKeyDictionary[PreTrainedModel, WeakSet[Reduced]] = WeakKeyDictionary()


class Reduced:
    """A model with reduced weights; a context manager that restores the original weights on exit.

    Attributes:
        model: the edited model, the same object as the argument of `reduce`.
        keep_targets: stored over dense parameters of the edited weights.
        keep_model: stored over dense parameters of the whole model.
        seconds: the time of the decomposition.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inventory: Inventory,
        slots: Sequence[WeightSlot],
        reductions: Sequence[Reduction],
        inference: Inference,
    ) -> None:
        self.model = model
        self.seconds = sum(reduction.seconds for reduction in reductions)
        measured = sizes(slots, reductions, count_parameters(model))
        self.keep_targets, self.keep_model = measured["keep_targets"], measured["keep_model"]
        self._inventory, self._slots = inventory, slots
        self._reductions = record_inference(slots, reductions, inference)
        self._edit = ExitStack()
        self._edit.enter_context(in_place(model, slots, reductions, inference))
        self._versions = {name: (tensor, tensor._version) for name, tensor in _state(model)}
        self._number = next(_COUNT)
        _LIVE.setdefault(model, WeakSet()).add(self)
        self._restored = False

    @property
    def edits(self) -> list[Edit]:
        """The rank, size and error of each edited weight, in the model's order."""
        return [reduction.edit for reduction in self._reductions]

    @property
    def factors(self) -> dict[str, Factors]:
        """Weight name -> the factors that replace it."""
        return {slot.name: done.factors for slot, done in zip(self._slots, self._reductions, strict=True)}

    def refuse_factored(self, layers: Sequence[int], weights: Sequence[str]) -> None:
        """Raises InputError if some of these weights run as factors of this edit, and so have no matrix to reduce."""
        running = {edit.weight for edit in self.edits if edit.evaluated_as == "factors"}
        selected = self._inventory.select(layers, weights) if running else ()
        taken = [slot.name for slot in selected if slot.name in running]
        if taken:
            more = f" and {len(taken) - 1} more run" if len(taken) > 1 else " runs"
            raise InputError(
                f"{taken[0]}{more} on factors of an earlier edit, which have no matrix to reduce; restore() that edit "
                'first, or make it with inference="dense"'
            )

    def restore(self) -> None:
        """Puts the original tensors back. Several edits of a model must be restored in reverse order.

        Raises:
            InputError: a later edit of the same weights is still in place; nothing was changed.
            EvaluationError: an original weight was changed or replaced in the meantime.
        """
        if self._restored:
            return
        mine = {id(slot.module) for slot in self._slots}
        for other in _LIVE.get(self.model, ()):
            if other._number > self._number and mine & {id(slot.module) for slot in other._slots}:
                raise InputError("a later edit of the same weights is still in place; restore that edit first")
        self._restored = True
        _LIVE[self.model].discard(self)
        self._edit.close()

    def export(
        self, directory: str | Path, format: str = "dense", tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Writes the edited model like `lrbench export`, and restores the original weights.

        Args:
            directory: must not exist, or be empty.
            format: `dense`, `factored` or `lora`.
            tokenizer: written with the model.

        Raises:
            InputError: the format is unknown, the directory is occupied or cannot be written, or the model was changed
                after its reduction; then it is not restored.
            ModelError: `lora` requires a low-rank update, and the edit is none.
        """
        from lrbench.export import FORMATS, write
        from lrbench.export.exported_model import ExportedModel

        if format not in FORMATS:
            raise InputError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
        if self._restored:
            raise InputError("this edit has been restored; export it before, or reduce again")
        self._refuse_changed()
        self.restore()
        name = str(getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__)
        folder = Path(name) if Path(name).is_dir() else None
        exported = ExportedModel(
            base=folder.name if folder is not None else name, base_folder=folder, model=self.model,
            tokenizer=tokenizer, inventory=self._inventory, slots=self._slots, reductions=self._reductions,
            made="lrbench.reduce(...)",
        )  # fmt: skip
        write(exported, Path(directory), format)

    def _refuse_changed(self) -> None:
        """Raises InputError if a weight changed after the reduction, since the export would be of another model."""
        now = dict(_state(self.model))
        for name, (tensor, version) in self._versions.items():
            if now.get(name) is not tensor or tensor._version != version:
                raise InputError(
                    f"{name} was changed after the model was reduced, and the export would be another model; "
                    "restore(), change it, and reduce again"
                )

    def __enter__(self) -> Reduced:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._restored:
            self.restore()

    def __repr__(self) -> str:
        return (
            f"Reduced({type(self.model).__name__}, {len(self.edits)} weights, keep_targets={self.keep_targets:.3f}, "
            f"keep_model={self.keep_model:.3f}{', restored' if self._restored else ''})"
        )


def reduce(
    model: PreTrainedModel,
    reducer: str | Reducer = "svd",
    *,
    layers: Any = "all",
    weights: str | Sequence[str] = "all",
    keep: float | None = None,
    fraction: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    seed: int = 0,
    inference: Inference = "dense",
    plugins: Iterable[str | Path] = (),
    **params: Any,
) -> Reduced:
    """Reduces a causal language model's weights in place.

    Args:
        model: a transformers model, on its device.
        reducer: a reducer's name, or an instance of `lrbench.Reducer`.
        layers: as in a suite: `"all"`, `3`, `-1`, `[0, 3]`, `"4-7"`, `"last half"`; any iterable of integers.
        weights: roles, groups, LASER's names, or globs on parameter names.
        keep, fraction, rank, energy, error: exactly one of these, which sets the rank.
        seed: of the reducer's random draws.
        inference: `factored` runs layers on their factors where possible; see `Edit.evaluated_as`.
        plugins: files with more reducers.
        params: the reducer's parameters.

    Returns:
        The edit: `with lrbench.reduce(model, keep=0.5) as reduced: ...`, or `reduced.restore()`.

    Raises:
        InputError: an argument is invalid; a reducer, parameter, layer or weight does not exist; the reducer needs
            calibration; or a weight runs as factors of an earlier edit. Nothing was changed.
        ReducerError: the reducer failed on a weight, or no rank fits. Nothing was changed.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model: must be a transformers model, not {type(model).__name__}; load it first")
    if inference not in get_args(Inference):
        raise InputError(f"inference={inference!r}: choose one of {', '.join(get_args(Inference))}")
    layers, seed, rank = _plain(layers), _plain(seed), _plain(rank)
    keep, fraction, energy, error = _plain(keep), _plain(fraction), _plain(energy), _plain(error)
    params = {name: _plain(value) for name, value in params.items()}
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"seed={seed!r}: must be a whole number from 0")
    plugins = [plugins] if isinstance(plugins, str | Path) else list(plugins)
    request = _request(keep=keep, fraction=fraction, rank=rank, energy=energy, error=error)
    method = _method(reducer, params, plugins)
    if method.reducer.needs:
        raise InputError(
            f"{method.label} needs calibration ({', '.join(sorted(method.reducer.needs))}), which "
            "lrbench.reduce does not do; run it in a suite with `calibration`, then use `lrbench export`"
        )
    inventory = find_slots(model)
    try:
        chosen = Layers.parse(layers).resolve(len(inventory.blocks))
    except ValueError as wrong:
        raise InputError(f"layers: {wrong}") from None
    weights = [weights] if isinstance(weights, str) else list(weights)
    for other in _LIVE.get(model, ()):
        other.refuse_factored(chosen, weights)
    slots = tuple(inventory.select(chosen, weights))
    for slot in slots:
        reason = method.reducer.supports(slot.about)
        if reason:
            raise InputError(f"{method.label} does not support {slot.name}: {reason}")
    [(_, outcome)] = CellReducer(seed).reduce_group([Cell(method, "together", slots, request)])
    if isinstance(outcome, LrbenchError):
        raise outcome
    return Reduced(model, inventory, slots, outcome, inference)


def _state(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of each parameter and persistent buffer."""
    return iter(model.state_dict(keep_vars=True).items())


def _plain(value: Any) -> Any:
    """Converts numbers of numpy and torch to Python's, and other iterables to lists."""
    if isinstance(value, str | bytes | bool | Mapping) or value is None:
        return value
    if hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0:
        return operator.index(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if not isinstance(value, Iterable):
        return value
    listed = list(value)
    return type(value)(map(_plain, listed)) if isinstance(value, list | tuple) else [_plain(entry) for entry in listed]


def _request(**arguments: float | None) -> RankRequest:
    kinds: list[RankKind] = ["keep", "fraction", "rank", "energy", "error"]
    requests = [(kind, value) for kind in kinds if (value := arguments[kind]) is not None]
    if len(requests) != 1:
        raise InputError(f"give exactly one of {', '.join(kinds)}; got {', '.join(k for k, _ in requests) or 'none'}")
    kind, value = requests[0]
    if not isinstance(value, int | float):
        raise InputError(
            f"{kind}={value!r}: must be one number; for several ranks, reduce several times or run a suite"
        )
    valid = isinstance(value, int) and value >= 1 if kind == "rank" else 0 <= value <= 1 and (value or kind == "error")
    if isinstance(value, bool) or not valid:
        allowed = "a whole number from 1" if kind == "rank" else "above 0 and at most 1"
        raise InputError(f"{kind}={value!r}: must be {allowed}")
    return RankRequest(kind, value)


def _method(reducer: str | Reducer, params: dict[str, Any], plugins: Iterable[str | Path]) -> Method:
    if isinstance(reducer, Reducer):
        if params:
            raise InputError(
                f"{reducer.name} is an instance and takes no parameters here; unexpected {', '.join(params)}"
            )
        return Method(reducer.name, reducer, values(reducer), "")
    if not isinstance(reducer, str):
        raise InputError(f"reducer: must be a name or an instance of lrbench.Reducer, not {reducer!r}")
    registry = Registry.load([*plugins])
    built = registry.build(reducer, params)
    return Method(reducer, built, values(built), source_hash(type(built)))
