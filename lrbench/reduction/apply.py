"""Putting reductions in a model's place, as matrices or as layers of factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import nn

from lrbench.models.edit import edited
from lrbench.models.factored_layers import factored, runs_as_factors
from lrbench.models.slots import WeightSlot
from lrbench.reduction.reduced_weight import Reduction

Inference = Literal["dense", "factored"]


def noted(slots: Sequence[WeightSlot], reductions: Sequence[Reduction], inference: Inference) -> list[Reduction]:
    """The reductions with a record of how each runs: factors that cannot take a layer's place run as a matrix."""
    if inference == "dense":
        return list(reductions)
    return [
        dataclasses.replace(
            done,
            edit=done.edit.model_copy(
                update={"evaluated_as": "factors" if runs_as_factors(slot, done.factors) else "dense"}
            ),
        )
        for slot, done in zip(slots, reductions, strict=True)
    ]


@contextmanager
def in_place(
    model: nn.Module, slots: Sequence[WeightSlot], reductions: Sequence[Reduction], inference: Inference = "dense"
) -> Iterator[None]:
    """The edited model, for as long as the context lasts.

    Args:
        model: the one that the slots are of.
        slots, reductions: one of each for each edited weight.
        inference: `factored` runs whatever can through the factors' own layers, and the rest as matrices.

    Raises:
        SpoiltModelError: on leaving, an original was written to or replaced behind our back.
    """
    pairs = list(zip(slots, reductions, strict=True))
    own = [(slot, r) for slot, r in pairs if inference == "factored" and runs_as_factors(slot, r.factors)]
    layers = {id(slot) for slot, _ in own}
    with (
        edited({slot: r.matrix() for slot, r in pairs if id(slot) not in layers}),
        factored(model, {slot: r.factors for slot, r in own}),
    ):
        yield
