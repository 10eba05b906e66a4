"""Weight slots: the editable matrices of a model, as W (out, in) with y = W x. Does not import transformers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from lrbench.errors import ModelError
from lrbench.models.layouts import MatrixLayout
from lrbench.reducers.base import Slot
from lrbench.suite.roles import ALIASES, GROUPS, ROLES
from lrbench.system.text import did_you_mean


@dataclass(frozen=True, eq=False)
class WeightSlot:
    """An editable matrix of a loaded model.

    Attributes:
        about: name, layer, role and shape, as reducers get them.
        module, parameter: the tensor is `getattr(module, parameter)`.
        layout: the position of the matrix in the tensor.
        part: the part of the tensor, as in the slot's name: `[q]`, `[5][gate]`; empty for all of it.
        users: the number of modules that use the tensor; a tied tensor stays in use until all its slots are edited.
        model: the model of the slot.
    """

    about: Slot
    module: nn.Module = field(repr=False)
    parameter: str = "weight"
    layout: MatrixLayout = field(default_factory=MatrixLayout, repr=False)
    part: str = ""
    users: int = 1
    model: nn.Module | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The parameter's name, with the part in brackets."""
        return self.about.name

    @property
    def module_name(self) -> str:
        """The name of the module that holds the parameter."""
        return self.tensor_name.removesuffix(f".{self.parameter}")

    @property
    def tensor_name(self) -> str:
        """The name of the whole parameter."""
        return self.name.removesuffix(self.part)

    @property
    def size(self) -> int:
        """The number of parameters of the matrix."""
        return self.about.shape[0] * self.about.shape[1]

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two slots that share storage, such as a tied head and embedding; valid while nothing is edited."""
        return id(self.tensor()), *self.layout.place

    @property
    def no_input(self) -> str | None:
        """Why a hook on `module` cannot see the slot's input x; None if it can."""
        if self.layout.expert is not None:
            return "a module of stacked experts routes tokens inside, where no hook sees them"
        return "the inputs of an embedding are token ids" if self.about.role == "embed" else None

    @property
    def input_visible(self) -> bool:
        """Whether the first argument of `module` is the slot's input x, which all parts of a fused module share."""
        return self.no_input is None

    def tensor(self) -> nn.Parameter:
        """The current parameter, with all its parts."""
        return getattr(self.module, self.parameter)

    def read(self) -> torch.Tensor:
        """The current matrix (out, in): a view or a copy, which must not be written to."""
        return self.layout.read(self.tensor().detach())

    def write(self, tensor: torch.Tensor, matrix: torch.Tensor) -> None:
        """Writes `matrix` (out, in) to its position in `tensor`, which has the parameter's shape."""
        self.layout.write(tensor, matrix)


@torch.no_grad()
def write_slot(slot: WeightSlot, matrix: torch.Tensor) -> None:
    """Permanently writes a matrix (out, in) to a slot's parameter."""
    slot.write(slot.tensor().data, matrix)


@dataclass(frozen=True)
class Inventory:
    """The slots of a model.

    Attributes:
        slots: the editable matrices, block by block in the model's order, then the embedding and the head.
        blocks: the decoder blocks.
        left_out: (parameter name, reason) of each matrix-like parameter that is no slot.
        unnamed: (slot name, reason) of each slot without a role, which only globs select.
    """

    slots: tuple[WeightSlot, ...]
    blocks: tuple[nn.Module, ...]
    left_out: tuple[tuple[str, str], ...]
    unnamed: tuple[tuple[str, str], ...]

    def select(self, layers: Sequence[int], weights: Sequence[str]) -> list[WeightSlot]:
        """The slots in blocks `layers` that any of `weights` names, in the model's order.

        Args:
            layers: block indices; slots outside the blocks, such as `head` and `embed`, do not depend on them.
            weights: roles, groups, LASER's names, or globs on names of slots, or of parameters for all their parts.

        Raises:
            ModelError: a word is unknown, or selects nothing in this model.
        """
        chosen: set[int] = set()
        inside = [slot for slot in self.slots if slot.about.layer is None or slot.about.layer in set(layers)]
        for word in weights:
            matching = [slot for slot in inside if self._matches(slot, word)]
            if not matching:
                raise ModelError(self._nothing(word, layers))
            chosen.update(map(id, matching))
        return [slot for slot in self.slots if id(slot) in chosen]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles in this model, in the order of `ROLES`."""
        present = {slot.about.role for slot in self.slots}
        return tuple(role for role in ROLES if role in present)

    def _matches(self, slot: WeightSlot, word: str) -> bool:
        if word in ROLES:
            return slot.about.role == word
        if word in GROUPS:
            return slot.about.role in GROUPS[word]
        if word in ALIASES:
            if word == "fc_up" and "mlp.gate" not in self.roles:  # without a gate, fc_in is the up-projection
                return False
            return slot.about.role == next((role for role in ALIASES[word] if role in self.roles), None)
        path, dot, last = word.rpartition(".")  # brackets in the last piece name a part
        words = {word, path + dot + last.replace("[", "[[]")}
        return any(fnmatch.fnmatchcase(name, glob) for name in {slot.name, slot.tensor_name} for glob in words)

    def _nothing(self, word: str, layers: Sequence[int]) -> str:
        known = [*ROLES, *GROUPS, *ALIASES]
        roles = f"this model has {', '.join(self.roles) or 'no recognised roles'}"
        hint = did_you_mean(word, known)
        if word not in known and not any(mark in word for mark in "*?[") and (hint or "." not in word):
            return f"unknown role {word!r}{hint} ({roles}; or give a glob on parameter names)"
        if any(self._matches(slot, word) for slot in self.slots):
            return f"{word!r} selects nothing in layers {list(layers)}"
        fused = [name for name, why in self.unnamed if "fused" in why]
        hint = f"; fused weights are selected by a glob, such as {fused[0]!r}" if fused else ""
        return f"{word!r} selects no weight: {roles}{hint}"


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a model; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
