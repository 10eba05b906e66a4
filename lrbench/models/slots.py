"""Weight slots: the matrices of a model that can be edited, found by structure and seen as W (out, in), y = W x."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrbench.errors import ModelError, did_you_mean
from lrbench.models.roles import ALIASES, GROUPS, ROLES, is_fused, role_of
from lrbench.reducer import Slot


class Layout:
    """How a slot's matrix lies in its parameter: here, as it is. Parts of fused parameters are other layouts."""

    def view(self, parameter: torch.Tensor) -> torch.Tensor:
        """The slot's matrix (out, in) as a view of `parameter`: writing to it writes to the parameter."""
        return parameter


class Transposed(Layout):
    """Stored as (in, out): Conv1D, and embeddings (which map a one-hot vector)."""

    def view(self, parameter: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return parameter.T


@dataclass(frozen=True, eq=False)
class WeightSlot:
    """One editable matrix of a loaded model.

    Attributes:
        about: what a reducer is told (name, layer, role, shape).
        module, parameter: where the tensor lives: `getattr(module, parameter)`.
        layout: how the matrix lies in that tensor.
        users: how many modules use the same tensor. Of a tied one, the original stays in use until all are edited.
    """

    about: Slot
    module: nn.Module = field(repr=False)
    parameter: str = "weight"
    layout: Layout = field(default_factory=Layout, repr=False)
    users: int = 1

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.about.name

    def tensor(self) -> nn.Parameter:
        """The parameter as it is now."""
        return getattr(self.module, self.parameter)

    def read(self) -> torch.Tensor:
        """The matrix (out, in) as it is now: a view, not to be written to."""
        return self.layout.view(self.tensor().detach())


@torch.no_grad()
def write_slot(slot: WeightSlot, matrix: torch.Tensor) -> None:
    """Writes a matrix (out, in) into a slot's parameter for good."""
    slot.layout.view(slot.tensor().data).copy_(matrix)


@dataclass(frozen=True)
class Inventory:
    """What was found in a model.

    Attributes:
        slots: the editable matrices, block by block in the model's order, then the embedding and the head.
        blocks: the decoder blocks.
        left_out: (parameter name, why) for each matrix-like parameter that is no slot.
        unnamed: slots without a role, which only globs select: (parameter name, why).
    """

    slots: tuple[WeightSlot, ...]
    blocks: tuple[nn.Module, ...]
    left_out: tuple[tuple[str, str], ...]
    unnamed: tuple[tuple[str, str], ...]

    def select(self, layers: Sequence[int], weights: Sequence[str]) -> list[WeightSlot]:
        """The slots of the given blocks that any of `weights` names, in the model's order.

        Args:
            layers: block indices; `head`, `embed` and what stands outside the blocks are not bound to them.
            weights: roles, groups, LASER's names, or globs on parameter names.

        Raises:
            ModelError: a word is none of these, or selects nothing in this model.
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
        """The roles that occur, in the order of `ROLES`."""
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
        return fnmatch.fnmatchcase(slot.name, word)

    def _nothing(self, word: str, layers: Sequence[int]) -> str:
        known = [*ROLES, *GROUPS, *ALIASES]
        here = f"this model has {', '.join(self.roles) or 'no recognised roles'}"
        hint = did_you_mean(word, known)
        if word not in known and not any(mark in word for mark in "*?[") and (hint or "." not in word):
            return f"unknown role {word!r}{hint} ({here}; or give a glob on parameter names)"
        if any(self._matches(slot, word) for slot in self.slots):
            return f"{word!r} selects nothing in layers {list(layers)}"
        fused = [name for name, why in self.unnamed if "fused" in why]
        hint = f"; fused weights are selected by a glob, such as {fused[0]!r}" if fused else ""
        return f"{word!r} selects no weight: {here}{hint}"


def find_slots(model: nn.Module) -> Inventory:
    """Finds a causal language model's editable matrices.

    Raises:
        ModelError: no decoder blocks were found.
    """
    blocks_name, blocks = _decoder_blocks(model)
    names = {id(module): name for name, module in model.named_modules()}
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    users: dict[int, int] = {}  # how many modules hold each parameter
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1

    slots: list[WeightSlot] = []
    left_out: list[tuple[str, str]] = []
    unnamed: list[tuple[str, str]] = []
    handled: set[tuple[int, str]] = set()

    def add(module: nn.Module, layer: int | None, role: str | None, layout: Layout) -> None:
        name, parameter = f"{names[id(module)]}.weight", module.weight
        handled.add((id(module), "weight"))
        if not isinstance(parameter, torch.Tensor) or not parameter.is_floating_point() or parameter.ndim != 2:
            left_out.append((name, "not a floating-point matrix (quantized?)"))
            return
        out_features, in_features = layout.view(parameter).shape
        about = Slot(name=name, layer=layer, role=role, shape=(out_features, in_features))
        slots.append(WeightSlot(about, module, "weight", layout, users=users[id(parameter)]))

    for layer, block in enumerate(blocks):
        for path, module in block.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                role = role_of(path)
                add(module, layer, role, Transposed() if isinstance(module, Conv1D) else Layout())
                if role is None:
                    why = "several roles fused in one matrix" if is_fused(path) else "role not recognised"
                    unnamed.append((f"{blocks_name}.{layer}.{path}.weight", why))
    for module, role in ((embed, "embed"), (head, "head")):
        if module is not None and isinstance(getattr(module, "weight", None), torch.Tensor):
            add(module, None, role, Transposed() if role == "embed" else Layout())
    for name, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is None or parameter.ndim < 2 or (id(module), own) in handled:
                continue
            kind = "a stack of matrices" if parameter.ndim > 2 else f"held by a {type(module).__name__}"
            if isinstance(module, nn.Linear):
                add(module, None, None, Layout())
                unnamed.append((f"{name}.weight", "outside the decoder blocks"))
            else:
                left_out.append((f"{name}.{own}" if name else own, kind))
    return Inventory(tuple(slots), tuple(blocks), tuple(left_out), tuple(unnamed))


def _decoder_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The list of like modules that holds the most parameters."""
    best: tuple[int, str, list[nn.Module]] = (0, "", [])
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > best[0]:
                best = (size, name, list(module))
    if not best[0]:
        raise ModelError(f"{type(model).__name__}: no decoder blocks found (no list of layers); is it a causal LM?")
    return best[1], best[2]


def count_numbers(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
