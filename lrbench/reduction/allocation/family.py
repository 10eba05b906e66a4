"""A family of allocations between equal fractions and the least predicted loss.

A predicted loss is an estimate of second order, which may not hold: for large changes of a weight, or for the changes
of many weights together. So the allocation `loss` also considers others that trust it less, and tries each on held-out
text:

    equal fractions    all weights keep the same fraction
    least loss         the least sum of predicted losses
    floor f            the least sum in which no weight stores less than f times what it stores with equal fractions
    tempered           the least sum of losses, each divided by the square root of the loss without the weight
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrbench.errors import ReducerError
from lrbench.reduction.allocation.budget import Budget, RankOptions
from lrbench.reduction.allocation.knapsack import Allocation, Options, least_loss

EQUAL, LEAST = "equal fractions", "least loss"
#: Fractions of a weight's equal size that it stores at least.
FLOORS = (0.3, 0.6, 0.8)


def least_predicted_loss(rank_options: Sequence[RankOptions], budget: Budget) -> Allocation:
    """The member `least loss`. Raises ReducerError if not even the smallest options fit."""
    return budget.allocate(rank_options, "loss", "these options")


def candidates(rank_options: Sequence[RankOptions], budget: Budget, method: str) -> dict[str, Allocation]:
    """The distinct allocations of the family that use the budget, by name; equal fractions first.

    Raises:
        ReducerError: no allocation satisfies the budget.
    """
    options = [weight.options for weight in rank_options]
    equal = budget.allocate(rank_options, "uniform", method)
    family = {EQUAL: equal, LEAST: least_loss(options, budget.max_stored, budget.min_stored)}
    for floor in FLOORS:
        starts = [
            int(np.searchsorted(weight.sizes, floor * int(weight.sizes[place])))
            for weight, place in zip(options, equal.choice, strict=True)
        ]
        cut = [
            Options(weight.sizes[start:], weight.losses[start:]) for weight, start in zip(options, starts, strict=True)
        ]
        chosen = least_loss(cut, budget.max_stored, budget.min_stored)
        choice = tuple(start + place for start, place in zip(starts, chosen.choice, strict=True))
        family[f"floor {floor:g}"] = Allocation(choice, chosen.size, chosen.loss)
    tempered = [
        Options(weight.options.sizes, weight.options.losses / (weight.dropped**0.5 or 1.0)) for weight in rank_options
    ]
    family["tempered"] = least_loss(tempered, budget.max_stored, budget.min_stored)
    return _distinct(family, budget, method)


def _distinct(family: dict[str, Allocation], budget: Budget, method: str) -> dict[str, Allocation]:
    """The allocations within the budget's tolerance, each choice once. Raises ReducerError if there are none."""
    kept: dict[tuple[int, ...], str] = {}
    missed = None
    for name, allocation in family.items():
        try:
            budget.refuse_missed(allocation.size, method)
        except ReducerError as error:
            missed = error
        else:
            kept.setdefault(allocation.choice, name)
    if not kept and missed is not None:
        raise missed
    return {name: family[name] for name in kept.values()}
