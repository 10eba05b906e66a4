"""Jackknife standard errors, for statistics without a closed form, such as perplexities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def jackknife_stderr(values: Sequence[T], aggregate: Callable[[list[T]], float], blocks: int = 100) -> float | None:
    """The standard error of `aggregate(values)` by the jackknife for unequal blocks.

    The values are cut, in order, into at most `blocks` blocks of nearly equal size, each left out in turn (Busing,
    Meijer and Van der Leeden, *Delete-m jackknife for unequal m*, Statistics and Computing 9, 1999). For a mean and one
    value per block it equals s / sqrt(n).

    Returns:
        The standard error; None with fewer than two values, or if the statistic fails or is not finite without a block.
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
