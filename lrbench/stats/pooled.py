"""Differences of metrics pooled over several tasks with disjoint documents: task groups, and the score of a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from lrbench.stats.paired import Difference, Estimate
from lrbench.stats.totals import nearly_equal


def weighted(parts: Sequence[Difference], weights: Sequence[float]) -> Difference:
    """The weighted sum of the differences of several tasks, which are resampled independently."""
    return Difference(
        _sum([part.ours for part in parts], weights),
        _sum([part.theirs for part in parts], weights),
        np.concatenate([w * _on_values(part) for part, w in zip(parts, weights, strict=True)]),
        sum(part.n for part in parts),
        summed(part.discordant for part in parts),
        tuple((part.documents, w) for part, w in zip(parts, weights, strict=True)),
    )


def stratified(parts: Sequence[Difference], total: float) -> Difference | None:
    """The difference of a group of tasks with disjoint documents, from the differences of its tasks.

    lm-eval weighs the tasks of a group by documents or equally. The weights used are the ones that give `total`, the
    difference of the group's scores. Returns None if neither gives it.
    """
    documents = sum(part.n for part in parts)
    if not documents:
        return None
    for weights in ([part.n / documents for part in parts], [1 / len(parts)] * len(parts)):
        value = math.fsum(weight * part.value for weight, part in zip(weights, parts, strict=True))
        if nearly_equal(value, total):
            return weighted(parts, weights)
    return None


def geometric(parts: Sequence[Difference]) -> Difference | None:
    """The difference of the geometric means of several tasks' perplexities.

    Returns None if a perplexity is not positive and finite.
    """
    ours, theirs = _geometric([part.ours for part in parts]), _geometric([part.theirs for part in parts])
    if ours is None or theirs is None:
        return None
    return Difference(
        ours, theirs,
        np.concatenate([_on_logs(part) / len(parts) for part in parts]),
        sum(part.n for part in parts),
        documents=tuple(part.documents for part in parts),
        logarithmic=True,
    )  # fmt: skip


def independent(errors: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The standard error of a weighted sum of independent values; None if one of their errors is unknown."""
    terms = [weight * error for weight, error in zip(weights, errors, strict=True) if error is not None]
    return math.hypot(*terms) if len(terms) == len(errors) else None


def summed(counts: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The number of documents that rose and that fell over several tasks; None if a metric is not 0/1."""
    known = list(counts)
    pairs = [pair for pair in known if pair is not None]
    return (sum(rose for rose, _ in pairs), sum(fell for _, fell in pairs)) if len(pairs) == len(known) else None


def _sum(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    terms = list(zip(weights, parts, strict=True))
    return Estimate(
        math.fsum(w * part.value for w, part in terms),
        np.sum([w * part.draws for w, part in terms], axis=0),
        np.concatenate([w * part.influence for w, part in terms]),
    )


def _geometric(parts: Sequence[Estimate]) -> Estimate | None:
    if any(not 0 < part.value < math.inf for part in parts):
        return None
    value = math.exp(math.fsum(math.log(part.value) for part in parts) / len(parts))
    draws = np.exp(np.mean([np.log(part.draws) for part in parts], axis=0))
    return Estimate(value, draws, np.concatenate([value / len(parts) / part.value * part.influence for part in parts]))


def _on_values(part: Difference) -> np.ndarray:
    """The steps on the scale of the metric: their sum is the difference."""
    return part.steps * _log_mean(part) if part.logarithmic else part.steps


def _on_logs(part: Difference) -> np.ndarray:
    """The steps on the logarithmic scale."""
    return part.steps if part.logarithmic else part.steps / _log_mean(part)


def _log_mean(part: Difference) -> float:
    """The logarithmic mean L of two positive values a and b: a − b = L (log a − log b)."""
    a, b = part.ours.value, part.theirs.value
    return a if math.isclose(a, b, rel_tol=1e-12) else (a - b) / (math.log(a) - math.log(b))
