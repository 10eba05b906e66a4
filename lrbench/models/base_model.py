"""The model that a fine-tuned one began as: its weights beside the fine-tuned ones, slot by slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from lrbench.errors import ModelError
from lrbench.models.load import (
    DTYPES,
    LoadedModel,
    described,
    first_non_finite,
    load_weights,
    weight_hash,
)
from lrbench.models.slots import Inventory, WeightSlot, count_numbers, find_slots
from lrbench.models.source import find, structure

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec


@dataclass(frozen=True)
class Changed:
    """Numbers of the fine-tuned model that are not the base's.

    Attributes:
        parameter: which of its parameters has them.
        place: `WeightSlot.place` of the slot that they are; None for what is no slot.
        numbers: how many.
    """

    parameter: str
    place: tuple[object, ...] | None
    numbers: int


class Base:
    """A base on the CPU, beside the model that was fine-tuned from it.

    Slots belong together by name, shape and layout; nothing of the base ever runs.

    Attributes:
        label: how tables name it.
        source: where it came from, for the manifest.
        weight_hash: SHA-256 of its weights in the fine-tuned model's dtype, as of `LoadedModel`.
        model: the base.
        changed: what of the fine-tuned model is not the base's own.
    """

    def __init__(self, label: str, source: dict[str, Any], model: PreTrainedModel, tuned: LoadedModel) -> None:
        self.label, self.source, self.model = label, source, model
        self.weight_hash = weight_hash(model)
        self._slots = {slot.name: slot for slot in find_slots(model).slots}
        self.changed = tuple(self._compare(tuned))
        self._changed_places = {piece.place for piece in self.changed}

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"label": self.label, **self.source, "weight_hash": self.weight_hash}

    def slot(self, slot: WeightSlot) -> WeightSlot:
        """The base's, of a slot of the fine-tuned model. Raises ModelError where it has none like it."""
        refuse_other(self.label, self._slots, [slot])
        return self._slots[slot.name]

    def differs(self, slot: WeightSlot) -> bool:
        """Whether fine-tuning changed a slot's weight."""
        return not _same(slot.read(), self.slot(slot).read())

    def numbers_beside(self, edited: Sequence[WeightSlot]) -> int:
        """How many numbers of the fine-tuned model must be stored beside the base, and beside updates of `edited`.

        A tied weight is replaced by its update only when all that use it are edited.
        """
        return sum(piece.numbers for piece in self.beside(edited))

    def beside(self, edited: Sequence[WeightSlot]) -> list[Changed]:
        """What `numbers_beside` counts."""
        users = Counter(slot.place for slot in edited)
        replaced = {slot.place for slot in edited if users[slot.place] == slot.users}
        return [piece for piece in self.changed if piece.place not in replaced]

    def _compare(self, tuned: LoadedModel) -> Iterator[Changed]:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        slots: dict[int, list[WeightSlot]] = {}
        for slot in tuned.inventory.slots:
            slots.setdefault(id(slot.tensor()), []).append(slot)
        for name, parameter in tuned.model.named_parameters():
            if name in own and _same(parameter, own[name]):
                continue
            rest = parameter.numel()
            for place, slot in {slot.place: slot for slot in slots.get(id(parameter), ())}.items():
                rest -= slot.numbers
                if slot.name not in self._slots or _apart(slot, self._slots[slot.name]) or self.differs(slot):
                    yield Changed(name, place, slot.numbers)
            if rest:
                yield Changed(name, None, rest)


def not_run(spec: ModelSpec) -> ModelSpec:
    """A base as it is read: without the attention that its configuration asks for, which may not be installed here."""
    return spec.model_copy(update={"attn_implementation": "eager"})


def load_base(spec: ModelSpec, tuned: LoadedModel, *, trust_remote_code: bool = False) -> Base:
    """Loads the base of a fine-tuned model on the CPU, in the fine-tuned one's dtype.

    Raises:
        ModelError: as `lrbench.models.load.load`; or it holds NaN or infinities.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    read = not_run(spec).model_copy(update={"dtype": names.get(tuned.dtype, "auto")})
    source = find(read, trust_remote_code=trust_remote_code)
    model = load_weights(read, source, count_numbers(structure(source, read.attn_implementation)), torch.device("cpu"))
    broken = first_non_finite(model)
    if broken:
        raise ModelError(f"base {spec.display_name}: {broken}; repair the checkpoint")
    return Base(
        spec.display_name, described(read.model_copy(update={"attn_implementation": None}), source), model, tuned
    )


def refuse_other_base(label: str, base: Inventory, tuned: Inventory, slots: Iterable[WeightSlot]) -> None:
    """Refuses a base that the slots of a fine-tuned model cannot have come from.

    Args:
        label: of the base.
        slots: those that are to be reduced.

    Raises:
        ModelError: another architecture; or a slot is missing, of another shape, or lies otherwise in its parameter.
    """
    theirs, ours = _architecture(base), _architecture(tuned)
    if theirs != ours:
        raise ModelError(
            f"base {label}: {theirs}, and the fine-tuned model is {ours}; give the model that was fine-tuned"
        )
    refuse_other(label, {slot.name: slot for slot in base.slots}, slots)


def _architecture(inventory: Inventory) -> str:
    models = [slot.model for slot in inventory.slots if slot.model is not None]
    kind = getattr(getattr(models[0], "config", None), "model_type", None) if models else None
    return f"a {kind or 'model of unknown type'} of {len(inventory.blocks)} blocks"


def refuse_other(label: str, base: dict[str, WeightSlot], slots: Iterable[WeightSlot]) -> None:
    """Refuses slots of a base, by name, that do not go with those of the fine-tuned model. Raises ModelError."""
    for slot in slots:
        if slot.name not in base:
            raise ModelError(f"base {label}: it has no {slot.name}; give the model that was fine-tuned")
        if reason := _apart(slot, base[slot.name]):
            raise ModelError(f"base {label}: {slot.name} {reason}; give the model that was fine-tuned")


def _apart(slot: WeightSlot, base: WeightSlot) -> str | None:
    """Why a slot is not the update of the base's; None where it may be."""
    if slot.about.shape != base.about.shape:
        return f"is {base.about.shape} there, and {slot.about.shape} in the fine-tuned model"
    if slot.layout != base.layout:
        return "lies otherwise in its parameter there"
    return None


def _same(tuned: torch.Tensor, base: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers in the dtype of the first."""
    return tuned.shape == base.shape and torch.equal(tuned, base.to(tuned))
