"""Statistics of scores: standard errors, and paired differences between two models on the same documents.

The documents are the same, so their difficulty cancels: the error of the difference comes from the differences per
document and is smaller than that of two independent scores. For perplexities, which are no means, the delta method is
applied to each model's value and the documents are paired all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from lrbench.metrics import base_name

T = TypeVar("T")

#: A difference is significant where chance alone gives one as large less often than this.
LEVEL = 0.05
#: Below so many documents two standard errors say nothing of chance.
FEWEST = 30

#: One document's metric as lm-eval hands it to the aggregation: a number, or (log-likelihood, weight) of a perplexity.
PerDocument = float | Sequence[float]


@dataclass(frozen=True)
class Difference:
    """Edited less unedited.

    Attributes:
        value: the difference.
        stderr: None where a single document says nothing of the spread.
        n: documents; of a mean of several tasks, those of the smallest.
        discordant: of a metric that is 0 or 1 on every document: how many rose to 1, how many fell to 0.
    """

    value: float
    stderr: float | None
    n: int
    discordant: tuple[int, int] | None = None

    @property
    def significant(self) -> bool | None:
        """Whether chance is an unlikely cause; None where there is nothing to tell it by.

        Where documents are 0 or 1 the exact sign test decides: their differences are mostly zeros, and two standard
        errors would take 4 losses against no win for significant. The difference must go the way of the counts, which
        it may not where tasks of other sizes weigh the same. Elsewhere it must exceed two of its standard errors.
        """
        if self.discordant is not None:
            rose, fell = self.discordant
            return sign_test(rose, fell) <= LEVEL and (rose > fell) == (self.value > 0)
        if self.stderr is None:
            return None
        return self.n >= FEWEST and abs(self.value) > 2 * self.stderr


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
    n = len(shared)
    stderr = float((ours[1] - theirs[1]).std(ddof=1)) / math.sqrt(n) if n > 1 else None
    discordant = _discordant([edited[doc] for doc in shared], [unedited[doc] for doc in shared])
    return Difference(ours[0] - theirs[0], stderr, n, discordant)


def stratified(parts: Sequence[Difference], total: float) -> Difference | None:
    """The difference of a group of tasks that share no documents, from those of its tasks.

    lm-eval's groups weigh their tasks by documents or equally; the weights used are those that give `total`, the
    group's own difference. Documents that rose and fell are counted over all tasks. Returns None where neither does.
    """
    documents = sum(part.n for part in parts)
    if not documents:
        return None
    for weights in ([part.n / documents for part in parts], [1 / len(parts)] * len(parts)):
        value = math.fsum(weight * part.value for weight, part in zip(weights, parts, strict=True))
        if agree(value, total):
            errors = [part.stderr for part in parts]
            return Difference(value, independent(errors, weights), documents, summed(p.discordant for p in parts))
    return None


def independent(errors: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The standard error of a weighted sum of what shares no documents; None where one of them is unknown."""
    terms = [weight * error for weight, error in zip(weights, errors, strict=True) if error is not None]
    return math.hypot(*terms) if len(terms) == len(errors) else None


def summed(counts: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Documents that rose and fell, over several tasks; None where a task is not of zeros and ones."""
    known = list(counts)
    pairs = [pair for pair in known if pair is not None]
    return (sum(rose for rose, _ in pairs), sum(fell for _, fell in pairs)) if len(pairs) == len(known) else None


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


def agree(one: float, other: float) -> bool:
    """Whether two values are one number up to the rounding of their sums."""
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-7)


def _discordant(ours: Sequence[PerDocument], theirs: Sequence[PerDocument]) -> tuple[int, int] | None:
    pairs = list(zip(ours, theirs, strict=True))
    if any(value not in (0, 1) for pair in pairs for value in pair):
        return None
    return sum(pair == (1, 0) for pair in pairs), sum(pair == (0, 1) for pair in pairs)


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


def jackknife_stderr(values: Sequence[T], aggregate: Callable[[list[T]], float], blocks: int = 100) -> float | None:
    """The standard error of `aggregate(values)` by leaving out one block of values at a time.

    For statistics without a closed form, such as perplexities. The values are cut, in order, into at most `blocks`
    blocks of nearly equal size, and the jackknife is that for unequal blocks (Busing, Meijer and Van der Leeden,
    *Delete-m jackknife for unequal m*, Statistics and Computing 9, 1999). With as many blocks as values and the mean
    it is the textbook s / sqrt(n).

    Returns:
        The standard error; None where there are fewer than two values, or the statistic is not finite on some part.
    """
    n = len(values)
    g = min(blocks, n)
    if g < 2:
        return None
    cuts = [n * block // g for block in range(g + 1)]
    try:
        whole = float(aggregate(list(values)))
        left_out = [float(aggregate([*values[:start], *values[stop:]])) for start, stop in pairwise(cuts)]
    except (ArithmeticError, ValueError):
        return None
    weights = [n / (stop - start) for start, stop in pairwise(cuts)]  # h_j = n / m_j
    pseudo = [h * whole - (h - 1) * part for h, part in zip(weights, left_out, strict=True)]
    center = sum(p / h for p, h in zip(pseudo, weights, strict=True))
    variance = sum((p - center) ** 2 / (h - 1) for p, h in zip(pseudo, weights, strict=True)) / g
    return math.sqrt(variance) if math.isfinite(variance) else None
