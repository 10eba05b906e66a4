"""Spearman's rank correlation with an interval, for cells clustered by subject, optionally within strata.

A subject is a weight matrix, reduced by several methods at several ranks. Its cells are not independent, so the
jackknife leaves out whole subjects. The interval describes how the correlation varies with the sample of subjects.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lrbench.stats.bootstrap import COVERAGE

#: Fewest subjects for an interval: with fewer, no formula is reliable.
MIN_SUBJECTS = 5
#: Fewest cells for a correlation: with two it is always 1 or -1.
MIN_CELLS = 3


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation.

    Attributes:
        rho: between -1 and 1; None with too few cells, or if all values are equal.
        interval: the lower and upper end; None without rho, or with fewer than `MIN_SUBJECTS` subjects.
        cells: the number of cells.
        subjects: the number of independent subjects.
    """

    rho: float | None
    interval: tuple[float, float] | None
    cells: int
    subjects: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on that side of zero; 0 if it contains zero, or there is none."""
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
    """Spearman's rho of x and y; ties get their mean rank.

    With strata, cells are compared only within their stratum: each value becomes the fraction of its stratum below it
    minus the fraction above it, and rho is the correlation of these residuals (the conditional Spearman correlation by
    probability-scale residuals of Liu, Li, Wanga and Shepherd, Biometrics 74, 2018). With one stratum it is Spearman's.

    The interval is symmetric in Fisher's z = atanh(rho). If each subject has one cell, the standard error of z is
    sqrt((1 + rho²/2) / (n - 3)) (Bonett and Wright, Psychometrika 65, 2000), with n reduced by one for each further
    stratum. Else it is the jackknife's over the G subjects, with a t distribution of G - 1 degrees of freedom, and at
    least Bonett and Wright's, which assumes independent cells.

    Args:
        x, y: (n,) finite.
        subjects: (n,) equal for cells that are not independent; default: all cells are independent.
        strata: (n,) equal for cells that are compared; default: one stratum. Single cells of a stratum are left out.
        coverage: the confidence level.

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
    rho = _rho(pairs, of_stratum) if cells >= MIN_CELLS else None
    if rho is None or len(names) < MIN_SUBJECTS:
        return RankCorrelation(rho, None, cells, len(names))

    free = cells - len(np.unique(of_stratum)) + 1
    if free <= 3:
        return RankCorrelation(rho, None, cells, len(names))
    z = _fisher(rho, cells)
    error = math.sqrt((1 + math.tanh(z) ** 2 / 2) / (free - 3))
    quantile = NormalDist().inv_cdf((1 + coverage) / 2)
    if len(names) < cells:
        left_out = [_rho(pairs[:, kept], of_stratum[kept]) for kept in (of_subject != name for name in names)]
        known = np.array([_fisher(part, cells) for part in left_out if part is not None])
        if len(known) < len(names):  # without some subject, x or y is constant
            return RankCorrelation(rho, None, cells, len(names))
        factor = (len(names) - 1) / len(names)
        jackknife = math.sqrt(factor * float(((known - known.mean()) ** 2).sum()))
        from scipy.special import stdtrit  # slow to import, and most tables have no correlations

        error, quantile = max(error, jackknife), float(stdtrit(len(names) - 1, (1 + coverage) / 2))
    low, high = math.tanh(z - quantile * error), math.tanh(z + quantile * error)
    return RankCorrelation(rho, (min(low, rho), max(high, rho)), cells, len(names))


def _rho(pairs: np.ndarray, strata: np.ndarray) -> float | None:
    """The correlation of residuals: (2, n), (n,) -> rho; None if all residuals of x or of y are zero."""
    sizes = np.bincount(strata)
    residuals = np.stack([(2 * _ranks(values, strata) - sizes[strata] - 1) / sizes[strata] for values in pairs])
    squares = (residuals**2).sum(axis=1)
    if not squares.all():
        return None
    rho = float(residuals[0] @ residuals[1]) / math.sqrt(squares[0] * squares[1])
    return min(max(round(rho, 12), -1.0), 1.0)  # exactly 1 for a perfect order, despite rounding


def _ranks(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Ranks from 1 within each stratum; ties get their mean rank: (n,), (n,) -> (n,)."""
    _, dense = np.unique(values, return_inverse=True)
    _, place, counts = np.unique(strata * len(values) + dense, return_inverse=True, return_counts=True)
    sizes = np.bincount(strata)
    before = np.cumsum(sizes) - sizes  # the number of cells in earlier strata
    return (np.cumsum(counts) - (counts - 1) / 2)[place] - before[strata]


def _fisher(rho: float, cells: int) -> float:
    """atanh(rho), with a perfect rho of 1 replaced by the value halfway to the next that rho can take."""
    most = 1 - 6 / (cells**3 - cells)
    return math.atanh(min(max(rho, -most), most))


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=int)
