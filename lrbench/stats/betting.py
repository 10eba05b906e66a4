"""Which of several candidates cannot be the best: paired differences bet on, at any time, without replacement.

Each candidate has a value in [0, 1] on each of N units (documents, or groups of them). Units are drawn in random order,
without replacement. For each pair (i, k) a gambler bets against "i is better than k by at least the margin", that is
against H: mean of d ≥ margin, with d = x_i - x_k. With X = (1 + d)/2 in [0, 1], m = (1 + margin)/2, and

    m_t = (N m - sum of the t - 1 values before) / (N - t + 1),

which under H at most is what the t-th value is on average given those before, the capital

    K_t = mean over f of  prod_{s <= t} (1 - f (X_s - m_s) / (1 - m_s)),    f in (0, 1),

is a nonnegative supermartingale that starts at 1, so that P(some K_t >= 1/α) <= α (Ville). Hence i may be given up for
k, whenever one looks, once the capital has reached 1/α: the least margin that is rejected at a time is the upper end of
a confidence sequence for the difference. This is one side of the capital process of I. Waudby-Smith and A. Ramdas,
Estimating means of bounded random variables by betting, JRSS B 86 (2024), in its form for sampling without replacement,
with a mixture over constant fractions f of the largest bet (their diversified Kelly bets) where they also give bets
plugged in from the variance so far: the mixture needs none, and does well on differences that are nearly all zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Of the largest bet that cannot lose everything: small ones for noisy differences, large ones for one-sided ones.
FRACTIONS = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)


class Capital:
    """The gamblers' capital, for any number of hypotheses "the mean is at least m" on values in [0, 1].

    Args:
        shape: of the hypotheses.
        mean: m, for each or for all.
        population: N; values are drawn from as many without replacement.
    """

    def __init__(self, shape: tuple[int, ...], mean: float | Floats, population: int) -> None:
        self._left = population
        self._rest = np.broadcast_to(np.asarray(mean, dtype=float) * population, shape).copy()  # what is left of N m
        self._parts = [np.ones(shape) for _ in FRACTIONS]

    @property
    def now(self) -> Floats:
        """The capital on each, of their shape; infinite where what was drawn contradicts the hypothesis."""
        contradicted = self._rest > self._left + 1e-9  # more than all values that are left can be
        return np.where(contradicted, np.inf, sum(self._parts) / len(FRACTIONS))

    def bet(self, values: Floats) -> None:
        """Bets on the next value of each, then sees it.

        Args:
            values: in [0, 1], of the shape of the hypotheses.
        """
        if self._left < 1:
            raise ValueError("more values than the population has")
        mean = np.minimum(self._rest / self._left, 1 - 1e-12)  # above 1 there is nothing left to win
        with np.errstate(over="ignore"):
            loss = np.where(mean > 0, (values - mean) / (1 - mean), 0.0)  # at 0 the hypothesis holds: no bet
            for fraction, part in zip(FRACTIONS, self._parts, strict=True):
                part *= 1 - fraction * loss
        self._rest -= values
        self._left -= 1

    def keep(self, kept: NDArray[np.intp]) -> None:
        """Goes on with a square of the hypotheses: these rows and columns."""
        square = np.ix_(kept, kept)
        self._rest = self._rest[square]
        self._parts = [part[square] for part in self._parts]


class Duels:
    """All candidates against each other, until it is known of each that it is none of the best, or nothing is left.

    Whichever candidate b is best: for none of the others k is "b is better than k by at least the margin" rejected,
    but with a probability of α/(K - 1) each, α together. So, with probability 1 - α, each candidate that was given up
    for k and is nonetheless the best is better than k by less than the margin. A candidate is only given up while every
    other one given up before keeps some k among those that are still in, so that the best of the latter, scored in
    full, is worse than the best of all by less than the margin.

    Args:
        candidates: K.
        population: units to be drawn from.
        margin: of a mean over all units.
        alpha: the probability of being wrong, over all candidates and times.
        bound: the largest absolute value that a unit has; values are in [0, bound].

    Attributes:
        alive: candidates that are still in, ascending.
        given_up: the others, but for those that dropped out.
        drawn: units so far.
    """

    def __init__(self, candidates: int, population: int, margin: float, alpha: float, bound: float = 1.0) -> None:
        self.alive = np.arange(candidates)
        self.given_up: list[int] = []
        self.drawn = 0
        self._bound = bound
        self._threshold = max(1, candidates - 1) / alpha
        self._capital = Capital((candidates, candidates), (1 + margin / bound) / 2, population)
        self._sums = np.zeros(candidates)
        self._no_better = np.zeros((candidates, candidates), dtype=bool)  # [i, k]: i is less than a margin above k

    def draw(self, values: Floats) -> None:
        """Sees further units.

        Args:
            values: (units, alive), in the order of `alive`.
        """
        for unit in values / self._bound:
            self._capital.bet((1 + unit[:, None] - unit[None, :]) / 2)
        self._no_better[np.ix_(self.alive, self.alive)] |= self._capital.now >= self._threshold
        self._sums[self.alive] += values.sum(0)
        self.drawn += len(values)

    def give_up(self) -> list[int]:
        """Gives up what can be given up now, the worst so far first; returns it."""
        staying, found = set(self.alive.tolist()), []
        for one in sorted(staying, key=lambda i: (self._sums[i], -i))[:-1]:  # never the best so far
            others = staying - {one}
            if self._covered(one, others) and all(self._covered(other, others) for other in self.given_up):
                staying = others
                self.given_up.append(one)
                found.append(one)
        self._keep(staying)
        return found

    def drop(self, one: int) -> list[int]:
        """Takes out a candidate that cannot be had; returns those given up for it alone, now in question again."""
        if one in self.given_up:
            self.given_up.remove(one)
            return []
        staying = set(self.alive.tolist()) - {one}
        self._keep(staying)
        again = [other for other in self.given_up if not self._covered(other, staying)]
        self.given_up = [other for other in self.given_up if other not in again]
        return again

    def _covered(self, one: int, by: set[int]) -> bool:
        return bool(self._no_better[one, sorted(by)].any())

    def _keep(self, staying: set[int]) -> None:
        kept = np.flatnonzero(np.isin(self.alive, sorted(staying)))
        self.alive = self.alive[kept]
        self._capital.keep(kept)
