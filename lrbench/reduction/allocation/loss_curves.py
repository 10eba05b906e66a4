"""What a weight may be within a budget, and what each choice loses: the curves that `keep_model` is shared out by.

    error         |W - What|_F^2 / |W|_F^2
    output-error  |(W - What) H^½|_F^2 / |W H^½|_F^2, H = E[x xᵀ] of the calibration text
    sensitivity   nats by which a token of the calibration text becomes less likely when this weight alone is reduced

The first two are relative: weights, and the outputs of different weights, have no common unit, since what one of them
is scaled by a normalization or another weight may undo. The third is measured at a few ranks and carried to the others
by the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lrbench.errors import ReducerError
from lrbench.reducers.factors import Factors
from lrbench.reducers.ranks import RankRequest, find_rank, worthwhile_ranks
from lrbench.reduction.allocation.budget import TOLERANCE, Choices
from lrbench.reduction.allocation.knapsack import Options, convex
from lrbench.reduction.weight_job import Preparation, Work

#: Ranks at which factors are built where a method does not know its curve.
GRID = 12
#: Ranks at which a method that prepares for each rank alone is asked for its curve: it may compute each error anew.
ASKED = 32
#: Shares of a weight's numbers at which the loss on text is measured.
MEASURED_AT = (0.25, 0.5, 0.75)
_LEAST_BUILT = 16

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """How what is lost is told.

    Attributes:
        of: of factors.
        known: of ranks, where a closed form tells it; None where there is none.
        on_text: of factors put in the weight's place, in nats a token; None unless that is what counts.
    """

    of: Callable[[Factors], float]
    known: Callable[[Sequence[int]], Sequence[float] | None]
    on_text: Callable[[Factors], float] | None = None


def squared_error(work: Work, preparation: Preparation, norm: float) -> Judge:
    """By ‖W − Ŵ‖_F² / ‖W‖_F², with the method's own curve where it has one.

    Args:
        norm: ‖W‖_F; of a zero weight the errors are taken as they are.
    """
    unit = norm or 1.0

    def of(factors: Factors) -> float:
        error = float(torch.linalg.vector_norm(work.weight - factors.dense(), dtype=torch.float64))
        return (error / unit) ** 2

    def known(ranks: Sequence[int]) -> list[float] | None:
        errors = preparation.prepared.errors(ranks)
        if errors is None:
            return None
        if len(errors) != len(ranks):
            method = work.method.label
            raise ReducerError(f"{work.slot.name}: {method} gave {len(errors)} errors for {len(ranks)} ranks")
        return [(float(error) / unit) ** 2 for error in errors]

    return Judge(of, known)


def choices_by_rank(work: Work, preparation: Preparation, sized: Choices, judge: Judge) -> Choices:
    """All ranks that store less than the weight, whose sizes are known, with their losses."""
    if not sized.ranks:
        return sized
    ranks = list(sized.ranks)
    some = ranks if work.method.reducer.one_preparation else _spread(ranks, ASKED)
    values = judge.known(some)
    if values is None:
        some = _spread(ranks, GRID)
        values = [judge.of(work.at_rank(preparation, rank)[0]) for rank in some]
    curve = np.array(values, dtype=np.float64)
    if len(some) < len(ranks):
        curve = convex(np.array(ranks, float), np.array(some, float), curve)
    if judge.on_text is not None:
        curve = _on_text(work, preparation, sized.ranks, sized.options.sizes, curve, judge.on_text)
    return Choices(sized.ranks, Options(sized.options.sizes, np.append(curve, 0.0)))


def choices_by_building(work: Work, preparation: Preparation, judge: Judge, numbers: int) -> Choices:
    """Some ranks, with what their factors do store and lose: of methods that do not say, or store less than they say.

    As many that a step from one to the next is a small part of what a budget may be missed by, and no less than 16.

    Args:
        numbers: of the whole model.
    """
    slot, whole = work.slot, work.slot.numbers
    ranks = [rank for rank, numbers in worthwhile_ranks(work.method.reducer, slot.about) if numbers is not None]
    if not ranks:
        just_below = RankRequest("keep", (whole - 1) / whole)
        largest = find_rank(just_below, work.method.reducer, slot.about, None, work.weight, preparation.prepared)
        ranks = list(range(1, largest + 1))
    wanted = math.ceil(2 * whole / (TOLERANCE * numbers))
    built: dict[int, tuple[float, int]] = {}
    for rank in _spread(ranks, max(_LEAST_BUILT, wanted), power=1):
        factors = work.at_rank(preparation, rank)[0]
        size, loss = factors.stored_numbers, judge.of(factors)
        if size < whole and (size not in built or loss < built[size][0]):
            built[size] = loss, rank
    sizes = np.array([*sorted(built), whole], dtype=np.int64)
    kept = tuple(built[size][1] for size in sorted(built))
    curve = np.array([built[size][0] for size in sorted(built)])
    if judge.on_text is not None and kept:
        curve = _on_text(work, preparation, kept, sizes, curve, judge.on_text)
    return Choices(kept, Options(sizes, np.append(curve, 0.0)))


def largest_rank(work: Work, sized: Choices | None) -> int:
    """The largest rank that factors may be asked for."""
    if sized is not None:
        return max(sized.ranks, default=1)
    return work.method.reducer.max_rank(work.slot.about.shape)


def _on_text(
    work: Work, preparation: Preparation, ranks: Sequence[int], sizes: NDArray[np.int64], squares: Curve,
    on_text: Callable[[Factors], float],
) -> Curve:  # fmt: skip
    """The loss on text of every rank, from those of a few and the squared error of all.

    Between the ranks measured it is linear in the squared error, to which it is proportional where the error is small
    and the gradient vanishes; it never falls as the error grows, and text that becomes likelier counts as no loss.
    Beyond the largest error measured it goes on as steeply.
    """
    places = {int(np.searchsorted(sizes[: len(ranks)], share * sizes[-1], side="right")) - 1 for share in MEASURED_AT}
    places = {max(0, place) for place in places}
    losses = {place: on_text(work.at_rank(preparation, ranks[place])[0]) for place in places}
    return carried(squares, {float(squares[place]): loss for place, loss in losses.items()})


def carried(squares: Curve, measured: dict[float, float]) -> Curve:
    """Losses at squared errors, from those measured at some of them; see `_on_text`."""
    xs = sorted(square for square in measured if square > 0)
    if not xs:
        return np.zeros(len(squares))
    from scipy.optimize import isotonic_regression  # here: the import takes long

    ys = isotonic_regression([0.0, *(max(0.0, measured[x]) for x in xs)]).x  # a larger error never loses less
    xs = [0.0, *xs]
    slope = max((ys[-1] - ys[-2]) / (xs[-1] - xs[-2]), ys[-1] / xs[-1])
    return np.interp(squares, xs, ys) + slope * np.clip(squares - xs[-1], 0.0, None)


def _spread(ranks: Sequence[int], count: int, power: int = 2) -> list[int]:
    """So many of the ranks, the first and the last among them; with a power, closer together where they are small."""
    if len(ranks) <= count:
        return list(ranks)
    places = np.linspace(0, 1, count) ** power * (len(ranks) - 1)
    return [ranks[place] for place in sorted({round(float(place)) for place in places})]
