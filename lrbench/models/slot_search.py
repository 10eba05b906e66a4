"""Finds the weight slots of a model by its structure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrbench.errors import ModelError
from lrbench.models.families import PART_ROLES, expert_layouts, fused_layouts, stack_of
from lrbench.models.layouts import MatrixLayout
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reducers.base import Slot
from lrbench.suite.roles import is_fused, is_router, role_of

#: The package in which transformers loads code from a checkpoint's repository.
REPOSITORIES = "transformers_modules"
#: Dtypes of editable matrices. Eight-bit floats belong to quantized checkpoints, and need scales.
_EDITABLE = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


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
