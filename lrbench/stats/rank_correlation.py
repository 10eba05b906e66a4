"""Rank correlation of cells that share their subject: Spearman's rho, also within strata, with an interval.

An interval says how much the correlation would vary had other subjects been drawn; cells of one subject (a weight
matrix reduced by several methods, at several ranks) are no independent evidence, so subjects are left out in turn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lrbench.stats.bootstrap import COVERAGE

#: Subjects that an interval needs at least: of fewer, no formula for it can be relied on.
LEAST_SUBJECTS = 5
#: Cells that a correlation needs at least: of two it is 1 or -1 whatever they are.
LEAST_CELLS = 3


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation.

    Attributes:
        rho: between -1 and 1; None where there are too few cells, or all have one value.
        interval: its ends; None without rho, or with fewer than `LEAST_SUBJECTS` subjects.
        cells: how many it is computed from.
        subjects: how many of them are independent of one another.
    """

    rho: float | None
    interval: tuple[float, float] | None
    cells: int
    subjects: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero; 0 where it does not, or there is none."""
        if self.interval is None:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)


def spearman(
    x: Sequence[float],
    y: Sequence[float],
    subjects: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    coverage: float = COVERAGE,
) -> RankCorrelation:
    """Spearman's rho of x and y; ties have their mean rank.

    With strata, cells are compared within their stratum alone: each value becomes the share of its stratum that lies
    below it less the share above it, and rho is the correlation of these (the conditional Spearman correlation by
    probability-scale residuals of Liu, Li, Wanga and Shepherd, Biometrics 74, 2018). Of one stratum it is Spearman's.

    The interval is symmetric in Fisher's z = atanh(rho). Where each subject has one cell, the standard error of z is
    that of Bonett and Wright, sqrt((1 + rho²/2) / (n - 3)) (Psychometrika 65, 2000), n less one for each further
    stratum. Else it is the jackknife's over subjects, with the t distribution of G - 1 degrees of freedom for G of
    them, and never smaller than Bonett and Wright's, which takes all cells for independent.

    Args:
        x, y: (n,) finite.
        subjects: (n,) equal for cells that are not independent; default: all are.
        strata: (n,) equal for cells that are compared; default: all are. Cells alone in theirs do not count.
        coverage: of the interval.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    subjects = list(range(len(x))) if subjects is None else list(subjects)
    strata = [0] * len(x) if strata is None else list(strata)
    if not len(x) == len(y) == len(subjects) == len(strata):
        raise ValueError(f"{len(x)} and {len(y)} values, {len(subjects)} subjects, {len(strata)} strata")
    pairs = np.array([x, y], dtype=float).reshape(2, -1)  # (2, n)
    if not np.isfinite(pairs).all():
        raise ValueError("values must be finite")
    of_subject, of_stratum = _numbered(subjects), _numbered(strata)
    compared = np.bincount(of_stratum)[of_stratum] > 1 if len(x) else np.zeros(0, bool)
    pairs, of_subject, of_stratum = pairs[:, compared], of_subject[compared], of_stratum[compared]
    cells, names = pairs.shape[1], np.unique(of_subject)
    rho = _rho(pairs, of_stratum) if cells >= LEAST_CELLS else None
    if rho is None or len(names) < LEAST_SUBJECTS:
        return RankCorrelation(rho, None, cells, len(names))

    free = cells - len(np.unique(of_stratum)) + 1
    if free <= 3:
        return RankCorrelation(rho, None, cells, len(names))
    z = _fisher(rho, cells)
    error = math.sqrt((1 + math.tanh(z) ** 2 / 2) / (free - 3))
    quantile = NormalDist().inv_cdf((1 + coverage) / 2)
    if len(names) < cells:
        left_out = [_rho(pairs[:, kept], of_stratum[kept]) for kept in (of_subject != name for name in names)]
        known = np.array([_fisher(one, cells) for one in left_out if one is not None])
        if len(known) < len(names):  # one subject alone makes the difference between x, or y, and a constant
            return RankCorrelation(rho, None, cells, len(names))
        share = (len(names) - 1) / len(names)
        jackknife = math.sqrt(share * float(((known - known.mean()) ** 2).sum()))
        from scipy.special import stdtrit  # slow to import, and most tables have no correlations

        error, quantile = max(error, jackknife), float(stdtrit(len(names) - 1, (1 + coverage) / 2))
    low, high = math.tanh(z - quantile * error), math.tanh(z + quantile * error)
    return RankCorrelation(rho, (min(low, rho), max(high, rho)), cells, len(names))


def _rho(pairs: np.ndarray, strata: np.ndarray) -> float | None:
    """The correlation of residuals: (2, n), (n,) -> rho; None where all residuals of one kind are zero."""
    sizes = np.bincount(strata)
    residuals = np.stack([(2 * _ranks(values, strata) - sizes[strata] - 1) / sizes[strata] for values in pairs])
    squares = (residuals**2).sum(axis=1)
    if not squares.all():
        return None
    rho = float(residuals[0] @ residuals[1]) / math.sqrt(squares[0] * squares[1])
    return min(max(round(rho, 12), -1.0), 1.0)  # a perfect order is one, whatever the last digits of the sums


def _ranks(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Ranks from 1 within each stratum; equal values have the mean of theirs: (n,), (n,) -> (n,)."""
    _, dense = np.unique(values, return_inverse=True)
    _, place, counts = np.unique(strata * len(values) + dense, return_inverse=True, return_counts=True)
    sizes = np.bincount(strata)
    before = np.cumsum(sizes) - sizes  # cells of the strata that come first
    return (np.cumsum(counts) - (counts - 1) / 2)[place] - before[strata]


def _fisher(rho: float, cells: int) -> float:
    """atanh(rho); of a perfect order, of what lies half way to the next value that rho can have."""
    most = 1 - 6 / (cells**3 - cells)
    return math.atanh(min(max(rho, -most), most))


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=int)
