"""Checks of a reducer's promises, and of calibrated reducers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from lrbench.linalg import optimal_errors
from lrbench.reducers.base import PROMISES
from lrbench.reducers.factors import CUR, ColumnSubset, Factors, Interpolative
from lrbench.reducers.testing import matrices as test_matrices
from lrbench.reducers.testing.form import (
    SINGLE,
    TOLERANCE,
    CheckFailedError,
    DoesNotApplyError,
    ReducerUnderTest,
    _close,
    _norm,
    _require,
)


def _tolerance(W: Tensor) -> float:
    return TOLERANCE if W.dtype == torch.float64 else SINGLE


def _exact(s: ReducerUnderTest) -> None:
    """promises to be exact, and is: at full rank, and from the rank of the weight on"""
    for name, W in s.both():
        largest = s.reducer.max_rank((W.shape[0], W.shape[1]))
        _close(s.reduce(W, largest).dense(), W, _norm(W), f"{name}, rank {largest}", _tolerance(W))
    for name, matrix, least in test_matrices.deficient():
        for dtype in (torch.float64, torch.float32):
            W = matrix.to(device=s.device, dtype=dtype)
            for rank in range(least, s.reducer.max_rank((W.shape[0], W.shape[1])) + 1):
                where = f"{name}, {W.dtype}, at rank {rank}"
                _close(s.reduce(W, rank).dense(), W, _norm(W), where, _tolerance(W))


def _monotone(s: ReducerUnderTest) -> None:
    """promises an error that does not increase with the rank, and keeps it"""
    for name, W in s.matrices():
        ranks = range(1, s.reducer.max_rank((W.shape[0], W.shape[1])) + 1)
        errors = [_norm(W - s.reduce(W, rank).dense()) for rank in ranks]
        for rank, (before, after) in enumerate(pairwise(errors), start=2):
            grows = after > before * (1 + TOLERANCE) + TOLERANCE * _norm(W)
            _require(not grows, f"{name}: the error grows from {before:.6g} to {after:.6g} at rank {rank}")


def _optimal(s: ReducerUnderTest) -> None:
    """promises the Eckart-Young optimum, and attains it"""
    for name, W in s.both():
        optimum, tolerance = optimal_errors(W), _tolerance(W)
        for rank in s.ranks(W):
            error = _norm(W - s.reduce(W, rank).dense())
            attained = error <= optimum[rank] * (1 + tolerance) + tolerance * _norm(W)
            _require(attained, f"{name}, rank {rank}: error {error:.6g}, the optimum is {optimum[rank]:.6g}")


def _columns(s: ReducerUnderTest) -> None:
    """promises a result made of columns of the weight, and keeps it"""
    for name, W in s.both():
        for rank in s.ranks(W):
            factors, where = s.reduce(W, rank), f"{name}, rank {rank}"
            if isinstance(factors, ColumnSubset):
                own = W[:, factors.indices]
                scale = (own * factors.columns).sum(0) / own.square().sum(0).clamp(min=torch.finfo(W.dtype).tiny)
                size = max(_norm(W), _norm(factors.columns))
                _close(own * scale, factors.columns, size, f"{where}: scaled columns")
                continue
            held = _skeleton(factors)[1]
            if held is None:
                raise CheckFailedError(f"{where}: {type(factors).__name__} does not hold columns of the weight")
            _require(torch.equal(held[0], W[:, held[1]]), f"{where}: the columns held are not those of W, bit by bit")


def _rows(s: ReducerUnderTest) -> None:
    """promises a result made of rows of the weight, and keeps it"""
    for name, W in s.both():
        for rank in s.ranks(W):
            factors, where = s.reduce(W, rank), f"{name}, rank {rank}"
            held = _skeleton(factors)[0]
            if held is None:
                raise CheckFailedError(f"{where}: {type(factors).__name__} does not hold rows of the weight")
            _require(torch.equal(held[0], W[held[1]]), f"{where}: the rows held are not those of W, bit by bit")


_Held = tuple[Tensor, Tensor] | None  # rows or columns of a weight, and their positions


def _skeleton(factors: Factors) -> tuple[_Held, _Held]:
    """The rows and the columns of a weight that factors hold."""
    if isinstance(factors, CUR):
        return (factors.R, factors.rows), (factors.C, factors.columns)
    if isinstance(factors, Interpolative):
        held = (factors.skeleton, factors.indices)
        return (held, None) if factors.side == "rows" else (None, held)
    if isinstance(factors, ColumnSubset):
        return None, (factors.columns, factors.indices)
    return None, None


def _nested(s: ReducerUnderTest) -> None:
    """promises that a larger rank extends a smaller one, and keeps it: a prefix of the skeleton, or a subspace"""
    for name, W in s.matrices():
        ranks = s.ranks(W)
        prepared = s.reducer.prepare(W, ranks, s.context(W))
        factors = [prepared.at_rank(rank) for rank in ranks]
        for (k, small), (_, large) in pairwise(zip(ranks, factors, strict=True)):
            where = f"{name}, rank {k}"
            pairs = zip(_skeleton(small), _skeleton(large), strict=True)
            held = [(fewer[1], more[1]) for fewer, more in pairs if fewer is not None and more is not None]
            if held and _holds_own(small, W):
                for fewer, more in held:
                    same = torch.equal(fewer, more[: len(fewer)])
                    _require(same, f"{where}: the skeleton is not a prefix of the next rank's")
                continue
            # For other factors, the row or the column space must be a subspace of the next rank's.
            A, B = small.dense(), large.dense()
            outside = min(_outside(A, B, large.rank), _outside(A.T, B.T, large.rank))
            _require(
                outside <= TOLERANCE * _norm(W), f"{where}: {outside / _norm(W):.1e} of it is outside the next rank"
            )


def _holds_own(factors: Factors, W: Tensor) -> bool:
    """Whether the rows and columns that factors hold equal those of W, up to the scale of a ColumnSubset."""
    rows, columns = _skeleton(factors)
    scaled = isinstance(factors, ColumnSubset)
    return (rows is None or torch.equal(rows[0], W[rows[1]])) and (
        scaled or columns is None or torch.equal(columns[0], W[:, columns[1]])
    )


def _outside(A: Tensor, B: Tensor, rank: int) -> float:
    """The norm of the part of A outside the column space of B, which has rank `rank`."""
    U = torch.linalg.svd(B, full_matrices=False)[0][:, :rank]
    return _norm(A - U @ (U.T @ A))


def _refit(s: ReducerUnderTest) -> None:
    """promises least-squares coefficients, and keeps it: the residual is orthogonal to the skeleton"""
    for name, W in s.both():
        for rank in s.ranks(W):
            factors, where = s.reduce(W, rank), f"{name}, rank {rank}"
            rows, columns = _skeleton(factors)
            if rows is None and columns is None:
                raise CheckFailedError(f"{where}: {type(factors).__name__} holds no skeleton to be orthogonal to")
            residual = W - factors.dense()
            if rows is not None:
                residual = residual @ rows[0].T
            if columns is not None:
                residual = columns[0].T @ residual
            # Each skeleton scales the residual, and its rounding, by the norm of the weight.
            scale = _norm(W) ** (1 + (rows is not None) + (columns is not None))
            _require(
                _norm(residual) <= _tolerance(W) * scale,
                f"{where}: {_norm(residual) / scale:.1e} of it is in the residual",
            )


def _transposes(s: ReducerUnderTest) -> None:
    """promises to reduce the transpose to the transpose, and keeps it"""
    if s.reducer.needs:
        raise DoesNotApplyError("the transpose has other inputs, hence other statistics")
    for name, W in s.matrices():
        if W.shape[0] == W.shape[1]:  # where the shorter side is not unique
            continue
        for rank in s.ranks(W):
            expected = s.reduce(W, rank).dense().T
            _close(s.reduce(W.T.contiguous(), rank).dense(), expected, _norm(W), f"{name}, rank {rank}")


def _permutes(s: ReducerUnderTest) -> None:
    """promises that permuting the columns of the weight permutes the result, and keeps it"""
    generator = torch.Generator().manual_seed(1)
    for name, W in s.matrices():
        order = torch.randperm(W.shape[1], generator=generator).to(W.device)
        for rank in s.ranks(W):
            expected = s.reduce(W, rank).dense()[:, order]
            _close(s.reduce(W[:, order].contiguous(), rank).dense(), expected, _norm(W), f"{name}, rank {rank}")


def _idempotent(s: ReducerUnderTest) -> None:
    """promises that reducing again changes nothing, and keeps it"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            once = s.reduce(W, rank).dense()
            _close(s.reduce(once, rank).dense(), once, _norm(W), f"{name}, rank {rank}")


def _homogeneous(s: ReducerUnderTest) -> None:
    """promises that a multiple of the weight gives that multiple of the result, and keeps it"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            for c in (-2.5, 1e-3):
                expected = c * s.reduce(W, rank).dense()
                _close(s.reduce(c * W, rank).dense(), expected, abs(c) * _norm(W), f"{name}, rank {rank}, c = {c}")


# Checks of calibrated reducers, which have `needs`.


def _correlated(W: Tensor, dead: bool = False) -> dict[str, Tensor]:
    """Statistics of correlated inputs and gradients of very different sizes for W (m, n).

    Args:
        dead: whether some inputs and gradients are always zero.
    """
    H, G = (
        test_matrices.second_moment(size, seed, dead).to(W.device)
        for size, seed in ((W.shape[1], 11), (W.shape[0], 13))
    )
    return {
        "second_moment": H,
        "absmean": H.diagonal().mul(2 / torch.pi).sqrt(),
        "fisher": H.diagonal().flip(0).clone(),
        "output_gradient_moment": G,
    }


def _root(H: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(H)
    return vectors * values.clamp(min=0).sqrt()


def _output_optimum(s: ReducerUnderTest) -> None:
    """is never better than the optimum in the norm of the outputs"""
    for name, W in s.matrices():
        statistics = _correlated(W)
        L = _root(statistics["second_moment"])
        optimum = [*optimal_errors(W @ L), *[0.0] * max(W.shape)]
        for rank in s.ranks(W):
            factors = s.reduce(W, rank, statistics=statistics)
            error, least = _norm((W - factors.dense()) @ L), optimum[min(factors.rank, len(optimum) - 1)]
            holds = error >= least * (1 - 1e-6) - 1e-9 * _norm(W @ L)
            _require(holds, f"{name}, rank {rank}: output error {error:.6g}, least possible {least:.6g}")


def _uses_statistics(s: ReducerUnderTest) -> None:
    """gives another result for correlated inputs than for white ones, whatever the inputs' scale"""
    differs = False
    for name, W in s.matrices():
        statistics = _correlated(W)
        for rank in s.ranks(W)[:3]:
            result = s.reduce(W, rank, statistics=statistics).dense()
            differs |= _norm(result - s.reduce(W, rank).dense()) > TOLERANCE * _norm(W)
            larger = {key: 16 * value for key, value in statistics.items()}
            where = f"{name}, rank {rank}, statistics times 16"
            _close(s.reduce(W, rank, statistics=larger).dense(), result, _norm(W), where)
    _require(differs, f"the result does not depend on {', '.join(sorted(s.reducer.needs))}; take it out of `needs`")


def _dead_inputs(s: ReducerUnderTest) -> None:
    """copes with inputs that are always zero, or rejects them with a reason"""
    for name, W in s.matrices():
        statistics = _correlated(W, dead=True)
        for rank in s.ranks(W)[:3]:
            try:
                s.reduce(W, rank, statistics=statistics)
            except ValueError as error:  # shown as a reason in the row
                _require(len(str(error)) > 0, f"{name}, rank {rank}: rejected without a reason")


def _leaves_statistics(s: ReducerUnderTest) -> None:
    """does not write to the statistics"""
    for name, W in s.matrices():
        statistics = _correlated(W)
        versions = {key: value._version for key, value in statistics.items()}
        for rank in s.ranks(W)[:3]:
            s.reduce(W, rank, statistics=statistics)
            written = [key for key, value in statistics.items() if value._version != versions[key]]
            _require(not written, f"{name}, rank {rank}: {', '.join(written)} was written to; work on a copy")


def _output_optimal(s: ReducerUnderTest) -> None:
    """promises the smallest output error of its rank, and attains it"""
    for name, W in s.matrices():
        for inputs, statistics in (("white", None), ("correlated", _correlated(W))):
            H = statistics["second_moment"] if statistics else torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
            L = _root(H)
            optimum, norm = optimal_errors(W @ L), _norm(W @ L)
            for rank in s.ranks(W):
                error = _norm((W - s.reduce(W, rank, statistics=statistics).dense()) @ L)
                attained = error <= optimum[rank] * (1 + TOLERANCE) + TOLERANCE * norm
                where = f"{name}, {inputs} inputs, rank {rank}"
                _require(attained, f"{where}: output error {error:.6g}, the optimum is {optimum[rank]:.6g}")


#: Checks for every reducer with `needs`.
CALIBRATED = (_output_optimum, _uses_statistics, _dead_inputs, _leaves_statistics)

#: The check of each promise.
PROMISED = {
    "exact": _exact,
    "monotone": _monotone,
    "optimal": _optimal,
    "output-optimal": _output_optimal,
    "columns": _columns,
    "rows": _rows,
    "nested": _nested,
    "refit": _refit,
    "transposes": _transposes,
    "permutes": _permutes,
    "idempotent": _idempotent,
    "homogeneous": _homogeneous,
}
if set(PROMISED) != set(PROMISES):
    raise RuntimeError("every promise has its check")
