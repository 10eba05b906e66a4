"""Applies reductions to a model, as dense matrices or as layers of factors."""

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


def record_inference(
    slots: Sequence[WeightSlot], reductions: Sequence[Reduction], inference: Inference
) -> list[Reduction]:
    """Records in each edit how it runs: factors that cannot replace a whole layer run as a dense matrix."""
    if inference == "dense":
        return list(reductions)
    return [
        dataclasses.replace(
            reduction,
            edit=reduction.edit.model_copy(
                update={"evaluated_as": "factors" if runs_as_factors(slot, reduction.factors) else "dense"}
            ),
        )
        for slot, reduction in zip(slots, reductions, strict=True)
    ]


@contextmanager
def in_place(
    model: nn.Module, slots: Sequence[WeightSlot], reductions: Sequence[Reduction], inference: Inference = "dense"
) -> Iterator[None]:
    """Applies the reductions to the model for as long as the context lasts.

    Args:
        slots, reductions: one of each per edited weight; the slots belong to `model`.
        inference: `factored` runs factors as layers of their own where possible; all others run as dense matrices.

    Raises:
        SpoiltModelError: on exit, if an original weight was written to or replaced in the meantime.
    """
    pairs = list(zip(slots, reductions, strict=True))
    factored_pairs = [(slot, r) for slot, r in pairs if inference == "factored" and runs_as_factors(slot, r.factors)]
    layers = {id(slot) for slot, _ in factored_pairs}
    with (
        edited({slot: r.matrix() for slot, r in pairs if id(slot) not in layers}),
        factored(model, {slot: r.factors for slot, r in factored_pairs}),
    ):
        yield
