"""The difference of what is made of several tasks that share no documents: groups, and the one score of a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from lrbench.stats.paired import Difference, Estimate
from lrbench.stats.totals import agree


def weighted(parts: Sequence[Difference], weights: Sequence[float]) -> Difference:
    """The weighted sum of several tasks' differences; each is resampled by itself."""
    return Difference(
        _sum([part.ours for part in parts], weights),
        _sum([part.theirs for part in parts], weights),
        np.concatenate([w * _on_values(part) for part, w in zip(parts, weights, strict=True)]),
        sum(part.n for part in parts),
        summed(part.discordant for part in parts),
        tuple((part.documents, w) for part, w in zip(parts, weights, strict=True)),
    )


def stratified(parts: Sequence[Difference], total: float) -> Difference | None:
    """The difference of a group of tasks that share no documents, from those of its tasks.

    lm-eval's groups weigh their tasks by documents or equally; the weights used are those that give `total`, the
    group's own difference. Returns None where neither does.
    """
    documents = sum(part.n for part in parts)
    if not documents:
        return None
    for weights in ([part.n / documents for part in parts], [1 / len(parts)] * len(parts)):
        value = math.fsum(weight * part.value for weight, part in zip(weights, parts, strict=True))
        if agree(value, total):
            return weighted(parts, weights)
    return None


def geometric(parts: Sequence[Difference]) -> Difference | None:
    """The difference of the geometric means of several tasks' perplexities.

    Returns None where one is not above zero.
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
    """The standard error of a weighted sum of what shares no documents; None where one of them is unknown."""
    terms = [weight * error for weight, error in zip(weights, errors, strict=True) if error is not None]
    return math.hypot(*terms) if len(terms) == len(errors) else None


def summed(counts: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Documents that rose and fell, over several tasks; None where a task is not of zeros and ones."""
    known = list(counts)
    pairs = [pair for pair in known if pair is not None]
    return (sum(rose for rose, _ in pairs), sum(fell for _, fell in pairs)) if len(pairs) == len(known) else None


def _sum(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    of = list(zip(weights, parts, strict=True))
    return Estimate(
        math.fsum(w * part.value for w, part in of),
        np.sum([w * part.draws for w, part in of], axis=0),
        np.concatenate([w * part.influence for w, part in of]),
    )


def _geometric(parts: Sequence[Estimate]) -> Estimate | None:
    if any(not 0 < part.value < math.inf for part in parts):
        return None
    value = math.exp(math.fsum(math.log(part.value) for part in parts) / len(parts))
    draws = np.exp(np.mean([np.log(part.draws) for part in parts], axis=0))
    return Estimate(value, draws, np.concatenate([value / len(parts) / part.value * part.influence for part in parts]))


def _on_values(part: Difference) -> np.ndarray:
    """The steps on the scale of the values: their sum is the difference."""
    return part.steps * _log_mean(part) if part.logarithmic else part.steps


def _on_logs(part: Difference) -> np.ndarray:
    """The steps on the scale of logarithms."""
    return part.steps if part.logarithmic else part.steps / _log_mean(part)


def _log_mean(part: Difference) -> float:
    """The logarithmic mean L of two positive values a and b: a − b = L (log a − log b)."""
    a, b = part.ours.value, part.theirs.value
    return a if math.isclose(a, b, rel_tol=1e-12) else (a - b) / (math.log(a) - math.log(b))
