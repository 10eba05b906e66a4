"""The bootstrap: units are drawn again with replacement, as often as there are, and the statistic is computed anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from lrbench.stats.totals import Totals, linked

#: How often units are drawn again: the ends of a 95 % interval then vary by some 2 % of its width between seeds.
RESAMPLES = 2000
#: Of intervals: how often they hold the true value.
COVERAGE = 0.95
_BLOCK = 2**22  # draws held at a time
_NORMAL = NormalDist()


def resampled(totals: Sequence[Totals], key: str, resamples: int = RESAMPLES) -> np.ndarray:
    """Metrics of many models on the same resamples of the same units, so that differences between them are paired.

    Args:
        totals: of the same units in the same order.
        key: names the units; the same key gives the same resamples, another one independent ones.
        resamples: how many.

    Returns:
        (models, resamples); NaN where a resample has no weight.
    """
    units = len(totals[0].weights)
    # Documents of different lengths are the same for all models: their weights are summed once.
    distinct: dict[bytes, int] = {}
    which = [distinct.setdefault(one.weights.tobytes(), len(distinct)) for one in totals]
    numerators = np.stack([one.numerators for one in totals], axis=1)  # (units, models)
    weights = np.stack([np.frombuffer(raw) for raw in distinct], axis=1)  # (units, distinct)
    seed = int.from_bytes(hashlib.sha256(f"{units}|{key}".encode()).digest()[:8], "big")
    dice = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // units)
    parts = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = dice.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((times @ numerators) / (times @ weights)[:, which])
    ratios = np.concatenate(parts).T  # (models, resamples)
    return np.stack([linked(ratio, one.link) for ratio, one in zip(ratios, totals, strict=True)])


def bca_interval(
    draws: np.ndarray, value: float, influence: np.ndarray, coverage: float = COVERAGE
) -> tuple[float, float] | None:
    """The bias-corrected and accelerated interval (Efron, *Better bootstrap confidence intervals*, JASA 82, 1987).

    Quantiles of the draws, at levels corrected for the median bias of the draws (z0) and for how the standard error
    changes with the value (the acceleration, from the influence of units). Perplexities are skewed, and so are
    accuracies near 0 or 1: there, the coverage at each end of plain percentiles is off by a term of order 1 / sqrt(n)
    that these have not.

    Args:
        draws: (resamples,) the statistic on each resample.
        value: the statistic on the sample.
        influence: (units,) what each unit moves it by.
        coverage: of the interval.

    Returns:
        Its ends; None where a draw or the influence is not finite, as with a single unit.
    """
    if not len(draws) or not np.isfinite(draws).all() or not np.isfinite(influence).all():
        return None
    # Draws of few documents that change have ties with the value, which count half.
    near = np.isclose(draws, value, rtol=1e-9, atol=1e-12)
    below = (float((~near & (draws < value)).sum()) + float(near.sum()) / 2) / len(draws)
    squares = float((influence**2).sum())
    if squares == 0 or near.all():
        return float(draws.min()), float(draws.max())
    z0 = _NORMAL.inv_cdf(min(max(below, 0.5 / len(draws)), 1 - 0.5 / len(draws)))
    acceleration = float((influence**3).sum()) / (6 * squares**1.5)
    ends = []
    for tail in ((1 - coverage) / 2, (1 + coverage) / 2):
        z = z0 + _NORMAL.inv_cdf(tail)
        level = _NORMAL.cdf(z0 + z / (1 - acceleration * z)) if acceleration * z < 1 else float(z > 0)
        ends.append(float(np.quantile(draws, level)))
    return ends[0], ends[1]
