"""Editing a model for a while: the parameter object is swapped, and the original object put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lrbench.errors import EvaluationError
from lrbench.models.slots import WeightSlot


@contextmanager
def edited(weights: Mapping[WeightSlot, torch.Tensor]) -> Iterator[None]:
    """Puts matrices (out, in) in place of the slots' own, for as long as the context lasts.

    The original parameters are untouched by construction (new ones stand in for them); that nobody wrote to them
    meanwhile is checked by their version counters. Tied weights come apart: only the slot's own module sees the edit.

    Raises:
        EvaluationError: on leaving, an original was written to while it stood aside, or a parameter was replaced
            behind our back; the model can no longer be trusted.
    """
    originals: dict[tuple[int, str], tuple[nn.Module, str, nn.Parameter, int]] = {}
    placed: dict[tuple[int, str], nn.Parameter] = {}
    try:
        for slot, matrix in weights.items():
            key = (id(slot.module), slot.parameter)
            if key not in originals:
                original = slot.tensor()
                originals[key] = (slot.module, slot.parameter, original, original._version)
                replacement = nn.Parameter(original.detach().clone(), requires_grad=False)
                setattr(slot.module, slot.parameter, replacement)
                placed[key] = replacement
            with torch.no_grad():
                slot.layout.view(placed[key].data).copy_(matrix)
        yield
    finally:
        spoilt = []
        for key, (module, parameter, original, version) in originals.items():
            if getattr(module, parameter) is not placed.get(key) or original._version != version:
                spoilt.append(type(module).__name__)
            setattr(module, parameter, original)
        if spoilt:
            raise EvaluationError(f"the original weight of {', '.join(spoilt)} was written to while it stood aside")
