"""Loss curves over ranks, by which `keep_model` allocates parameters.

    error         |W - What|_F^2 / |W|_F^2
    output-error  |(W - What) H^½|_F^2 / |W H^½|_F^2, H = E[x xᵀ] of the calibration text
    sensitivity   increase of the mean loss on the calibration text, in nats per token, if only this weight is reduced
    loss          ½ tr(G Δ H Δᵀ), Δ = W - What, G = E[g gᵀ] of the loss's gradients in the output: the same, predicted

The first two are relative, because weights and their outputs have no common scale: a normalization or another weight
may undo a factor. The third is measured at a few ranks and interpolated with the help of the first. The fourth needs no
common scale, being in units of the loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lrbench.errors import ReducerError
from lrbench.reducers.factors import Factors
from lrbench.reducers.ranks import RankRequest, find_rank, worthwhile_ranks
from lrbench.reduction.allocation.budget import TOLERANCE, RankOptions
from lrbench.reduction.allocation.knapsack import Options, convex
from lrbench.reduction.weight_job import Preparation, WeightJob

#: Ranks at which factors are built if a method does not know its error curve.
GRID = 12
#: Ranks at which a method with one preparation per rank evaluates its error curve, since each error may be expensive.
EVALUATED = 32
#: Fractions of a weight's parameters at which the loss on text is measured.
MEASURED_AT = (0.25, 0.5, 0.75)
_LEAST_BUILT = 16

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class LossMeasure:
    """Measures the loss of one weight's reduction.

    Attributes:
        of_factors: the loss of given factors.
        of_ranks: the losses of ranks in closed form; returns None if there is none.
        on_text: the loss increase on text, in nats per token, with the factors in the model; None unless requested.
        dropped: the loss without the weight, if losses are predicted; between measured ranks they are then interpolated
            on a logarithmic scale, and measured again at the chosen ranks.
    """

    of_factors: Callable[[Factors], float]
    of_ranks: Callable[[Sequence[int]], Sequence[float] | None]
    on_text: Callable[[Factors], float] | None = None
    dropped: float | None = None


def squared_error(job: WeightJob, preparation: Preparation, norm: float) -> LossMeasure:
    """Measures ‖W − Ŵ‖_F² / ‖W‖_F², by the method's own error curve if it has one.

    Args:
        norm: ‖W‖_F; for a zero weight, absolute errors are used.
    """
    unit = norm or 1.0

    def of_factors(factors: Factors) -> float:
        error = float(torch.linalg.vector_norm(job.weight - factors.dense(), dtype=torch.float64))
        return (error / unit) ** 2

    def of_ranks(ranks: Sequence[int]) -> list[float] | None:
        errors = preparation.prepared.errors(ranks)
        if errors is None:
            return None
        if len(errors) != len(ranks):
            method = job.method.label
            raise ReducerError(f"{job.slot.name}: {method} returned {len(errors)} errors for {len(ranks)} ranks")
        return [(float(error) / unit) ** 2 for error in errors]

    return LossMeasure(of_factors, of_ranks)


def options_by_rank(job: WeightJob, preparation: Preparation, sized: RankOptions, measure: LossMeasure) -> RankOptions:
    """All ranks that store less than the weight, with their known sizes and their losses."""
    if not sized.ranks:
        return sized
    ranks = list(sized.ranks)
    sampled = ranks if job.method.reducer.one_preparation else _spread(ranks, EVALUATED)
    values = measure.of_ranks(sampled)
    if values is None:
        sampled = _spread(ranks, GRID)
        values = [measure.of_factors(job.at_rank(preparation, rank)[0]) for rank in sampled]
    curve = np.array(values, dtype=np.float64)
    if measure.dropped is not None:
        measured = None if len(sampled) == len(ranks) else dict(zip(sampled, values, strict=True))
        return with_measured(RankOptions(sized.ranks, sized.options, measured, measure.dropped), curve)
    if len(sampled) < len(ranks):
        curve = convex(np.array(ranks, float), np.array(sampled, float), curve)
    if measure.on_text is not None:
        curve = _on_text(job, preparation, sized.ranks, sized.options.sizes, curve, measure.on_text)
    return RankOptions(sized.ranks, Options(sized.options.sizes, np.append(curve, 0.0)))


def with_measured(sized: RankOptions, curve: Curve) -> RankOptions:
    """The options with an exact curve, or with one through `measured` that never increases with the rank.

    Between measured ranks the logarithm of the loss is linear in the rank.
    """
    if sized.measured is not None:
        known = sorted(sized.measured)
        losses = np.minimum.accumulate(np.array([sized.measured[rank] for rank in known], dtype=np.float64))
        least = max(float(losses[0]), np.finfo(np.float64).tiny) * 1e-12  # its logarithm exists
        curve = np.exp(np.interp(np.array(sized.ranks, float), known, np.log(np.maximum(losses, least))))
    return dataclasses.replace(sized, options=Options(sized.options.sizes, np.append(curve, 0.0)))


def refined(
    job: WeightJob, preparation: Preparation, sized: RankOptions, measure: LossMeasure, rank: int
) -> RankOptions:
    """The options with the loss of one more rank measured."""
    loss = measure.of_factors(job.at_rank(preparation, rank)[0])
    more = dataclasses.replace(sized, measured={**(sized.measured or {}), rank: loss})
    return with_measured(more, sized.options.losses[:-1])


def options_by_construction(
    job: WeightJob, preparation: Preparation, measure: LossMeasure, parameters: int
) -> RankOptions:
    """A sample of ranks with the size and loss of their factors, for methods whose sizes are unknown or wrong.

    The sample has at least 16 ranks, and enough that steps between them are small relative to the budget's tolerance.

    Args:
        parameters: of the whole model.
    """
    slot, full_size = job.slot, job.slot.size
    ranks = [rank for rank, size in worthwhile_ranks(job.method.reducer, slot.about) if size is not None]
    if not ranks:
        just_below = RankRequest("keep", (full_size - 1) / full_size)
        largest = find_rank(just_below, job.method.reducer, slot.about, None, job.weight, preparation.prepared)
        ranks = list(range(1, largest + 1))
    count = math.ceil(2 * full_size / (TOLERANCE * parameters))
    built: dict[int, tuple[float, int]] = {}
    for rank in _spread(ranks, max(_LEAST_BUILT, count), power=1):
        factors = job.at_rank(preparation, rank)[0]
        size, loss = factors.stored_numbers, measure.of_factors(factors)
        if size < full_size and (size not in built or loss < built[size][0]):
            built[size] = loss, rank
    sizes = np.array([*sorted(built), full_size], dtype=np.int64)
    ranks_kept = tuple(built[size][1] for size in sorted(built))
    curve = np.array([built[size][0] for size in sorted(built)])
    if measure.on_text is not None and ranks_kept:
        curve = _on_text(job, preparation, ranks_kept, sizes, curve, measure.on_text)
    return RankOptions(ranks_kept, Options(sizes, np.append(curve, 0.0)), dropped=measure.dropped or 0.0)


def largest_rank(job: WeightJob, sized: RankOptions | None) -> int:
    """The largest rank that may be requested."""
    if sized is not None:
        return max(sized.ranks, default=1)
    return job.method.reducer.max_rank(job.slot.about.shape)


def _on_text(
    job: WeightJob, preparation: Preparation, ranks: Sequence[int], sizes: NDArray[np.int64], squares: Curve,
    on_text: Callable[[Factors], float],
) -> Curve:  # fmt: skip
    """The loss on text at every rank, from measurements at a few ranks and the squared errors at all.

    The loss is interpolated linearly in the squared error, never falls as the error grows, is at least 0, and is
    extrapolated with the last slope beyond the largest measured error.
    """
    places = {int(np.searchsorted(sizes[: len(ranks)], part * sizes[-1], side="right")) - 1 for part in MEASURED_AT}
    places = {max(0, place) for place in places}
    losses = {place: on_text(job.at_rank(preparation, ranks[place])[0]) for place in places}
    return interpolated(squares, {float(squares[place]): loss for place, loss in losses.items()})


def interpolated(squares: Curve, measured: dict[float, float]) -> Curve:
    """Losses at `squares`, interpolated from measured ones; see `_on_text`."""
    xs = sorted(square for square in measured if square > 0)
    if not xs:
        return np.zeros(len(squares))
    from scipy.optimize import isotonic_regression  # here: the import takes long

    ys = isotonic_regression([0.0, *(max(0.0, measured[x]) for x in xs)]).x  # a larger error never loses less
    xs = [0.0, *xs]
    slope = max((ys[-1] - ys[-2]) / (xs[-1] - xs[-2]), ys[-1] / xs[-1])
    return np.interp(squares, xs, ys) + slope * np.clip(squares - xs[-1], 0.0, None)


def _spread(ranks: Sequence[int], count: int, power: int = 2) -> list[int]:
    """`count` of the ranks including the first and the last; with a power above 1, denser at small ranks."""
    if len(ranks) <= count:
        return list(ranks)
    places = np.linspace(0, 1, count) ** power * (len(ranks) - 1)
    return [ranks[place] for place in sorted({round(float(place)) for place in places})]
