"""Exact tests of paired differences by sign flips.

If an edit has no effect, each document's contribution to the difference has either sign with equal probability. The
null distribution is therefore the distribution of the difference over all flips of signs (Fisher, *The design of
experiments*, 1935; Pitman 1937). For 0/1 metrics this is McNemar's exact test: only documents that changed count, and
the number that rose is binomial. It assumes independent documents (or groups), but no distribution of the scores.
"""

from __future__ import annotations

import math

import numpy as np

#: Largest number of units for which all sign flips are enumerated.
ENUMERATED = 16
#: If all differences are multiples of one step: largest total number of steps for which all sums are counted.
COUNTED = 20_000


def sign_test(rose: int, fell: int) -> float:
    """The exact two-sided p-value of the sign test; for paired 0/1 values, McNemar's.

    The probability of counts at least as uneven, if each changed document is as likely to rise as to fall (McNemar,
    *Note on the sampling error of the difference between correlated proportions or percentages*, Psychometrika 12,
    1947; the exact, binomial form).

    Args:
        rose, fell: the number of units that rose and that fell.
    """
    n = rose + fell
    term = tail = 1
    for k in range(1, min(rose, fell) + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)


def sign_flip_test(differences: np.ndarray) -> float:
    """The two-sided p-value: the fraction of all 2^n sign flips whose sum is at least as large as the observed sum.

    It is exact if all differences are multiples of one step (McNemar's test if all have one size) or there are few of
    them. Else it is the saddlepoint approximation of Lugannani and Rice, whose relative error is small even in the far
    tails, which random flips do not reach (Robinson, *Saddlepoint approximations for permutation tests and confidence
    intervals*, JRSS B 44, 1982).

    Args:
        differences: (n,) the contribution of each unit to the difference; zeros have no effect.
    """
    d = np.asarray(differences, dtype=float)
    # Values that differ from zero by rounding only count as zero.
    d = d[np.abs(d) > 1e-12 * np.abs(d).max(initial=0.0)]
    if not len(d):
        return 1.0
    steps = _whole_steps(d)
    if steps is not None and (steps == steps[0]).all():
        rose = int((d > 0).sum())
        return sign_test(rose, len(d) - rose)
    if steps is not None and steps.sum() <= COUNTED:
        return _counted(steps, int((np.sign(d) * steps).sum()))
    if len(d) <= ENUMERATED:
        return _enumerated(np.abs(d), abs(float(d.sum())))
    return float(saddlepoint_tails(d[None, :])[0])


def saddlepoint_tails(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-values of many sign-flip tests at once, by Lugannani and Rice.

    The cumulants of Σ ±d are K(t) = Σ log cosh(t d). With K'(t) = s, w = sqrt(2 (t s − K(t))) and u = t sqrt(K''(t)),
    P(S >= s) is about 1 − Φ(w) + φ(w) (1/u − 1/w).

    Args:
        differences: (tests, n), padded with zeros.

    Returns:
        (tests,), at least 2^(1 − n), the p-value of the most extreme flip.
    """
    d = np.abs(np.asarray(differences, dtype=float))
    s = np.abs(np.asarray(differences, dtype=float).sum(axis=1))
    scale = np.maximum(d.max(axis=1), np.finfo(float).tiny)
    d, s = d / scale[:, None], s / scale
    n = (d > 0).sum(axis=1)
    least = 2.0 ** (1.0 - np.minimum(n, 1070))
    total, squares = d.sum(axis=1), (d**2).sum(axis=1)
    extreme = s >= total * (1 - 1e-12)
    target = np.where(extreme, 0.0, s)
    # K' is concave, and t Σ d² is above it: from there Newton's steps approach the root from one side.
    t = target / np.maximum(squares, np.finfo(float).tiny)
    for _ in range(200):
        tanh = np.tanh(t[:, None] * d)
        gap = target - (d * tanh).sum(axis=1)
        curvature = (d**2 * (1 - tanh**2)).sum(axis=1)
        step = np.where(curvature > 0, gap / np.maximum(curvature, np.finfo(float).tiny), 0.0)
        t = t + np.maximum(step, 0.0)
        if (gap <= 1e-10 * total).all():
            break
    x = t[:, None] * d
    cumulant = (x + np.log1p(np.exp(-2 * x)) - math.log(2)).sum(axis=1)  # log cosh, without overflow
    w = np.sqrt(np.maximum(2 * (t * target - cumulant), 0.0))
    u = t * np.sqrt((d**2 * (1 - np.tanh(x) ** 2)).sum(axis=1))
    tail = np.array([math.erfc(value / math.sqrt(2)) / 2 for value in w])
    with np.errstate(divide="ignore", invalid="ignore"):
        correction = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi) * (1 / u - 1 / w)
    # Near w = 0 both terms of the correction overflow; the normal tail alone is accurate there.
    tail = tail + np.where((w > 1e-3) & np.isfinite(correction), correction, 0.0)
    p_values: np.ndarray = np.where(extreme, np.where(n > 0, least, 1.0), np.clip(2 * tail, least, 1.0))
    return p_values


def _whole_steps(d: np.ndarray) -> np.ndarray | None:
    """|d| as whole multiples of their greatest common step; None if there is no such step."""
    sizes = np.abs(d)
    for divisor in range(1, 13):
        step = sizes.min() / divisor
        multiples = sizes / step
        if (np.abs(multiples - np.round(multiples)) < 1e-6).all():
            whole: np.ndarray = np.round(multiples).astype(np.int64)
            return whole // np.gcd.reduce(whole)
    return None


def _counted(steps: np.ndarray, observed: int) -> float:
    """P(|Σ ±steps| >= |observed|), from the full distribution of the sum."""
    chances = np.ones(1)  # probabilities of the sum of the positive steps
    for size, count in zip(*np.unique(steps, return_counts=True), strict=True):
        factorials = np.array([math.lgamma(k + 1) for k in range(int(count) + 1)])
        spread = np.zeros(int(size) * int(count) + 1)
        spread[:: int(size)] = np.exp(factorials[-1] - factorials - factorials[::-1] - count * math.log(2))
        chances = np.convolve(chances, spread)
    total = int(steps.sum())  # Σ ± = 2 · positive − total
    sums = 2 * np.arange(total + 1) - total
    return min(1.0, float(chances[np.abs(sums) >= abs(observed)].sum()))


def _enumerated(sizes: np.ndarray, observed: float) -> float:
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    return float((np.abs(sums) >= observed * (1 - 1e-9)).mean())
