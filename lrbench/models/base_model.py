"""The base of a fine-tuned model, compared with it slot by slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from lrbench.errors import ModelError
from lrbench.models.load import (
    DTYPES,
    LoadedModel,
    describe_source,
    first_non_finite,
    load_weights,
    weight_hash,
)
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import Inventory, WeightSlot, count_parameters
from lrbench.models.source import find, structure
from lrbench.system.text import silent

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec


@dataclass(frozen=True)
class ChangedParameters:
    """A slot, or the remainder of a parameter, in which a fine-tuned model differs from its base.

    Attributes:
        parameter: the name of the parameter.
        place: `WeightSlot.place` of the slot; None for the remainder.
        count: the number of scalars.
    """

    parameter: str
    place: tuple[object, ...] | None
    count: int


class Base:
    """A base model on the CPU, which never runs. Its slots match the fine-tuned model's by name, shape and layout.

    Attributes:
        label: its name in tables.
        source: its origin, for the manifest.
        weight_hash: SHA-256 of its weights in the fine-tuned model's dtype, as in `LoadedModel`.
        model: the base model.
        changed: the slots and remaining parameters in which the fine-tuned model differs.
    """

    def __init__(self, label: str, source: dict[str, Any], model: PreTrainedModel, tuned: LoadedModel) -> None:
        self.label, self.source, self.model = label, source, model
        self.weight_hash = weight_hash(model)
        self._slots = {slot.name: slot for slot in find_slots(model).slots}
        self.changed = tuple(self._compare(tuned))
        self._changed_places = {changed.place for changed in self.changed}

    def describe(self) -> dict[str, Any]:
        """Label, source and hash, for the manifest."""
        return {"label": self.label, **self.source, "weight_hash": self.weight_hash}

    def slot(self, slot: WeightSlot) -> WeightSlot:
        """The base's slot that matches a slot of the fine-tuned model. Raises ModelError: there is none."""
        check_matching_slots(self.label, self._slots, [slot])
        return self._slots[slot.name]

    def differs(self, slot: WeightSlot) -> bool:
        """Whether fine-tuning changed the weight of a slot."""
        return not _same(slot.read(), self.slot(slot).read())

    def extra_parameters(self, edited: Sequence[WeightSlot]) -> int:
        """The number of parameters to store in addition to the base and the factored updates of `edited`.

        The update of a tied weight replaces its parameters only if all its slots are edited.
        """
        return sum(changed.count for changed in self.not_replaced(edited))

    def not_replaced(self, edited: Sequence[WeightSlot]) -> list[ChangedParameters]:
        """The changed parameters that updates of `edited` do not replace."""
        users = Counter(slot.place for slot in edited)
        replaced = {slot.place for slot in edited if users[slot.place] == slot.users}
        return [changed for changed in self.changed if changed.place not in replaced]

    def _compare(self, tuned: LoadedModel) -> Iterator[ChangedParameters]:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        slots: dict[int, list[WeightSlot]] = {}
        for slot in tuned.inventory.slots:
            slots.setdefault(id(slot.tensor()), []).append(slot)
        for name, parameter in tuned.model.named_parameters():
            if name in own and _same(parameter, own[name]):
                continue
            rest = parameter.numel()
            for place, slot in {slot.place: slot for slot in slots.get(id(parameter), ())}.items():
                rest -= slot.size
                if slot.name not in self._slots or _mismatch(slot, self._slots[slot.name]) or self.differs(slot):
                    yield ChangedParameters(name, place, slot.size)
            if rest:
                yield ChangedParameters(name, None, rest)


def with_eager_attention(spec: ModelSpec) -> ModelSpec:
    """The spec with eager attention: a base never runs, and its own attention may not be installed."""
    return spec.model_copy(update={"attn_implementation": "eager"})


def load_base(
    spec: ModelSpec,
    tuned: LoadedModel,
    notify: Callable[[str], None] = silent,
    *,
    trust_remote_code: bool = False,
) -> Base:
    """Loads the base of a fine-tuned model on the CPU, in the fine-tuned model's dtype.

    `notify` is called with one line before a slow step.

    Raises:
        ModelError: as `lrbench.models.load.load`; or it holds NaN or infinities.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    read = with_eager_attention(spec).model_copy(update={"dtype": names.get(tuned.dtype, "auto")})
    source = find(read, notify, trust_remote_code=trust_remote_code)
    model = load_weights(
        read, source, count_parameters(structure(source, read.attn_implementation)), torch.device("cpu")
    )
    broken = first_non_finite(model)
    if broken:
        raise ModelError(f"base {spec.display_name}: {broken}; repair the checkpoint")
    return Base(
        spec.display_name, describe_source(read.model_copy(update={"attn_implementation": None}), source), model, tuned
    )


def check_base_slots(label: str, base: Inventory, tuned: Inventory, slots: Iterable[WeightSlot]) -> None:
    """Checks that the slots of a fine-tuned model can come from a base.

    Args:
        label: the base's name in messages.
        base, tuned: the slots of both models.
        slots: the slots of the fine-tuned model to be reduced.

    Raises:
        ModelError: the architectures differ; or a slot is missing in the base, or has another shape or layout.
    """
    of_base, of_tuned = _architecture(base), _architecture(tuned)
    if of_base != of_tuned:
        raise ModelError(
            f"base {label}: {of_base}, and the fine-tuned model is {of_tuned}; give the model that was fine-tuned"
        )
    check_matching_slots(label, {slot.name: slot for slot in base.slots}, slots)


def _architecture(inventory: Inventory) -> str:
    models = [slot.model for slot in inventory.slots if slot.model is not None]
    kind = getattr(getattr(models[0], "config", None), "model_type", None) if models else None
    return f"a {kind or 'model of unknown type'} of {len(inventory.blocks)} blocks"


def check_matching_slots(label: str, base: dict[str, WeightSlot], slots: Iterable[WeightSlot]) -> None:
    """Raises ModelError if a slot has no slot of its name, shape and layout among the slots of the base, by name."""
    for slot in slots:
        if slot.name not in base:
            raise ModelError(f"base {label}: it has no {slot.name}; give the model that was fine-tuned")
        if reason := _mismatch(slot, base[slot.name]):
            raise ModelError(f"base {label}: {slot.name} {reason}; give the model that was fine-tuned")


def _mismatch(slot: WeightSlot, base: WeightSlot) -> str | None:
    """How a slot differs from the base's in shape or layout; None if it does not."""
    if slot.about.shape != base.about.shape:
        return f"is {base.about.shape} in the base, and {slot.about.shape} in the fine-tuned model"
    if slot.layout != base.layout:
        return "has another layout in the base"
    return None


def _same(tuned: torch.Tensor, base: torch.Tensor) -> bool:
    """Whether two tensors are equal in the dtype of the first."""
    return tuned.shape == base.shape and torch.equal(tuned, base.to(tuned))
