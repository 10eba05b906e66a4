"""What `lrbench.testing` checks: each check is a function whose docstring is the sentence it proves of a reducer."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy
import torch
from torch import Tensor

from lrbench import specimens
from lrbench.errors import one_line
from lrbench.factors import CUR, ColumnSubset, Dense, Factors, Interpolative
from lrbench.linalg import optimal_errors
from lrbench.reducer import NAME, PROMISES, STATISTICS, Context, Reducer, Slot
from lrbench.validate import validate_factors

#: Relative to ‖W‖, what two float64 results may differ by and still be called equal.
TOLERANCE = 1e-6


class BrokenError(Exception):
    """A check found something wrong."""


class DoesNotApplyError(Exception):
    """The check does not apply to this reducer."""


@dataclass(frozen=True)
class Subject:
    """The reducer under test, and how it is called."""

    reducer: Reducer
    device: torch.device

    def context(self, W: Tensor, seed: int = 0) -> Context:
        """A fresh context: the same seed gives the same generator."""
        shape = (W.shape[0], W.shape[1])
        slot = Slot(name="model.layers.0.mlp.up_proj.weight", layer=0, role="mlp.up", shape=shape)
        # Calibrated methods are given the statistics of white inputs, on which they reduce to the plain ones.
        neutral = {
            "second_moment": torch.eye(shape[1], dtype=torch.float64, device=self.device),
            "absmean": torch.ones(shape[1], dtype=torch.float64, device=self.device),
            "fisher": torch.ones(shape, dtype=torch.float64, device=self.device),
        }
        statistics = {name: neutral[name] for name in self.reducer.needs if name in neutral}
        return Context.seeded(slot, self.reducer, seed, statistics=statistics)

    def ranks(self, W: Tensor) -> list[int]:
        """Both ends and the middle of what is possible."""
        largest = self.reducer.max_rank((W.shape[0], W.shape[1]))
        return sorted({k for k in (1, 2, 3, largest // 2, largest - 1, largest) if 1 <= k <= largest})

    def reduce(self, W: Tensor, rank: int, seed: int = 0) -> Factors:
        """What the reducer returns, refused as the harness would refuse it."""
        factors = self.reducer.reduce(W, rank, self.context(W, seed))
        return validate_factors(factors, (W.shape[0], W.shape[1]), rank, self.reducer)

    def matrices(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, Tensor]]:
        """Fresh copies of every kind of matrix, by name."""
        for name, W in specimens.kinds().items():
            yield name, W.to(device=self.device, dtype=dtype, copy=True)  # a reducer may write to what it is given


def _require(condition: bool, otherwise: str) -> None:
    # Not `assert`, which python -O would take out of every check.
    if not condition:
        raise BrokenError(otherwise)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double()))


def _close(found: Tensor, expected: Tensor, scale: float, what: str, tolerance: float = TOLERANCE) -> None:
    _require(found.shape == expected.shape, f"{what}: {tuple(found.shape)} is not {tuple(expected.shape)}")
    distance = _norm(found.double() - expected.double())
    if not distance <= tolerance * scale:
        raise BrokenError(f"{what}: they differ by {distance / scale if scale else distance:.1e} of ‖W‖")


# Checks on form: these hold for every reducer.


def _declared(s: Subject) -> None:
    """is declared well: its name, promises, needs and largest rank"""
    reducer = s.reducer
    named = NAME.fullmatch(reducer.name) is not None
    _require(named, f"name is {reducer.name!r}; give it one in lower case, words joined by hyphens")
    for what, declared, known in (("promises", reducer.promises, {*PROMISES}), ("needs", reducer.needs, STATISTICS)):
        unknown = sorted(set(declared) - known)
        _require(not unknown, f"{what} holds {unknown}; known are {', '.join(sorted(known))}")
    what = reducer.rank_of
    _require(isinstance(what, str) and what != "", f"rank_of is {what!r}; say what has the rank, as 'each block'")
    for shape in ((12, 20), (20, 12), (1, 9), (9, 1)):
        largest = reducer.max_rank(shape)
        _require(largest >= 1, f"max_rank gives {largest} for {shape}; at least 1 must be possible")


def _valid(s: Subject) -> None:
    """returns finite factors of the right shape, rank, size, dtype and device"""
    for dtype in (torch.float32, torch.float64):
        for name, W in s.matrices(dtype):
            for rank in s.ranks(W):
                factors = s.reduce(W, rank)
                where = f"{name}, rank {rank}"
                _require(factors.dtype == dtype, f"{where}: factors are {factors.dtype} for a weight of {dtype}")
                _require(factors.device == W.device, f"{where}: factors are on {factors.device}, not {W.device}")


def _odd_matrices(s: Subject) -> None:
    """copes with zeros, rank deficiency, one row, one column and one entry"""
    for name, W in specimens.odd():
        for dtype in (torch.float32, torch.float64):
            for rank in s.ranks(W):
                try:
                    s.reduce(W.to(device=s.device, dtype=dtype), rank)
                except Exception as error:
                    raise BrokenError(f"{name}, {dtype}, rank {rank}: {one_line(error)}") from error


def _non_contiguous(s: Subject) -> None:
    """gives the same for a weight that is not contiguous in memory"""
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            strided = torch.stack([W, -W], dim=-1)[..., 0]
            _close(s.reduce(strided, rank).dense(), s.reduce(W, rank).dense(), _norm(W), f"{name}, rank {rank}")


def _size(s: Subject) -> None:
    """stores what stored_numbers says"""
    if s.reducer.stored_numbers((12, 20), 3) is None:
        raise DoesNotApplyError("stored_numbers is not given; keep is found by building")
    for name, W in s.matrices():
        for rank in s.ranks(W):
            factors, stated = s.reduce(W, rank), s.reducer.stored_numbers((W.shape[0], W.shape[1]), rank)
            if stated is None:
                raise BrokenError(f"{name}, rank {rank}: stored_numbers gives None for some shapes only")
            _require(stated > 0, f"{name}, rank {rank}: stored_numbers gives {stated}")
            exact = s.reducer.rank_of == "weight" and (factors.rank == rank or isinstance(factors, Dense))
            agrees = factors.stored_numbers == stated if exact else factors.stored_numbers <= stated
            _require(agrees, f"{name}, rank {rank}: {factors.stored_numbers} are stored, {stated} stated")


def _apply(s: Subject) -> None:
    """factors apply to a token as their dense matrix does"""
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            factors = s.reduce(W, rank)
            x = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)[None]
            _close(factors.apply(x)[0], factors.dense().T, _norm(W), f"{name}, rank {rank}")


def _eckart_young(s: Subject) -> None:
    """is never better than the Eckart-Young optimum"""
    for name, W in s.matrices():
        optimum = [*optimal_errors(W), *[0.0] * max(W.shape)]
        for rank in s.ranks(W):
            factors = s.reduce(W, rank)
            error, possible = _norm(W - factors.dense()), optimum[factors.rank]
            least = possible * (1 - 1e-6) - 1e-12 * _norm(W)
            where = f"{name}, rank {rank}, factors of rank {factors.rank}"
            _require(error >= least, f"{where}: error {error:.6g}, least possible {possible:.6g}")


def _deterministic(s: Subject) -> None:
    """gives the same bits for the same seed"""
    for name, W in s.matrices(torch.float32):
        for rank in s.ranks(W)[:3]:
            first, second = s.reduce(W, rank).dense(), s.reduce(W, rank).dense()
            _require(torch.equal(first, second), f"{name}, rank {rank}: two runs differ; use context.generator")


def _says_that_it_draws(s: Subject) -> None:
    """says that it is randomized where it draws at random"""
    declared = s.reducer.randomized
    _require(isinstance(declared, bool), f"randomized is {declared!r}; True or False")
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            context = s.context(W)
            before = context.generator.get_state()
            s.reducer.reduce(W, rank, context)
            drawn = not torch.equal(before, context.generator.get_state())
            _require(
                declared or not drawn, f"{name}, rank {rank}: draws; set randomized = True, for `seeds` to repeat it"
            )


def _global_state() -> list[object]:
    states: list[object] = [
        torch.get_rng_state().tolist(),
        random.getstate(),
        repr(numpy.random.get_state(legacy=False)),
    ]
    if torch.cuda.is_available():
        states.append([state.tolist() for state in torch.cuda.get_rng_state_all()])
    return states


def _leaves_global_state(s: Subject) -> None:
    """leaves global random state alone"""
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            # A fresh place in every stream, or a reducer that reseeds would always find the state that it left.
            torch.rand(1), numpy.random.random(), random.random()
            before = _global_state()
            s.reduce(W, rank)
            _require(
                _global_state() == before, f"{name}, rank {rank}: global random state moved; use context.generator"
            )


def _leaves_weight(s: Subject) -> None:
    """does not write to the weight"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            given = W.clone()
            version = given._version
            s.reduce(given, rank)
            _require(torch.equal(given, W), f"{name}, rank {rank}: the weight was changed; work on a copy")
            _require(given._version == version, f"{name}, rank {rank}: the weight was written to; work on a copy")


def _ranks_alone(s: Subject) -> None:
    """gives the same at a rank whichever other ranks are asked, and in whichever order"""
    for name, W in s.matrices():
        ranks, scale = s.ranks(W), _norm(W)
        together = s.reducer.prepare(W, ranks, s.context(W))
        results = {rank: together.at_rank(rank).dense() for rank in reversed(ranks)}
        for rank in ranks:
            where = f"{name}, rank {rank}"
            alone = s.reducer.prepare(W, [rank], s.context(W)).at_rank(rank).dense()
            _close(alone, results[rank], scale, f"{where} alone and among {ranks}")
            _close(together.at_rank(rank).dense(), results[rank], scale, f"{where} asked twice")
        unannounced = s.reducer.prepare(W, ranks[-1:], s.context(W)).at_rank(ranks[0]).dense()
        _close(unannounced, results[ranks[0]], scale, f"{name}, rank {ranks[0]} not announced to prepare")


def _reduce_is_prepare(s: Subject) -> None:
    """gives the same by reduce as by prepare and at_rank"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            prepared = s.reducer.prepare(W, [rank], s.context(W)).at_rank(rank)
            _close(s.reduce(W, rank).dense(), prepared.dense(), _norm(W), f"{name}, rank {rank}")


def _error_curve(s: Subject) -> None:
    """knows its errors where it says it does"""
    seen = False
    every = [*s.matrices(), *((name, W.to(s.device)) for name, W, _ in specimens.deficient())]
    for name, W in every:
        ranks = s.ranks(W)
        prepared = s.reducer.prepare(W, ranks, s.context(W))
        errors = prepared.errors(ranks)
        if errors is None:
            continue
        seen = True
        _require(len(errors) == len(ranks), f"{name}: {len(errors)} errors for {len(ranks)} ranks")
        for rank, stated in zip(ranks, errors, strict=True):
            measured = _norm(W - prepared.at_rank(rank).dense())
            same = math.isclose(stated, measured, rel_tol=1e-3, abs_tol=TOLERANCE * _norm(W))
            _require(same, f"{name}, rank {rank}: errors says {stated:.6g}, the factors have {measured:.6g}")
    if not seen:
        raise DoesNotApplyError("errors is not given; errors are measured on the factors")


# Checks of promises.


def _exact(s: Subject) -> None:
    """promises to be exact, and is: at full rank, and from the rank of the weight on"""
    for name, W in s.matrices():
        largest = s.reducer.max_rank((W.shape[0], W.shape[1]))
        _close(s.reduce(W, largest).dense(), W, _norm(W), f"{name}, rank {largest}")
    for name, matrix, least in specimens.deficient():
        W = matrix.to(s.device)
        for rank in range(least, s.reducer.max_rank((W.shape[0], W.shape[1])) + 1):
            _close(s.reduce(W, rank).dense(), W, _norm(W), f"{name}, at rank {rank}")


def _monotone(s: Subject) -> None:
    """promises an error that never grows with the rank, and keeps it"""
    for name, W in s.matrices():
        ranks = range(1, s.reducer.max_rank((W.shape[0], W.shape[1])) + 1)
        errors = [_norm(W - s.reduce(W, rank).dense()) for rank in ranks]
        for rank, (before, after) in enumerate(pairwise(errors), start=2):
            grows = after > before * (1 + TOLERANCE) + TOLERANCE * _norm(W)
            _require(not grows, f"{name}: the error grows from {before:.6g} to {after:.6g} at rank {rank}")


def _optimal(s: Subject) -> None:
    """promises the Eckart-Young optimum, and attains it"""
    for name, W in s.matrices():
        optimum = optimal_errors(W)
        for rank in s.ranks(W):
            error = _norm(W - s.reduce(W, rank).dense())
            attained = error <= optimum[rank] * (1 + TOLERANCE) + TOLERANCE * _norm(W)
            _require(attained, f"{name}, rank {rank}: error {error:.6g}, the optimum is {optimum[rank]:.6g}")


def _columns(s: Subject) -> None:
    """promises a result made of columns of the weight, and keeps it"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            factors, where = s.reduce(W, rank), f"{name}, rank {rank}"
            if isinstance(factors, CUR):
                _require(torch.equal(factors.C, W[:, factors.columns]), f"{where}: C is not W[:, columns]")
                _require(torch.equal(factors.R, W[factors.rows]), f"{where}: R is not W[rows]")
            elif isinstance(factors, Interpolative) and factors.side == "columns":
                _require(
                    torch.equal(factors.skeleton, W[:, factors.indices]), f"{where}: skeleton is not W[:, indices]"
                )
            elif isinstance(factors, ColumnSubset):
                own = W[:, factors.indices]
                scale = (own * factors.columns).sum(0) / own.square().sum(0).clamp(min=1e-300)
                _close(own * scale, factors.columns, max(_norm(W), _norm(factors.columns)), f"{where}: scaled columns")
            else:
                raise BrokenError(f"{where}: {type(factors).__name__} does not hold columns of the weight")


def _idempotent(s: Subject) -> None:
    """promises that reducing again changes nothing, and keeps it"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            once = s.reduce(W, rank).dense()
            _close(s.reduce(once, rank).dense(), once, _norm(W), f"{name}, rank {rank}")


def _homogeneous(s: Subject) -> None:
    """promises that a multiple of the weight gives that multiple of the result, and keeps it"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            for c in (-2.5, 1e-3):
                expected = c * s.reduce(W, rank).dense()
                _close(s.reduce(c * W, rank).dense(), expected, abs(c) * _norm(W), f"{name}, rank {rank}, c = {c}")


#: Checks made of every reducer. The first two are preconditions of the others.
FORM = (
    _declared,
    _valid,
    _odd_matrices,
    _non_contiguous,
    _size,
    _apply,
    _eckart_young,
    _deterministic,
    _says_that_it_draws,
    _leaves_global_state,
    _leaves_weight,
    _ranks_alone,
    _reduce_is_prepare,
    _error_curve,
)

#: The check of each promise.
PROMISED = {
    "exact": _exact,
    "monotone": _monotone,
    "optimal": _optimal,
    "columns": _columns,
    "idempotent": _idempotent,
    "homogeneous": _homogeneous,
}
if set(PROMISED) != set(PROMISES):
    raise RuntimeError("every promise has its check")
