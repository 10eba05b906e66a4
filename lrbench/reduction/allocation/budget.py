"""`keep_model`: the parameters that the edited weights of a cell may store, and their allocation.

An edited model stores its unedited parameters and those of the edits; a weight left unreduced stores all of its own.
`keep_model: b` allows at most b times the parameters of the baseline. A cell more than `TOLERANCE` below fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrbench.errors import ReducerError
from lrbench.models.slots import WeightSlot, count_parameters
from lrbench.reducers.base import Reducer
from lrbench.reducers.ranks import WHOLE, AllocationKind, RankRequest, rounded_up, worthwhile_ranks
from lrbench.reduction.allocation.knapsack import Allocation, Options, equal_fractions, least_loss

#: How far below the budget a cell may stay, as a fraction of it.
TOLERANCE = 0.002


@dataclass(frozen=True)
class RankOptions:
    """The ranks that one weight may take.

    Attributes:
        ranks: of all options but the last, which is the unreduced weight.
        options: sizes and losses.
        measured: the losses that were measured, by rank; the others are interpolated. None if all are exact.
        dropped: the loss without the weight, for predicted losses.
    """

    ranks: tuple[int, ...]
    options: Options
    measured: Mapping[int, float] | None = None
    dropped: float = 0.0

    def request(self, option: int) -> RankRequest:
        """The rank request of one option."""
        return RankRequest("rank", self.ranks[option]) if option < len(self.ranks) else WHOLE


@dataclass(frozen=True)
class Budget:
    """The parameter budget of a cell's weights.

    Attributes:
        keep_model: as requested.
        parameters: of the baseline.
        unedited: the baseline's parameters outside the edited weights.
    """

    keep_model: float
    parameters: int
    unedited: int

    @classmethod
    def of(cls, slots: Sequence[WeightSlot], keep_model: float) -> Budget:
        """The budget of a cell that edits `slots`."""
        model = slots[0].model
        assert model is not None
        parameters = count_parameters(model)
        return cls(keep_model, parameters, parameters - sum(slot.size for slot in slots))

    @property
    def max_stored(self) -> int:
        """Parameters that the edited weights may store; negative if the unedited ones exceed the budget."""
        return math.floor(self.keep_model * self.parameters * (1 + 1e-12)) - self.unedited  # see `ranks`: 0.7 * 10

    @property
    def min_stored(self) -> int:
        """Parameters that the edited weights must store to be within `TOLERANCE` of the budget."""
        return math.ceil(self.keep_model * self.parameters * (1 - TOLERANCE)) - self.unedited

    def refuse_too_small(self, smallest: int, method: str) -> None:
        """Raises ReducerError if the smallest possible size exceeds the budget; names the smallest keep_model."""
        if self.max_stored < smallest:
            possible = rounded_up((self.unedited + smallest) / self.parameters)
            raise ReducerError(
                f"keep_model {self.keep_model:g} is too small: these weights by {method} store at least {smallest:,} "
                f"parameters, and the rest of the model has {self.unedited:,}; the smallest possible keep_model is "
                f"{possible}"
            )

    def refuse_missed(self, stored: int, method: str) -> None:
        """Raises ReducerError if `stored` parameters of the edited weights are above or too far below the budget."""
        reached = (self.unedited + stored) / self.parameters
        if stored > self.max_stored:
            raise ReducerError(
                f"keep_model {self.keep_model:g}: {method} stores more than its stored_numbers says and reaches "
                f"{reached:.5g}; correct its stored_numbers"
            )
        if stored < self.min_stored:
            raise ReducerError(
                f"keep_model {self.keep_model:g}: {method} reaches at most {reached:.5g} on these weights, more than "
                f"{TOLERANCE:.1%} below; request another keep_model, or edit more weights"
            )

    def allocate(self, rank_options: Sequence[RankOptions], kind: AllocationKind, method: str) -> Allocation:
        """Chooses an option for each weight. Raises ReducerError if not even the smallest options fit."""
        options = [weight.options for weight in rank_options]
        self.refuse_too_small(sum(int(weight.sizes[0]) for weight in options), method)
        if kind == "uniform":
            return equal_fractions(options, self.max_stored)
        return least_loss(options, self.max_stored, self.min_stored)


def options_by_shape(reducer: Reducer, slots: Sequence[WeightSlot]) -> list[RankOptions] | None:
    """The rank options of each weight, without losses; None if shapes do not determine the stored sizes.

    Raises:
        ReducerError: the reducer fails on a shape.
    """
    of_shape: dict[tuple[int, int], RankOptions] = {}
    for slot in slots:
        if slot.about.shape not in of_shape:
            ranks = worthwhile_ranks(reducer, slot.about)
            if any(size is None for _, size in ranks):
                return None
            sizes = np.array([*(size for _, size in ranks), slot.size], dtype=np.int64)
            options = Options(sizes, np.zeros(len(sizes)))
            of_shape[slot.about.shape] = RankOptions(tuple(rank for rank, _ in ranks), options)
    return [of_shape[slot.about.shape] for slot in slots]


def ranks_by_shape(
    reducer: Reducer, label: str, slots: Sequence[WeightSlot], keep_model: float, allocation: AllocationKind
) -> list[int | None]:
    """The rank of each weight under a uniform allocation, min(out, in) if unreduced; None if shapes do not tell it.

    Raises:
        ReducerError: the budget is too small, or the reducer fails on a shape.
    """
    rank_options, budget = options_by_shape(reducer, slots), Budget.of(slots, keep_model)
    if rank_options is None:
        budget.refuse_too_small(0, label)
        return [None] * len(slots)
    chosen = budget.allocate(rank_options, "uniform", label)
    if allocation != "uniform":
        return [None] * len(slots)
    ranks: list[int | None] = []
    for slot, weight, option in zip(slots, rank_options, chosen.choice, strict=True):
        ranks.append(weight.ranks[option] if option < len(weight.ranks) else min(slot.about.shape))
    return ranks


def tied(slots: Sequence[WeightSlot]) -> str | None:
    """Why `keep_model` cannot count these weights, if one of them is tied; else None."""
    for slot in slots:
        if slot.users > 1:
            return f"{slot.name} is tied to another weight, so keep_model cannot count its parameters; leave it out"
    return None
