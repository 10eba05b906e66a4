"""A budget of numbers shared out among weights: which of its options each takes, so that together they fit.

An option is a size (numbers stored) and what is lost with it. The options of a weight are given in ascending order of
size, and the last one is the weight itself, which loses nothing: no rank that stores as much is an option.

`least_loss` minimizes the sum of the losses. For a price of a number, each weight would take the option of least
`loss + price · size`; as the price falls these options run along the lower convex hull of each weight's curve
(Lagrange's relaxation; Everett, Operations Research 11, 1963). What is left of the budget where the next step does not
fit goes to smaller steps, then options are exchanged between pairs of weights. The relaxation with that step taken in
part bounds the optimum from below, so the sum found is at most one step's gain above the least there is.

`equal_shares` lets all weights keep the same share of their numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_EXCHANGED = 128  # weights between which options are exchanged; of more, one step's gain is a small part of the sum
_ROUNDS = 200
_TRIED = 64  # smaller options of each weight that are tried in a round


@dataclass(frozen=True)
class Options:
    """What one weight may be.

    Attributes:
        sizes: (options,) numbers stored, strictly ascending; the last is the weight itself.
        losses: (options,) what is lost; 0 at last.
    """

    sizes: NDArray[np.int64]
    losses: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.sizes) or len(self.sizes) != len(self.losses):
            raise ValueError(f"{len(self.sizes)} sizes and {len(self.losses)} losses")
        if bool((np.diff(self.sizes) <= 0).any()):
            raise ValueError("sizes must ascend")
        if not bool(np.isfinite(self.losses).all()):
            raise ValueError("losses must be finite")

    @property
    def whole(self) -> int:
        """Numbers of the weight."""
        return int(self.sizes[-1])


@dataclass(frozen=True)
class Allocation:
    """What each weight takes.

    Attributes:
        choice: the index of each weight's option.
        size: of all together.
        loss: the sum.
        bound: no choice within the budget loses less.
        step: what the relaxation's last step would gain; where nothing had to be taken to fill the budget up, `loss` is
            at most `bound + step`.
    """

    choice: tuple[int, ...]
    size: int
    loss: float
    bound: float = 0.0
    step: float = 0.0


def least_loss(options: Sequence[Options], budget: int, at_least: int = 0) -> Allocation:
    """The options of least summed loss that fit a budget.

    Args:
        options: of each weight.
        budget: numbers that they may store together.
        at_least: numbers that they are to store together, where options allow it, even where that gains nothing.

    Raises:
        ValueError: not even the smallest options fit.
    """
    state = _State(options, [0] * len(options), budget)
    bound, step, order = state.along_the_hulls()
    state.fill()
    state.exchange(order[:_EXCHANGED])
    state.fill(at_least)
    return Allocation(tuple(state.choice), budget - state.spare, state.loss, min(bound, state.loss), step)


def equal_shares(options: Sequence[Options], budget: int) -> Allocation:
    """The same share of its numbers for each weight, the largest that fits; then the rest.

    Each weight takes its largest option within the share, and at least its smallest. What is left goes, an option at a
    time, to the weight that keeps the smallest share with it, as long as any fits.

    Args:
        options: of each weight.
        budget: numbers that they may store together.

    Raises:
        ValueError: not even the smallest options fit.
    """

    def within(share: float) -> list[int]:
        sizes = [int(np.searchsorted(one.sizes, share * one.whole, side="right")) for one in options]
        return [max(0, found - 1) for found in sizes]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        size = sum(int(one.sizes[place]) for one, place in zip(options, within(middle), strict=True))
        low, high = (middle, high) if size <= budget else (low, middle)
    state = _State(options, within(low), budget)
    waiting = [state.next_share(place) for place in range(len(options))]
    queue = [entry for entry in waiting if entry is not None]
    heapq.heapify(queue)
    while queue:
        _, place = heapq.heappop(queue)
        if state.cost(place, state.choice[place] + 1) > state.spare:
            continue
        state.take(place, state.choice[place] + 1)
        entry = state.next_share(place)
        if entry is not None:
            heapq.heappush(queue, entry)
    return Allocation(tuple(state.choice), budget - state.spare, state.loss)


def lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Indices of the points on the lower convex hull, from the first to the last; x ascends strictly."""
    hull: list[int] = []
    for point in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[point] - x[a]) < (y[point] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(point)
    return hull


def convex(x: NDArray[np.float64], known: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At x, the largest convex curve that is nowhere above the known points; x lies within them.

    Args:
        x: where.
        known: strictly ascending.
        values: there.
    """
    hull = lower_hull(known, values)
    return np.interp(x, known[hull], values[hull])


class _State:
    """A choice on its way."""

    def __init__(self, options: Sequence[Options], choice: list[int], budget: int) -> None:
        self.options, self.choice = options, choice
        self.spare = budget - sum(int(one.sizes[place]) for one, place in zip(options, choice, strict=True))
        if self.spare < 0:
            raise ValueError(f"the smallest options store {budget - self.spare} numbers, the budget is {budget}")

    @property
    def loss(self) -> float:
        return float(sum(one.losses[place] for one, place in zip(self.options, self.choice, strict=True)))

    def cost(self, place: int, option: int) -> int:
        sizes = self.options[place].sizes
        return int(sizes[option] - sizes[self.choice[place]])

    def take(self, place: int, option: int) -> None:
        self.spare -= self.cost(place, option)
        self.choice[place] = option

    def next_share(self, place: int) -> tuple[float, int] | None:
        sizes, option = self.options[place].sizes, self.choice[place] + 1
        return (float(sizes[option]) / float(sizes[-1]), place) if option < len(sizes) else None

    def along_the_hulls(self) -> tuple[float, float, list[int]]:
        """Goes down the hulls as far as the budget goes.

        Returns:
            The relaxation's bound; the gain of the first step that does not fit; the weights, those first whose next
            step is worth most.
        """
        steps = []
        for place, one in enumerate(self.options):
            hull = lower_hull(one.sizes.astype(np.float64), one.losses)
            for before, after in pairwise(hull):
                gain = float(one.losses[before] - one.losses[after])
                if gain <= 0:
                    break
                steps.append((-gain / float(one.sizes[after] - one.sizes[before]), place, after, gain))
        steps.sort()
        bound, step = None, 0.0
        stopped: dict[int, None] = {}
        for rate, place, after, gain in steps:
            if place in stopped:
                continue
            if self.cost(place, after) <= self.spare:
                self.take(place, after)
                continue
            if bound is None:
                bound, step = self.loss + rate * self.spare, gain
            stopped[place] = None
        finished = [place for place in range(len(self.options)) if place not in stopped]
        return (self.loss if bound is None else bound), step, [*stopped, *finished]

    def fill(self, at_least: int | None = None) -> None:
        """Takes what gains most for its size, as long as anything fits that gains.

        Args:
            at_least: goes on, with what loses least for its size, until so many numbers are stored.
        """
        total = sum(int(one.sizes[place]) for one, place in zip(self.options, self.choice, strict=True))
        best = {place: self._step(place) for place in range(len(self.options))}
        while best:
            for place, (_, option) in list(best.items()):
                if option < 0 or self.cost(place, option) > self.spare:
                    best[place] = self._step(place)
                    if best[place][1] < 0:
                        del best[place]
            if not best:
                return
            place = max(best, key=lambda one: (best[one][0], -one))
            rate, option = best[place]
            if rate <= 0 and (at_least is None or total >= at_least):
                return
            total += self.cost(place, option)
            self.take(place, option)
            best[place] = self._step(place)

    def _step(self, place: int) -> tuple[float, int]:
        """What gains most for its size among a weight's larger options that fit; -1 for none."""
        one, now = self.options[place], self.choice[place]
        end = int(np.searchsorted(one.sizes, one.sizes[now] + self.spare, side="right"))
        if end <= now + 1:
            return 0.0, -1
        rates = (one.losses[now] - one.losses[now + 1 : end]) / (one.sizes[now + 1 : end] - one.sizes[now])
        found = int(rates.argmax())
        return float(rates[found]), now + 1 + found

    def exchange(self, places: Sequence[int]) -> None:
        """Lets one weight take a smaller option so that another can take a larger one, while that gains."""
        best = {place: np.minimum.accumulate(self.options[place].losses) for place in places}
        for _ in range(_ROUNDS):
            least, found = 1e-12 * self.loss, None
            for down in places:
                one, now = self.options[down], self.choice[down]
                smaller = np.unique(np.linspace(0, now, min(now, _TRIED), endpoint=False).astype(np.int64))
                if not len(smaller):
                    continue
                freed = self.spare + one.sizes[now] - one.sizes[smaller]
                lost = one.losses[smaller] - one.losses[now]
                for up in places:
                    other, at = self.options[up], self.choice[up]
                    if up == down or at + 1 >= len(other.sizes):
                        continue
                    within = np.searchsorted(other.sizes, other.sizes[at] + freed, side="right") - 1
                    gains = other.losses[at] - best[up][within] - lost
                    place = int(gains.argmax())
                    if gains[place] > least:
                        least, found = float(gains[place]), (down, int(smaller[place]), up, int(within[place]))
            if found is None:
                return
            down, option, up, limit = found
            self.take(down, option)
            self.take(up, int(self.options[up].losses[: limit + 1].argmin()))
