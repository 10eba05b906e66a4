"""The difference between two models scored on the same documents, and its standard error.

The documents are the same, so their difficulty cancels: the error of the difference comes from the differences per
document and is smaller than that of two independent scores. For perplexities, which are no means, the delta method is
applied to each model's value and the documents are paired all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrbench.metrics import base_name

#: One document's metric as lm-eval hands it to the aggregation: a number, or (log-likelihood, weight) of a perplexity.
PerDocument = float | Sequence[float]


@dataclass(frozen=True)
class Difference:
    """Edited less unedited; `stderr` is None where a single document says nothing of the spread."""

    value: float
    stderr: float | None
    n: int


def paired_difference(
    edited: Mapping[int, PerDocument], unedited: Mapping[int, PerDocument], metric: str
) -> Difference | None:
    """The difference of a metric over the documents that both have: document index -> value.

    Returns None where no document is shared, or a value is missing or not finite: such a difference has no error that
    could be stated.
    """
    shared = [doc for doc in edited if doc in unedited]
    ours = _linearized([edited[doc] for doc in shared], metric)
    theirs = _linearized([unedited[doc] for doc in shared], metric)
    if ours is None or theirs is None:
        return None
    value = ours[0] - theirs[0]
    n = len(shared)
    if n < 2:
        return Difference(value, None, n)
    return Difference(value, float((ours[1] - theirs[1]).std(ddof=1)) / math.sqrt(n), n)


def stratified(parts: Sequence[Difference], total: float) -> Difference | None:
    """The difference of a group of tasks that share no documents, from those of its tasks.

    lm-eval's groups weigh their tasks by documents or equally; the weights used are those that give `total`, the
    group's own difference. Returns None where neither does.
    """
    documents = sum(part.n for part in parts)
    if not documents or any(part.stderr is None for part in parts):
        return None
    for weights in ([part.n / documents for part in parts], [1 / len(parts)] * len(parts)):
        value = math.fsum(weight * part.value for weight, part in zip(weights, parts, strict=True))
        if agree(value, total):
            variance = math.fsum(
                (weight * (part.stderr or 0.0)) ** 2 for weight, part in zip(weights, parts, strict=True)
            )
            return Difference(value, math.sqrt(variance), documents)
    return None


def agree(one: float, other: float) -> bool:
    """Whether two values are one number up to the rounding of their sums."""
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-7)


def _linearized(values: Sequence[PerDocument], metric: str) -> tuple[float, np.ndarray] | None:
    """A metric over documents, and what each document moves it by, to first order (n times, less the mean)."""
    try:
        table = np.array(values, dtype=float)
    except (TypeError, ValueError):
        return None
    if table.ndim == 1:
        table = np.stack([table, np.ones_like(table)], axis=1)
    if table.ndim != 2 or table.shape[1] != 2 or not len(table) or not np.isfinite(table).all():
        return None
    average = table[:, 1].mean()
    if average <= 0:
        return None
    x, weight = table.T / average
    mean = float(x.mean())
    try:
        if "perplexity" in metric:
            value, slope = math.exp(-mean), -math.exp(-mean)
        elif base_name(metric) == "bits_per_byte":
            value, slope = -mean / math.log(2), -1 / math.log(2)
        else:
            value, slope = mean, 1.0
    except OverflowError:
        return None
    return value, slope * (x - mean * weight)
