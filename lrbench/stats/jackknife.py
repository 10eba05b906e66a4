"""Standard errors of statistics that have no closed form, such as perplexities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


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
