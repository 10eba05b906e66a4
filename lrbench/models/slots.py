"""Weight slots: the editable matrices of a model, found by structure, as W (out, in) with y = W x."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrbench.errors import ModelError
from lrbench.models.families import PART_ROLES, expert_layouts, fused_layouts, stack_of
from lrbench.models.layouts import MatrixLayout
from lrbench.reducers.base import Slot
from lrbench.suite.roles import ALIASES, GROUPS, ROLES, is_fused, is_router, role_of
from lrbench.system.text import did_you_mean

#: The package in which transformers loads code from a checkpoint's repository.
REPOSITORIES = "transformers_modules"
#: Dtypes of editable matrices. Eight-bit floats belong to quantized checkpoints, and need scales.
_EDITABLE = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


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


def find_slots(model: nn.Module) -> Inventory:
    """Finds a causal language model's editable matrices.

    Raises:
        ModelError: no decoder blocks were found.
    """
    return _Search(model).inventory()


class _Search:
    """Classifies each matrix of a model as a slot, or records why it is left out."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        config: Any = getattr(model, "config", None)
        self._config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        if type(model).__module__.partition(".")[0] == REPOSITORIES:
            self._config = None  # code from a repository may use a known model type with another layout
        self._names = {id(module): name for name, module in model.named_modules()}
        self._users: Counter[int] = Counter()  # how many modules hold each parameter
        for module in model.modules():
            self._users.update(id(parameter) for parameter in module._parameters.values() if parameter is not None)
        self._slots: list[WeightSlot] = []
        self._left_out: list[tuple[str, str]] = []
        self._unnamed: list[tuple[str, str]] = []
        self._handled: set[tuple[int, str]] = set()

    def inventory(self) -> Inventory:
        blocks = _decoder_blocks(self._model)
        for layer, block in enumerate(blocks):
            for path, module in block.named_modules():
                self._in_block(module, path, layer)
        embed, head = self._model.get_input_embeddings(), self._model.get_output_embeddings()  # type: ignore[operator]
        for module, role in ((embed, "embed"), (head, "head")):
            if module is not None and isinstance(getattr(module, "weight", None), torch.Tensor):
                self._add(module, "weight", None, role, MatrixLayout(transposed=role == "embed"))
        for path, module in self._model.named_modules():
            for own, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim > 1 and (id(module), own) not in self._handled:
                    self._elsewhere(module, path, own, parameter)
        return Inventory(tuple(self._slots), tuple(blocks), tuple(self._left_out), tuple(self._unnamed))

    def _in_block(self, module: nn.Module, path: str, layer: int) -> None:
        if is_router(path):
            return
        if isinstance(module, (nn.Linear, Conv1D)):
            whole = MatrixLayout(transposed=isinstance(module, Conv1D))
            if not is_fused(path):
                self._add(module, "weight", layer, role_of(path), whole, why="role not recognised")
                return
            rows = module.weight.shape[1 if whole.transposed else 0]
            parts = fused_layouts(path, rows, self._config)
            if isinstance(parts, str):
                self._add(module, "weight", layer, None, whole, why=parts)
                return
            for part, where in parts.items():
                self._add(module, "weight", layer, PART_ROLES[part], replace(whole, rows=where), f"[{part}]")
            return
        stack = stack_of(module, self._config)
        for own, parameter in module._parameters.items():
            gated = is_fused(own)
            if parameter is None or parameter.ndim != 3 or stack is None or not (gated or role_of(own)):
                continue
            rows = parameter.shape[2 if stack.transposed else 1]
            for expert in range(parameter.shape[0]):
                for part, layout in expert_layouts(stack, expert, rows, gated=gated).items():
                    role = PART_ROLES[part] if part else role_of(own)
                    self._add(module, own, layer, role, layout, f"[{expert}]" + (f"[{part}]" if part else ""))

    def _add(
        self, module: nn.Module, own: str, layer: int | None, role: str | None, layout: MatrixLayout, part: str = "",
        why: str = "",
    ) -> None:  # fmt: skip
        """Adds a slot; `why` gives the reason if it has no role."""
        parameter, path = getattr(module, own), self._names[id(module)]
        name = f"{path}.{own}" if path else own
        first = (id(module), own) not in self._handled
        self._handled.add((id(module), own))
        matrices = 2 if layout.expert is None else 3
        if not isinstance(parameter, torch.Tensor) or parameter.dtype not in _EDITABLE or parameter.ndim != matrices:
            if first:
                self._left_out.append((name, "not a floating-point matrix (quantized?)"))
            return
        about = Slot(name=name + part, layer=layer, role=role, shape=layout.shape(parameter))
        self._slots.append(WeightSlot(about, module, own, layout, part, self._users[id(parameter)], self._model))
        if role is None:
            self._unnamed.append((name + part, why))

    def _elsewhere(self, module: nn.Module, path: str, own: str, parameter: nn.Parameter) -> None:
        """Handles a matrix that is neither a projection in a block nor the embedding or head."""
        if is_router(path):
            why = "a router, which is never edited"
        elif isinstance(module, nn.Linear) and own == "weight":
            self._add(module, own, None, None, MatrixLayout(), why="outside the decoder blocks")
            return
        elif "bias" in own:
            why = "biases, which are never edited"
        elif parameter.ndim > 2:
            why = "a stack of matrices of unknown layout"
        else:
            why = f"held by a {type(module).__name__}"
        self._left_out.append((f"{path}.{own}" if path else own, why))


def _decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The list of modules with the most parameters."""
    best: tuple[int, list[nn.Module]] = (0, [])
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > best[0]:
                best = (size, list(module))
    if not best[0]:
        raise ModelError(f"{type(model).__name__}: no decoder blocks found (no list of layers); is it a causal LM?")
    return best[1]


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a model; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
