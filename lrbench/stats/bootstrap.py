"""The bootstrap: resamples units with replacement and computes the statistic on each resample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from lrbench.stats.totals import Totals, apply_link

#: Number of resamples: the ends of a 95 % interval then vary by some 2 % of its width between seeds.
RESAMPLES = 2000
#: Confidence level of intervals.
COVERAGE = 0.95
_BLOCK = 2**22  # draws held at a time
_NORMAL = NormalDist()


def resampled(totals: Sequence[Totals], key: str, resamples: int = RESAMPLES) -> np.ndarray:
    """Metrics of several models on the same resamples, so that differences between them are paired.

    Args:
        totals: one per model, over the same units in the same order.
        key: names the units and seeds the resampling: equal keys give equal resamples, different keys independent ones.
        resamples: the number of resamples.

    Returns:
        (models, resamples); NaN where a resample has no weight.
    """
    units = len(totals[0].weights)
    # Models mostly have the same weights, such as document lengths: each distinct vector is resampled once.
    distinct: dict[bytes, int] = {}
    weights_of = [distinct.setdefault(model.weights.tobytes(), len(distinct)) for model in totals]
    numerators = np.stack([model.numerators for model in totals], axis=1)  # (units, models)
    weights = np.stack([np.frombuffer(raw) for raw in distinct], axis=1)  # (units, distinct)
    seed = int.from_bytes(hashlib.sha256(f"{units}|{key}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    batch = max(1, _BLOCK // units)
    parts = []
    for start in range(0, resamples, batch):
        count = min(batch, resamples - start)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((times @ numerators) / (times @ weights)[:, weights_of])
    ratios = np.concatenate(parts).T  # (models, resamples)
    return np.stack([apply_link(ratio, model.link) for ratio, model in zip(ratios, totals, strict=True)])


def bca_interval(
    draws: np.ndarray, value: float, influence: np.ndarray, coverage: float = COVERAGE
) -> tuple[float, float] | None:
    """The bias-corrected and accelerated interval (Efron, *Better bootstrap confidence intervals*, JASA 82, 1987).

    Its ends are quantiles of the draws, at levels corrected for the median bias of the draws (z0) and for how the
    standard error changes with the value (the acceleration, from the influence of units). On skewed statistics, such as
    perplexities and accuracies near 0 or 1, it removes the coverage error of order 1 / sqrt(n) that plain percentiles
    have at each end.

    Args:
        draws: (resamples,) the statistic on each resample.
        value: the statistic on the sample.
        influence: (units,) the influence of each unit on the statistic.
        coverage: the confidence level.

    Returns:
        The lower and upper end; None if a draw or an influence is not finite, as with a single unit.
    """
    if not len(draws) or not np.isfinite(draws).all() or not np.isfinite(influence).all():
        return None
    # Where few documents change, draws tie with the value; ties count half.
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
