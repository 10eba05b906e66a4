"""Weight slots: the matrices of a model that can be edited, found by structure and seen as W (out, in), y = W x."""

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
from lrbench.models.layouts import Layout
from lrbench.reducers.base import Slot
from lrbench.suite.roles import ALIASES, GROUPS, ROLES, is_fused, is_router, role_of
from lrbench.system.text import did_you_mean

#: The package in which transformers puts the code that comes with a checkpoint.
REPOSITORIES = "transformers_modules"
#: What a matrix can be reduced in. Eight-bit floats are a quantized checkpoint's, and need their scales beside them.
_EDITABLE = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


@dataclass(frozen=True, eq=False)
class WeightSlot:
    """One editable matrix of a loaded model.

    Attributes:
        about: what a reducer is told (name, layer, role, shape).
        module, parameter: where the tensor lives: `getattr(module, parameter)`.
        layout: how the matrix lies in that tensor.
        part: what of the tensor it is, as in its name: `[q]`, `[5][gate]`; empty for all of it.
        users: how many modules use the same tensor. Of a tied one, the original stays in use until all are edited.
        model: whose it is.
    """

    about: Slot
    module: nn.Module = field(repr=False)
    parameter: str = "weight"
    layout: Layout = field(default_factory=Layout, repr=False)
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
    def numbers(self) -> int:
        """How many numbers the matrix has."""
        return self.about.shape[0] * self.about.shape[1]

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two slots that share their numbers, as a tied head and embedding do, while nothing is edited."""
        return id(self.tensor()), *self.layout.place

    @property
    def no_input(self) -> str | None:
        """Why a hook on `module` does not see the slot's input x; None where it does."""
        if self.layout.expert is not None:
            return "which tokens an expert of a stack is given is decided inside its module, where no hook sees it"
        return "an embedding is given token ids" if self.about.role == "embed" else None

    @property
    def input_visible(self) -> bool:
        """Whether the first argument of `module` is the slot's x; of a fused module, that of all its parts."""
        return self.no_input is None

    def tensor(self) -> nn.Parameter:
        """The parameter as it is now, with all its parts."""
        return getattr(self.module, self.parameter)

    def read(self) -> torch.Tensor:
        """The matrix (out, in) as it is now: a view or a copy, not to be written to."""
        return self.layout.read(self.tensor().detach())

    def write(self, tensor: torch.Tensor, matrix: torch.Tensor) -> None:
        """Writes `matrix` (out, in) into `tensor`, which is of the parameter's shape; its other parts stay."""
        self.layout.write(tensor, matrix)


@torch.no_grad()
def write_slot(slot: WeightSlot, matrix: torch.Tensor) -> None:
    """Writes a matrix (out, in) into a slot's parameter for good."""
    slot.write(slot.tensor().data, matrix)


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
            weights: roles, groups, LASER's names, or globs on the names of slots, or of parameters for all their parts.

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
        path, dot, last = word.rpartition(".")  # in a parameter's own name, brackets hold a part, not characters
        words = {word, path + dot + last.replace("[", "[[]")}
        return any(fnmatch.fnmatchcase(name, glob) for name in {slot.name, slot.tensor_name} for glob in words)

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
    return _Search(model).inventory()


class _Search:
    """Goes over a model once, and notes for each matrix what it is, or why it is left out."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        config: Any = getattr(model, "config", None)
        self._config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        if type(model).__module__.partition(".")[0] == REPOSITORIES:
            self._config = None  # a repository's own code may call itself by a known model type, and lie otherwise
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
                self._add(module, "weight", None, role, Layout(transposed=role == "embed"))
        for path, module in self._model.named_modules():
            for own, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim > 1 and (id(module), own) not in self._handled:
                    self._elsewhere(module, path, own, parameter)
        return Inventory(tuple(self._slots), tuple(blocks), tuple(self._left_out), tuple(self._unnamed))

    def _in_block(self, module: nn.Module, path: str, layer: int) -> None:
        if is_router(path):
            return
        if isinstance(module, (nn.Linear, Conv1D)):
            whole = Layout(transposed=isinstance(module, Conv1D))
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
        self, module: nn.Module, own: str, layer: int | None, role: str | None, layout: Layout, part: str = "",
        why: str = "",
    ) -> None:  # fmt: skip
        """Notes a slot; `why` it has no role, where it has none."""
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
        """A matrix that is neither in a block's projections nor the embedding or the head."""
        if is_router(path):
            why = "a router, which is never edited"
        elif isinstance(module, nn.Linear) and own == "weight":
            self._add(module, own, None, None, Layout(), why="outside the decoder blocks")
            return
        elif "bias" in own:
            why = "biases, which an edit leaves as they are"
        elif parameter.ndim > 2:
            why = "a stack of matrices in an order that is not known"
        else:
            why = f"held by a {type(module).__name__}"
        self._left_out.append((f"{path}.{own}" if path else own, why))


def _decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The list of like modules that holds the most parameters."""
    best: tuple[int, list[nn.Module]] = (0, [])
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > best[0]:
                best = (size, list(module))
    if not best[0]:
        raise ModelError(f"{type(model).__name__}: no decoder blocks found (no list of layers); is it a causal LM?")
    return best[1]


def count_numbers(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
