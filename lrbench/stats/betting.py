"""Eliminates candidates that are not the best, at any time, by betting on paired differences drawn without replacement.

Each candidate has a value in [0, 1] on each of N units (documents, or groups of them). Units are drawn in random order,
without replacement. For each pair (i, k) a gambler bets against "i is better than k by at least the margin", that is
against H: mean of d ≥ margin, with d = x_i - x_k. With X = (1 + d)/2 in [0, 1], m = (1 + margin)/2, and

    m_t = (N m - sum of the t - 1 values before) / (N - t + 1),

which under H is an upper bound of the t-th value's mean given the values before it, the capital

    K_t = mean over f of  prod_{s <= t} (1 - f (X_s - m_s) / (1 - m_s)),    f in (0, 1),

is a nonnegative supermartingale that starts at 1, so that P(some K_t >= 1/α) <= α (Ville). Hence i may be eliminated in
favour of k at any time once the capital has reached 1/α: the smallest margin rejected so far is the upper end of a
confidence sequence for the difference. This is one side of the capital process of I. Waudby-Smith and A. Ramdas,
Estimating means of bounded random variables by betting, JRSS B 86 (2024), in its form for sampling without replacement.
Their diversified Kelly bets, a mixture over constant fractions f of the largest bet, need no variance estimate and do
well on differences that are nearly all zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Fractions of the largest bet that cannot lose everything: small for noisy differences, large for one-sided ones.
FRACTIONS = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)


class Capital:
    """The gamblers' capital, for any number of hypotheses "the mean is at least m" on values in [0, 1].

    Args:
        shape: the shape of the array of hypotheses.
        mean: m, a number or an array that broadcasts to `shape`.
        population: N, the number of values that are drawn from, without replacement.
    """

    def __init__(self, shape: tuple[int, ...], mean: float | Floats, population: int) -> None:
        self._left = population
        self._rest = np.broadcast_to(np.asarray(mean, dtype=float) * population, shape).copy()  # N m − values drawn
        self._parts = [np.ones(shape) for _ in FRACTIONS]

    @property
    def now(self) -> Floats:
        """The capital against each hypothesis, of `shape`; infinite if the drawn values contradict the hypothesis."""
        contradicted = self._rest > self._left + 1e-9  # even if all remaining values were 1
        return np.where(contradicted, np.inf, sum(self._parts) / len(FRACTIONS))

    def bet(self, values: Floats) -> None:
        """Updates the capital with the next value of each hypothesis.

        Args:
            values: in [0, 1], of `shape`.

        Raises:
            ValueError: all values of the population have been drawn.
        """
        if self._left < 1:
            raise ValueError("more values than the population has")
        mean = np.minimum(self._rest / self._left, 1 - 1e-12)  # avoids a division by zero
        with np.errstate(over="ignore"):
            loss = np.where(mean > 0, (values - mean) / (1 - mean), 0.0)  # at mean 0 the hypothesis holds: no bet
            for fraction, part in zip(FRACTIONS, self._parts, strict=True):
                part *= 1 - fraction * loss
        self._rest -= values
        self._left -= 1

    def keep(self, kept: NDArray[np.intp]) -> None:
        """Restricts a square array of hypotheses to the rows and columns `kept`."""
        square = np.ix_(kept, kept)
        self._rest = self._rest[square]
        self._parts = [part[square] for part in self._parts]


class PairwiseElimination:
    """Compares K candidates pairwise on drawn units and eliminates those that are not better than a remaining one.

    Let b be the best candidate. For each other k, the hypothesis "b is better than k by at least the margin" is wrongly
    rejected with probability at most α/(K - 1), so any of them with probability at most α. A candidate is eliminated
    only if, for it and for each one eliminated before, this hypothesis is rejected against some k that remains. Hence,
    with probability 1 - α, the best remaining candidate is worse than b by less than the margin.

    Args:
        candidates: K.
        population: the number of units that can be drawn.
        margin: the tolerated loss in the mean over all units.
        alpha: the probability of an error, over all candidates and times.
        bound: the largest value of a unit; values are in [0, bound].

    Attributes:
        remaining: candidates not eliminated or removed, ascending.
        eliminated: candidates in the order of their elimination.
        drawn: the number of units drawn so far.
    """

    def __init__(self, candidates: int, population: int, margin: float, alpha: float, bound: float = 1.0) -> None:
        self.remaining = np.arange(candidates)
        self.eliminated: list[int] = []
        self.drawn = 0
        self._bound = bound
        self._threshold = max(1, candidates - 1) / alpha
        self._capital = Capital((candidates, candidates), (1 + margin / bound) / 2, population)
        self._sums = np.zeros(candidates)
        self._no_better = np.zeros((candidates, candidates), dtype=bool)  # [i, k]: i exceeds k by less than the margin

    def observe(self, values: Floats) -> None:
        """Updates the comparisons with further units.

        Args:
            values: (units, remaining), in the order of `remaining`.
        """
        for unit in values / self._bound:
            self._capital.bet((1 + unit[:, None] - unit[None, :]) / 2)
        self._no_better[np.ix_(self.remaining, self.remaining)] |= self._capital.now >= self._threshold
        self._sums[self.remaining] += values.sum(0)
        self.drawn += len(values)

    def eliminate(self) -> list[int]:
        """Eliminates all candidates that can be eliminated now, worst mean first, and returns them."""
        remaining, newly = set(self.remaining.tolist()), []
        for candidate in sorted(remaining, key=lambda i: (self._sums[i], -i))[:-1]:  # never the best so far
            others = remaining - {candidate}
            if self._covered(candidate, others) and all(self._covered(other, others) for other in self.eliminated):
                remaining = others
                self.eliminated.append(candidate)
                newly.append(candidate)
        self._keep(remaining)
        return newly

    def remove(self, candidate: int) -> list[int]:
        """Removes a failed candidate; returns those eliminated only because of it, which are open again."""
        if candidate in self.eliminated:
            self.eliminated.remove(candidate)
            return []
        remaining = set(self.remaining.tolist()) - {candidate}
        self._keep(remaining)
        reopened = [other for other in self.eliminated if not self._covered(other, remaining)]
        self.eliminated = [other for other in self.eliminated if other not in reopened]
        return reopened

    def _covered(self, candidate: int, by: set[int]) -> bool:
        """Whether `candidate` exceeds some candidate in `by` by less than the margin."""
        return bool(self._no_better[candidate, sorted(by)].any())

    def _keep(self, remaining: set[int]) -> None:
        kept = np.flatnonzero(np.isin(self.remaining, sorted(remaining)))
        self.remaining = self.remaining[kept]
        self._capital.keep(kept)
