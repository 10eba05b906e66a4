"""Runs a model on factors: layers of factors temporarily replace the modules of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrbench.errors import ModelError, SpoiltModelError
from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Dense, Factors
from lrbench.reducers.factors.layer import FactoredLinear


def is_whole_layer(slot: WeightSlot) -> bool:
    """Whether a slot is the whole weight of a linear layer W x + b, so that factors can replace the layer.

    False for parts of fused and stacked parameters, and for embeddings.
    """
    module = slot.module
    if slot.parameter != "weight" or not isinstance(module, nn.Linear | Conv1D):
        return False
    weight = slot.tensor()
    if weight.ndim != 2:
        return False
    matrix, whole = slot.read(), weight.T if isinstance(module, Conv1D) else weight
    if (matrix.data_ptr(), matrix.shape, matrix.stride()) != (whole.data_ptr(), whole.shape, whole.stride()):
        return False
    return type(module).forward in (nn.Linear.forward, Conv1D.forward) or _computes(module, matrix)


def runs_as_factors(slot: WeightSlot, factors: Factors) -> bool:
    """Whether factors can replace a slot's layer: the slot is a whole layer, and the factors are not dense."""
    return is_whole_layer(slot) and not isinstance(factors, Dense)


def layer_of(slot: WeightSlot, factors: Factors) -> FactoredLinear:
    """A layer with copies of the factors and of the slot's bias, in evaluation mode, without gradients."""
    bias = getattr(slot.module, "bias", None)
    layer = factors.module(bias).eval().requires_grad_(False)
    return layer.to(slot.tensor().device)


@contextmanager
def factored(model: nn.Module, stand_ins: Mapping[WeightSlot, Factors]) -> Iterator[None]:
    """Replaces the layers of slots by layers of factors inside the context.

    The original module objects are put back at the end. A module used in several places is replaced in each.

    Args:
        model: the model of the slots.
        stand_ins: slots for which `runs_as_factors` holds -> factors in the model's dtype.

    Raises:
        ModelError: a slot is no whole layer.
        SpoiltModelError: at the end, a layer was replaced or an original was written to.
    """
    originals: list[tuple[WeightSlot, nn.Parameter, int]] = []
    placed: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    try:
        for slot, factors in stand_ins.items():
            places = _places(model, slot.module)
            if not places or not is_whole_layer(slot):
                raise ModelError(f"{slot.name}: not a linear layer of this model, so factors cannot run in its place")
            layer = _hooked_like(slot.module, layer_of(slot, factors))
            originals.append((slot, slot.tensor(), slot.tensor()._version))
            for parent, name in places:
                placed.append((parent, name, slot.module, layer))
                parent._modules[name] = layer
        yield
    finally:
        spoilt = [
            slot.name
            for slot, weight, version in originals
            if slot.tensor() is not weight or version != weight._version
        ]
        for parent, name, original, stand_in in reversed(placed):
            if parent._modules.get(name) is not stand_in:
                spoilt.append(name)
            parent._modules[name] = original
        if spoilt:
            raise SpoiltModelError(f"{', '.join(spoilt)}: replaced or written to while factors ran in its place")


def install(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Permanently replaces the module at `path`, in all places where it is used.

    Raises:
        AttributeError: the model has no such module.
    """
    original = model.get_submodule(path)
    for parent, name in _places(model, original):
        parent._modules[name] = layer


def _hooked_like(original: nn.Module, layer: FactoredLinear) -> FactoredLinear:
    """The layer with the original's accelerate hook, if any, which moves inputs to the layer's device."""
    hook = getattr(original, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(layer, hook)
    return layer


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """All places where a module is used: (parent, name)."""
    return [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is module]


@torch.no_grad()
def _computes(module: nn.Module, matrix: torch.Tensor) -> bool:
    """Whether a module with its own forward computes W x + b, tested on one vector."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, matrix.shape[1], generator=generator).to(matrix)
    try:
        output = module(x)
    except Exception:  # then it is no linear layer
        return False
    bias = getattr(module, "bias", None)
    expected = x @ matrix.T if bias is None else x @ matrix.T + bias
    return isinstance(output, torch.Tensor) and torch.allclose(output.float(), expected.float(), rtol=1e-2, atol=1e-3)
