"""Temporary edits: parameter objects are swapped, and the original objects put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lrbench.errors import SpoiltModelError
from lrbench.models.slots import WeightSlot


@contextmanager
def edited(weights: Mapping[WeightSlot, torch.Tensor]) -> Iterator[None]:
    """Replaces the matrices of slots by `weights` (out, in) inside the context.

    Several parts of a fused or stacked parameter may be edited together; its other parts are kept. New parameters
    replace the original ones, whose version counters are checked at the end. Tied weights are untied: only the slot's
    own module uses the edit, and the model's configuration states that no weights are tied.

    Raises:
        SpoiltModelError: at the end, an original was written to or an edited parameter was replaced; the model is no
            longer valid.
    """
    originals: dict[tuple[int, str], tuple[nn.Module, str, nn.Parameter, int]] = {}
    placed: dict[tuple[int, str], nn.Parameter] = {}
    with ExitStack() as stack:
        for model in _models(slot for slot in weights if slot.users > 1):
            stack.enter_context(untied(model))
        try:
            for slot, matrix in weights.items():
                key = (id(slot.module), slot.parameter)
                if key not in originals:
                    original = slot.tensor()
                    replacement = nn.Parameter(original.detach().clone(), requires_grad=False)
                    placed[key] = replacement
                    originals[key] = (slot.module, slot.parameter, original, original._version)
                    setattr(slot.module, slot.parameter, replacement)
                with torch.no_grad():
                    slot.write(placed[key].data, matrix)
            yield
        finally:
            spoilt = []
            for key, (module, parameter, original, version) in originals.items():
                now = getattr(module, parameter)
                if not (now is placed[key] or now is original) or original._version != version:
                    spoilt.append(type(module).__name__)
                setattr(module, parameter, original)
            if spoilt:
                raise SpoiltModelError(
                    f"the weight of {', '.join(spoilt)} was replaced, or its original written to, during an edit"
                )


@contextmanager
def untied(model: nn.Module) -> Iterator[None]:
    """Marks all weights as untied in the model's configuration, so that neither `tie_weights` nor saving ties them."""
    kept: list[tuple[Any, str, Any]] = []
    for config in _configs(model):
        kept.append((config, "tie_word_embeddings", config.tie_word_embeddings))
        config.tie_word_embeddings = False
    for module in model.modules():
        if getattr(module, "all_tied_weights_keys", None):
            kept.append((module, "all_tied_weights_keys", module.all_tied_weights_keys))
            module.all_tied_weights_keys = {}  # type: ignore[assignment]
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


def _models(slots: Iterable[WeightSlot]) -> list[nn.Module]:
    return list({id(slot.model): slot.model for slot in slots if slot.model is not None}.values())


def _configs(model: nn.Module) -> list[Any]:
    """The distinct configurations in a model that state whether weights are tied."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if hasattr(config, "tie_word_embeddings")}.values())
