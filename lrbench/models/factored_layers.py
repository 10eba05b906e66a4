"""Running a model on factors: the module of a weight gives way to the factors' own, and comes back."""

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
    """Whether a slot is all of a linear layer that computes W x + b, so that factors can take the layer's place.

    Parts of fused and stacked parameters, and embeddings, are none.
    """
    module = slot.module
    if slot.parameter != "weight" or not isinstance(module, nn.Linear | Conv1D):
        return False
    weight = slot.tensor()
    if weight.ndim != 2:
        return False
    seen, whole = slot.read(), weight.T if isinstance(module, Conv1D) else weight
    if (seen.data_ptr(), seen.shape, seen.stride()) != (whole.data_ptr(), whole.shape, whole.stride()):
        return False
    return type(module).forward in (nn.Linear.forward, Conv1D.forward) or _computes(module, seen)


def runs_as_factors(slot: WeightSlot, factors: Factors) -> bool:
    """Whether a slot's factors can run in its place: it is a whole layer, and they are not a matrix stored in full."""
    return is_whole_layer(slot) and not isinstance(factors, Dense)


def layer_of(slot: WeightSlot, factors: Factors) -> FactoredLinear:
    """A layer of a slot's factors with copies of them, and of its own bias; in evaluation mode, without gradients."""
    bias = getattr(slot.module, "bias", None)
    layer = factors.module(bias).eval().requires_grad_(False)
    return layer.to(slot.tensor().device)


@contextmanager
def factored(model: nn.Module, stand_ins: Mapping[WeightSlot, Factors]) -> Iterator[None]:
    """Puts layers of factors in the place of the slots' own layers, for as long as the context lasts.

    The original modules stand aside whole, and the same objects come back. A module that stands in several places is
    replaced in each.

    Args:
        model: the one that the slots are of.
        stand_ins: slots that `runs_as_factors`, with their factors in the model's dtype.

    Raises:
        ModelError: a slot is no whole layer.
        SpoiltModelError: on leaving, a layer was replaced or an original was written to behind our back.
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
            raise SpoiltModelError(f"{', '.join(spoilt)}: replaced or written to while it stood aside")


def install(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts a layer in the place of the module at `path`, wherever that stands, for good.

    Raises:
        AttributeError: the model has no such module.
    """
    original = model.get_submodule(path)
    for parent, name in _places(model, original):
        parent._modules[name] = layer


def _hooked_like(original: nn.Module, layer: FactoredLinear) -> FactoredLinear:
    """The layer under the hook that accelerate has on the original, where it has one.

    On a model that lies on several devices it is the hook that brings a layer's input to the layer's device.
    """
    hook = getattr(original, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(layer, hook)
    return layer


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a module stands: (parent, name)."""
    return [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is module]


@torch.no_grad()
def _computes(module: nn.Module, matrix: torch.Tensor) -> bool:
    """Whether a module with a forward of its own is W x + b all the same, tried on one vector."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, matrix.shape[1], generator=generator).to(matrix)
    try:
        given = module(x)
    except Exception:  # whatever it is, it is no linear layer
        return False
    bias = getattr(module, "bias", None)
    expected = x @ matrix.T if bias is None else x @ matrix.T + bias
    return isinstance(given, torch.Tensor) and torch.allclose(given.float(), expected.float(), rtol=1e-2, atol=1e-3)
