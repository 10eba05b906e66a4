"""Allocates a parameter budget among weights: chooses one option per weight so that all of them fit.

An option is a size (stored parameters) and a loss. The options of a weight ascend in size; the last one is the
unreduced weight, with loss 0.

`least_loss` minimizes the sum of the losses. For a price per parameter, each weight takes the option of least
`loss + price · size`; as the price falls these options run along the lower convex hull of each weight's curve
(Lagrangian relaxation; Everett, Operations Research 11, 1963). Once the next step does not fit, the rest of the budget
goes to smaller steps, then options are exchanged between pairs of weights. The relaxation with the last step taken
partially bounds the optimum from below, so the result is at most that step's gain above the optimum.

`equal_fractions` lets all weights keep the same fraction of their parameters.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_EXCHANGED = 128  # weights between which options are exchanged; with more, one step's gain is a small part of the sum
_ROUNDS = 200
_TRIED = 64  # smaller options of each weight that are tried per round


@dataclass(frozen=True)
class Options:
    """The options of one weight.

    Attributes:
        sizes: (options,) stored parameters, strictly ascending; the last is the unreduced weight's.
        losses: (options,); the last is 0.
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
        """Parameters of the unreduced weight."""
        return int(self.sizes[-1])


@dataclass(frozen=True)
class Allocation:
    """The chosen option of each weight.

    Attributes:
        choice: the index of each weight's option.
        size: total stored parameters.
        loss: total loss.
        bound: a lower bound on the loss of every choice within the budget.
        step: the gain of the relaxation's last step; `loss` is at most `bound + step`, unless options without gain were
            taken to reach `at_least`.
    """

    choice: tuple[int, ...]
    size: int
    loss: float
    bound: float = 0.0
    step: float = 0.0


def least_loss(options: Sequence[Options], budget: int, at_least: int = 0) -> Allocation:
    """Chooses the options of least total loss within a budget.

    Args:
        options: of each weight.
        budget: the maximum total of stored parameters.
        at_least: the total to reach if options allow it, even without gain.

    Raises:
        ValueError: not even the smallest options fit.
    """
    state = _State(options, [0] * len(options), budget)
    bound, step, order = state.along_the_hulls()
    state.fill()
    state.exchange(order[:_EXCHANGED])
    state.fill(at_least)
    return Allocation(tuple(state.choice), budget - state.spare, state.loss, min(bound, state.loss), step)


def equal_fractions(options: Sequence[Options], budget: int) -> Allocation:
    """Lets each weight keep the same fraction of its parameters, the largest that fits the budget.

    Each weight takes its largest option within the fraction, and at least its smallest. The rest of the budget goes,
    one option at a time, to the weight whose next option keeps the smallest fraction, as long as one fits.

    Args:
        options: of each weight.
        budget: the maximum total of stored parameters.

    Raises:
        ValueError: not even the smallest options fit.
    """

    def within(fraction: float) -> list[int]:
        counts = [int(np.searchsorted(weight.sizes, fraction * weight.whole, side="right")) for weight in options]
        return [max(0, count - 1) for count in counts]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        size = sum(int(weight.sizes[place]) for weight, place in zip(options, within(middle), strict=True))
        low, high = (middle, high) if size <= budget else (low, middle)
    state = _State(options, within(low), budget)
    waiting = [state.next_fraction(place) for place in range(len(options))]
    queue = [entry for entry in waiting if entry is not None]
    heapq.heapify(queue)
    while queue:
        _, place = heapq.heappop(queue)
        if state.cost(place, state.choice[place] + 1) > state.spare:
            continue
        state.take(place, state.choice[place] + 1)
        entry = state.next_fraction(place)
        if entry is not None:
            heapq.heappush(queue, entry)
    return Allocation(tuple(state.choice), budget - state.spare, state.loss)


def lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Indices of the points on the lower convex hull, in order; x ascends strictly."""
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
    """The largest convex curve nowhere above the points (known, values), evaluated at x within their range.

    Args:
        known: strictly ascending.
    """
    hull = lower_hull(known, values)
    return np.interp(x, known[hull], values[hull])


class _State:
    """A choice that is being improved within the budget."""

    def __init__(self, options: Sequence[Options], choice: list[int], budget: int) -> None:
        self.options, self.choice = options, choice
        self.spare = budget - sum(int(weight.sizes[place]) for weight, place in zip(options, choice, strict=True))
        if self.spare < 0:
            raise ValueError(f"the smallest options store {budget - self.spare} parameters, the budget is {budget}")

    @property
    def loss(self) -> float:
        return float(sum(weight.losses[place] for weight, place in zip(self.options, self.choice, strict=True)))

    def cost(self, place: int, option: int) -> int:
        sizes = self.options[place].sizes
        return int(sizes[option] - sizes[self.choice[place]])

    def take(self, place: int, option: int) -> None:
        self.spare -= self.cost(place, option)
        self.choice[place] = option

    def next_fraction(self, place: int) -> tuple[float, int] | None:
        sizes, option = self.options[place].sizes, self.choice[place] + 1
        return (float(sizes[option]) / float(sizes[-1]), place) if option < len(sizes) else None

    def along_the_hulls(self) -> tuple[float, float, list[int]]:
        """Takes steps along the convex hulls, the most profitable first, until none fits.

        Returns:
            The relaxation's bound; the gain of the first step that does not fit; the weights, ordered by the value of
            their next step, largest first.
        """
        steps = []
        for place, weight in enumerate(self.options):
            hull = lower_hull(weight.sizes.astype(np.float64), weight.losses)
            for before, after in pairwise(hull):
                gain = float(weight.losses[before] - weight.losses[after])
                if gain <= 0:
                    break
                steps.append((-gain / float(weight.sizes[after] - weight.sizes[before]), place, after, gain))
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
        """Takes the option of largest gain per parameter, as long as one fits and gains.

        Args:
            at_least: continue with the options of least loss per parameter until this many parameters are stored.
        """
        total = sum(int(weight.sizes[place]) for weight, place in zip(self.options, self.choice, strict=True))
        best = {place: self._step(place) for place in range(len(self.options))}
        while best:
            for place, (_, option) in list(best.items()):
                if option < 0 or self.cost(place, option) > self.spare:
                    best[place] = self._step(place)
                    if best[place][1] < 0:
                        del best[place]
            if not best:
                return
            place = max(best, key=lambda weight: (best[weight][0], -weight))
            rate, option = best[place]
            if rate <= 0 and (at_least is None or total >= at_least):
                return
            total += self.cost(place, option)
            self.take(place, option)
            best[place] = self._step(place)

    def _step(self, place: int) -> tuple[float, int]:
        """(gain per parameter, option) of a weight's most profitable larger option that fits; option -1 for none."""
        weight, now = self.options[place], self.choice[place]
        end = int(np.searchsorted(weight.sizes, weight.sizes[now] + self.spare, side="right"))
        if end <= now + 1:
            return 0.0, -1
        rates = (weight.losses[now] - weight.losses[now + 1 : end]) / (weight.sizes[now + 1 : end] - weight.sizes[now])
        largest = int(rates.argmax())
        return float(rates[largest]), now + 1 + largest

    def exchange(self, places: Sequence[int]) -> None:
        """Gives one weight a smaller option so that another can take a larger one, as long as that gains."""
        best = {place: np.minimum.accumulate(self.options[place].losses) for place in places}
        for _ in range(_ROUNDS):
            least, exchange = 1e-12 * self.loss, None
            for down in places:
                weight, now = self.options[down], self.choice[down]
                smaller = np.unique(np.linspace(0, now, min(now, _TRIED), endpoint=False).astype(np.int64))
                if not len(smaller):
                    continue
                freed = self.spare + weight.sizes[now] - weight.sizes[smaller]
                lost = weight.losses[smaller] - weight.losses[now]
                for up in places:
                    other, at = self.options[up], self.choice[up]
                    if up == down or at + 1 >= len(other.sizes):
                        continue
                    within = np.searchsorted(other.sizes, other.sizes[at] + freed, side="right") - 1
                    gains = other.losses[at] - best[up][within] - lost
                    place = int(gains.argmax())
                    if gains[place] > least:
                        least, exchange = float(gains[place]), (down, int(smaller[place]), up, int(within[place]))
            if exchange is None:
                return
            down, option, up, limit = exchange
            self.take(down, option)
            self.take(up, int(self.options[up].losses[: limit + 1].argmin()))
