"""Exact tests of paired differences: had the two models swapped their answers on a document, would it be as likely?

If an edit has no effect, what a document adds to the difference is as likely to have the other sign. So the differences
that all the flips of signs give are the distribution that the observed one is held against (Fisher, *The design of
experiments*, 1935; Pitman 1937). With zeros and ones that is McNemar's exact test: only documents that changed count,
and the number of them that rose is binomial. No distribution of the scores is assumed, only that documents (or groups)
are independent of one another.
"""

from __future__ import annotations

import math

import numpy as np

#: Up to so many units all sign flips are enumerated.
ENUMERATED = 16
#: Where all differences are whole multiples of one step, and the largest sum has so few of them, all sums are counted.
COUNTED = 20_000


def sign_test(rose: int, fell: int) -> float:
    """The exact two-sided p-value of the sign test, McNemar's for paired zeros and ones.

    Were each document that changed as likely to rise as to fall, how often would the counts be as uneven as these, or
    more? (McNemar, *Note on the sampling error of the difference between correlated proportions or percentages*,
    Psychometrika 12, 1947; its exact, binomial form.)
    """
    n = rose + fell
    term = tail = 1
    for k in range(1, min(rose, fell) + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)


def sign_flip_test(differences: np.ndarray) -> float:
    """The two-sided p-value: the share of all 2^n flips of signs whose sum is as large as the observed one.

    Args:
        differences: (n,) what each unit adds to the difference; zeros change nothing.

    Counted exactly where all are multiples of one step (McNemar's test where all are equal) or there are few; else by
    the saddlepoint approximation of Lugannani and Rice, whose relative error is small out in the tails, where a
    sample of flips would see none (Robinson, *Saddlepoint approximations for permutation tests and confidence
    intervals*, JRSS B 44, 1982).
    """
    d = np.asarray(differences, dtype=float)
    # What only rounding has made different from zero has no sign of its own.
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
    """Two-sided p-values of sign-flip tests, by Lugannani and Rice, of many tests at once.

    The cumulants of Σ ±d are K(t) = Σ log cosh(t d). With K'(t) = s, w = sqrt(2 (t s − K(t))) and u = t sqrt(K''(t)),
    P(S >= s) is about 1 − Φ(w) + φ(w) (1/u − 1/w).

    Args:
        differences: (tests, n); zeros fill up what has fewer units.

    Returns:
        (tests,), at least 2^(1 − n), which is what the most extreme of all flips has.
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
    # At the middle both terms have no limit in floating point; there the plain normal tail is right.
    tail = tail + np.where((w > 1e-3) & np.isfinite(correction), correction, 0.0)
    found: np.ndarray = np.where(extreme, np.where(n > 0, least, 1.0), np.clip(2 * tail, least, 1.0))
    return found


def _whole_steps(d: np.ndarray) -> np.ndarray | None:
    """|d| in multiples of their greatest common step, where they are whole; else None."""
    sizes = np.abs(d)
    for divisor in range(1, 13):
        step = sizes.min() / divisor
        multiples = sizes / step
        if (np.abs(multiples - np.round(multiples)) < 1e-6).all():
            whole: np.ndarray = np.round(multiples).astype(np.int64)
            return whole // np.gcd.reduce(whole)
    return None


def _counted(steps: np.ndarray, observed: int) -> float:
    """P(|Σ ±steps| >= |observed|), from the whole distribution of the sum."""
    chances = np.ones(1)  # of the sum of those steps that come out positive, in units of one step
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
