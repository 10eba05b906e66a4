"""`keep_model`: how many numbers the edited weights of a cell may store, and who gets them.

The numbers of a model are those that no edit touches and those that the edits store; a weight that is left as it is
stores all of its own. `keep_model: b` allows at most b times the numbers of the baseline, and a cell that comes
more than `TOLERANCE` below it is no answer to what was asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrbench.errors import ReducerError
from lrbench.models.slots import WeightSlot, count_numbers
from lrbench.reducers.base import Reducer
from lrbench.reducers.ranks import WHOLE, AllocationKind, RankRequest, rounded_up, worthwhile_ranks
from lrbench.reduction.allocation.knapsack import Allocation, Options, equal_shares, least_loss

#: How far below the budget a cell may stay, as a share of it.
TOLERANCE = 0.002


@dataclass(frozen=True)
class Choices:
    """What one weight may be.

    Attributes:
        ranks: of all options but the last, which is the weight as it is.
        options: their sizes, and what they lose.
    """

    ranks: tuple[int, ...]
    options: Options

    def request(self, option: int) -> RankRequest:
        """What to ask of the weight for one of its options."""
        return RankRequest("rank", self.ranks[option]) if option < len(self.ranks) else WHOLE


@dataclass(frozen=True)
class Budget:
    """What the weights of a cell may store.

    Attributes:
        keep_model: as it was asked.
        numbers: of the baseline.
        beside: of them, those of no edited weight.
    """

    keep_model: float
    numbers: int
    beside: int

    @classmethod
    def of(cls, slots: Sequence[WeightSlot], keep_model: float) -> Budget:
        """Of a model whose slots these are."""
        model = slots[0].model
        assert model is not None
        numbers = count_numbers(model)
        return cls(keep_model, numbers, numbers - sum(slot.numbers for slot in slots))

    @property
    def most(self) -> int:
        """Numbers that the edited weights may store; negative where what is left alone is too much already."""
        return math.floor(self.keep_model * self.numbers * (1 + 1e-12)) - self.beside  # see `ranks`: 0.7 * 10

    @property
    def least(self) -> int:
        """Numbers that they must store, so that the cell is what was asked."""
        return math.ceil(self.keep_model * self.numbers * (1 - TOLERANCE)) - self.beside

    def refuse_too_small(self, smallest: int, method: str) -> None:
        """Raises ReducerError where not even `smallest` numbers of the edited weights fit; says what would."""
        if self.most < smallest:
            possible = rounded_up((self.beside + smallest) / self.numbers)
            raise ReducerError(
                f"keep_model {self.keep_model:g} is too small: these weights by {method} store at least {smallest:,} "
                f"numbers, and the rest of the model has {self.beside:,}; the smallest possible keep_model is "
                f"{possible}"
            )

    def refuse_missed(self, stored: int, method: str) -> None:
        """Raises ReducerError where the edited weights store `stored` numbers, which is not what was asked."""
        reached = (self.beside + stored) / self.numbers
        if stored > self.most:
            raise ReducerError(
                f"keep_model {self.keep_model:g}: {method} stores more than its stored_numbers says, and comes to "
                f"{reached:.5g}; mend its stored_numbers"
            )
        if stored < self.least:
            raise ReducerError(
                f"keep_model {self.keep_model:g}: what {method} can store in these weights comes to {reached:.5g} at "
                f"most, more than {TOLERANCE:.1%} below; ask for another, or edit more weights"
            )

    def shared(self, choices: Sequence[Choices], allocation: AllocationKind, method: str) -> Allocation:
        """Which option each weight takes. Raises ReducerError where not even the smallest fit."""
        self.refuse_too_small(sum(int(one.options.sizes[0]) for one in choices), method)
        options = [one.options for one in choices]
        if allocation == "uniform":
            return equal_shares(options, self.most)
        return least_loss(options, self.most, self.least)


def by_size(reducer: Reducer, slots: Sequence[WeightSlot]) -> list[Choices] | None:
    """What each weight may be as far as shapes tell it, without losses; None where they do not tell what is stored.

    Raises:
        ReducerError: the reducer fails on a shape.
    """
    of_shape: dict[tuple[int, int], Choices] = {}
    for slot in slots:
        if slot.about.shape not in of_shape:
            found = worthwhile_ranks(reducer, slot.about)
            if any(numbers is None for _, numbers in found):
                return None
            sizes = np.array([*(numbers for _, numbers in found), slot.numbers], dtype=np.int64)
            options = Options(sizes, np.zeros(len(sizes)))
            of_shape[slot.about.shape] = Choices(tuple(rank for rank, _ in found), options)
    return [of_shape[slot.about.shape] for slot in slots]


def ranks_by_shape(
    reducer: Reducer, label: str, slots: Sequence[WeightSlot], keep_model: float, allocation: AllocationKind
) -> list[int | None]:
    """The rank of each weight as far as shapes tell it: of equal shares; min(out, in) of weights that stay as they are.

    Raises:
        ReducerError: the budget is too small, or the reducer fails on a shape.
    """
    choices, budget = by_size(reducer, slots), Budget.of(slots, keep_model)
    if choices is None:
        budget.refuse_too_small(0, label)
        return [None] * len(slots)
    chosen = budget.shared(choices, "uniform", label)
    if allocation != "uniform":
        return [None] * len(slots)
    ranks: list[int | None] = []
    for slot, one, option in zip(slots, choices, chosen.choice, strict=True):
        ranks.append(one.ranks[option] if option < len(one.ranks) else min(slot.about.shape))
    return ranks


def tied(slots: Sequence[WeightSlot]) -> str | None:
    """Why a model with these weights reduced has no size to be shared out; None where it has."""
    for slot in slots:
        if slot.users > 1:
            return (
                f"{slot.name} is tied to another weight, so that it has no numbers of its own to count in keep_model; "
                "leave it out"
            )
    return None
