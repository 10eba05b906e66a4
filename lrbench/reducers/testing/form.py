"""Checks for every reducer: each is a function whose docstring is the sentence that it checks."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from lrbench.linalg import optimal_errors, predicted_loss
from lrbench.reducers.base import NAME, PROMISES, STATISTICS, Context, Reducer, Slot
from lrbench.reducers.factors import Dense, Factors
from lrbench.reducers.output_check import validate_factors
from lrbench.reducers.shared_results import SharedResults
from lrbench.reducers.testing import matrices as test_matrices
from lrbench.system.text import one_line

#: Largest difference of equal float64 results, relative to ‖W‖.
TOLERANCE = 1e-6
#: The same in float32, where a nearly singular skeleton amplifies rounding by thousands.
SINGLE = 2e-3


class CheckFailedError(Exception):
    """The reducer fails a check."""


class DoesNotApplyError(Exception):
    """The check does not apply to this reducer."""


@dataclass(frozen=True)
class ReducerUnderTest:
    """A reducer under test, with helpers to call it."""

    reducer: Reducer
    device: torch.device

    def context(self, W: Tensor, seed: int = 0, statistics: Mapping[str, Tensor] | None = None) -> Context:
        """A fresh context; the same seed gives the same generator.

        Calibrated methods get `statistics`, by default white ones, where they equal uncalibrated methods.
        """
        shape = (W.shape[0], W.shape[1])
        slot = Slot(name="model.layers.0.mlp.up_proj.weight", layer=0, role="mlp.up", shape=shape)
        white = {
            "second_moment": torch.eye(shape[1], dtype=torch.float64, device=self.device),
            "absmean": torch.ones(shape[1], dtype=torch.float64, device=self.device),
            "fisher": torch.ones(shape[1], dtype=torch.float64, device=self.device),
            "output_gradient_moment": torch.eye(shape[0], dtype=torch.float64, device=self.device),
        }
        needed = {name: value for name, value in (statistics or white).items() if name in self.reducer.needs}
        return Context.seeded(slot, self.reducer, seed, statistics=needed)

    def ranks(self, W: Tensor) -> list[int]:
        """Ranks at both ends and in the middle of the possible range."""
        largest = self.reducer.max_rank((W.shape[0], W.shape[1]))
        return sorted({k for k in (1, 2, 3, largest // 2, largest - 1, largest) if 1 <= k <= largest})

    def reduce(self, W: Tensor, rank: int, seed: int = 0, statistics: Mapping[str, Tensor] | None = None) -> Factors:
        """The reducer's factors, validated as in a run."""
        factors = self.reducer.reduce(W, rank, self.context(W, seed, statistics))
        return validate_factors(factors, (W.shape[0], W.shape[1]), rank, self.reducer)

    def matrices(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, Tensor]]:
        """Fresh copies of every kind of matrix, by name."""
        for name, W in test_matrices.kinds().items():
            yield name, W.to(device=self.device, dtype=dtype, copy=True)  # a reducer may write to its weight

    def both(self) -> Iterator[tuple[str, Tensor]]:
        """`matrices` in float64, then in float32."""
        for dtype in (torch.float64, torch.float32):
            for name, W in self.matrices(dtype):
                yield (name if dtype == torch.float64 else f"{name}, float32"), W


def _require(condition: bool, otherwise: str) -> None:
    # Not `assert`, which `python -O` removes.
    if not condition:
        raise CheckFailedError(otherwise)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double()))


def _close(actual: Tensor, expected: Tensor, scale: float, where: str, tolerance: float = TOLERANCE) -> None:
    _require(actual.shape == expected.shape, f"{where}: {tuple(actual.shape)} is not {tuple(expected.shape)}")
    distance = _norm(actual.double() - expected.double())
    if not distance <= tolerance * scale:
        raise CheckFailedError(f"{where}: they differ by {distance / scale if scale else distance:.1e} of ‖W‖")


# Checks on form: these hold for every reducer.


def _declared(s: ReducerUnderTest) -> None:
    """is declared well: its name, promises, needs and largest rank"""
    reducer = s.reducer
    named = NAME.fullmatch(reducer.name) is not None
    _require(named, f"name is {reducer.name!r}; give it one in lower case, words joined by hyphens")
    for field, declared, known in (("promises", reducer.promises, {*PROMISES}), ("needs", reducer.needs, STATISTICS)):
        unknown = sorted(set(declared) - known)
        _require(not unknown, f"{field} holds {unknown}; known are {', '.join(sorted(known))}")
    rank_of = reducer.rank_of
    valid = isinstance(rank_of, str) and rank_of != ""
    _require(valid, f"rank_of is {rank_of!r}; name the object that has the rank, as 'each block'")
    for shape in ((12, 20), (20, 12), (1, 9), (9, 1)):
        largest = reducer.max_rank(shape)
        _require(largest >= 1, f"max_rank gives {largest} for {shape}; at least 1 must be possible")


def _valid(s: ReducerUnderTest) -> None:
    """returns finite factors of the right shape, rank, size, dtype and device"""
    for dtype in (torch.float32, torch.float64):
        for name, W in s.matrices(dtype):
            for rank in s.ranks(W):
                factors = s.reduce(W, rank)
                where = f"{name}, rank {rank}"
                _require(factors.dtype == dtype, f"{where}: factors are {factors.dtype} for a weight of {dtype}")
                _require(factors.device == W.device, f"{where}: factors are on {factors.device}, not {W.device}")


def _odd_matrices(s: ReducerUnderTest) -> None:
    """copes with zeros, rank deficiency, one row, one column and one entry"""
    for name, W in test_matrices.odd():
        for dtype in (torch.float32, torch.float64):
            for rank in s.ranks(W):
                try:
                    s.reduce(W.to(device=s.device, dtype=dtype), rank)
                except Exception as error:
                    raise CheckFailedError(f"{name}, {dtype}, rank {rank}: {one_line(error)}") from error


def _non_contiguous(s: ReducerUnderTest) -> None:
    """gives the same for a weight that is not contiguous in memory"""
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            strided = torch.stack([W, -W], dim=-1)[..., 0]
            _close(s.reduce(strided, rank).dense(), s.reduce(W, rank).dense(), _norm(W), f"{name}, rank {rank}")


def _size(s: ReducerUnderTest) -> None:
    """stores what stored_numbers says"""
    if s.reducer.stored_numbers((12, 20), 3) is None:
        raise DoesNotApplyError("stored_numbers is not given; keep is found by building")
    for name, W in s.matrices():
        for rank in s.ranks(W):
            factors, stated = s.reduce(W, rank), s.reducer.stored_numbers((W.shape[0], W.shape[1]), rank)
            if stated is None:
                raise CheckFailedError(f"{name}, rank {rank}: stored_numbers gives None for some shapes only")
            _require(stated > 0, f"{name}, rank {rank}: stored_numbers gives {stated}")
            exact = s.reducer.rank_of == "weight" and (factors.rank == rank or isinstance(factors, Dense))
            agrees = factors.stored_numbers == stated if exact else factors.stored_numbers <= stated
            _require(agrees, f"{name}, rank {rank}: {factors.stored_numbers} parameters stored, {stated} stated")


def _apply(s: ReducerUnderTest) -> None:
    """factors apply to a token as their dense matrix does"""
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            factors = s.reduce(W, rank)
            x = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)[None]
            _close(factors.apply(x)[0], factors.dense().T, _norm(W), f"{name}, rank {rank}")


def _eckart_young(s: ReducerUnderTest) -> None:
    """is never better than the Eckart-Young optimum"""
    for name, W in s.matrices():
        optimum = [*optimal_errors(W), *[0.0] * max(W.shape)]
        for rank in s.ranks(W):
            factors = s.reduce(W, rank)
            error, best = _norm(W - factors.dense()), optimum[factors.rank]
            least = best * (1 - 1e-6) - 1e-12 * _norm(W)
            where = f"{name}, rank {rank}, factors of rank {factors.rank}"
            _require(error >= least, f"{where}: error {error:.6g}, least possible {best:.6g}")


def _deterministic(s: ReducerUnderTest) -> None:
    """gives the same bits for the same seed"""
    for name, W in s.matrices(torch.float32):
        for rank in s.ranks(W)[:3]:
            first, second = s.reduce(W, rank).dense(), s.reduce(W, rank).dense()
            _require(torch.equal(first, second), f"{name}, rank {rank}: two runs differ; use context.generator")


def _says_that_it_draws(s: ReducerUnderTest) -> None:
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


def _leaves_global_state(s: ReducerUnderTest) -> None:
    """leaves global random state alone"""
    for name, W in s.matrices():
        for rank in s.ranks(W)[:3]:
            # Advance every stream, or a reducer that reseeds would always restore its own state.
            torch.rand(1), numpy.random.random(), random.random()
            before = _global_state()
            s.reduce(W, rank)
            _require(
                _global_state() == before, f"{name}, rank {rank}: global random state moved; use context.generator"
            )


def _leaves_weight(s: ReducerUnderTest) -> None:
    """does not write to the weight"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            weight = W.clone()
            version = weight._version
            s.reduce(weight, rank)
            _require(torch.equal(weight, W), f"{name}, rank {rank}: the weight was changed; work on a copy")
            _require(weight._version == version, f"{name}, rank {rank}: the weight was written to; work on a copy")


def _ranks_alone(s: ReducerUnderTest) -> None:
    """gives the same at a rank whichever other ranks are requested, in any order"""
    for name, W in s.matrices():
        ranks, scale = s.ranks(W), _norm(W)
        together = s.reducer.prepare(W, ranks, s.context(W))
        results = {rank: together.at_rank(rank).dense() for rank in reversed(ranks)}
        for rank in ranks:
            where = f"{name}, rank {rank}"
            alone = s.reducer.prepare(W, [rank], s.context(W)).at_rank(rank).dense()
            _close(alone, results[rank], scale, f"{where} alone and among {ranks}")
            _close(together.at_rank(rank).dense(), results[rank], scale, f"{where} requested twice")
        unannounced = s.reducer.prepare(W, ranks[-1:], s.context(W)).at_rank(ranks[0]).dense()
        _close(unannounced, results[ranks[0]], scale, f"{name}, rank {ranks[0]} not announced to prepare")


def _reduce_is_prepare(s: ReducerUnderTest) -> None:
    """gives the same by reduce as by prepare and at_rank"""
    for name, W in s.matrices():
        for rank in s.ranks(W):
            prepared = s.reducer.prepare(W, [rank], s.context(W)).at_rank(rank)
            _close(s.reduce(W, rank).dense(), prepared.dense(), _norm(W), f"{name}, rank {rank}")


def _error_curve(s: ReducerUnderTest) -> None:
    """has correct errors() where it has any"""
    seen = False
    cases = [*s.matrices(), *((name, W.to(s.device)) for name, W, _ in test_matrices.deficient())]
    for name, W in cases:
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
            _require(same, f"{name}, rank {rank}: errors() states {stated:.6g}, the factors have {measured:.6g}")
    if not seen:
        raise DoesNotApplyError("errors() is not given; errors are measured on the factors")


def _loss_curve(s: ReducerUnderTest) -> None:
    """has correct predicted_losses() where it has any"""
    seen = False
    for name, W in s.matrices():
        H, G = (test_matrices.second_moment(size, 17).to(W.device) for size in (W.shape[1], W.shape[0]))
        ranks = s.ranks(W)
        prepared = s.reducer.prepare(W, ranks, s.context(W))
        losses = prepared.predicted_losses(ranks, H, G)
        if losses is None:
            continue
        seen = True
        _require(len(losses) == len(ranks), f"{name}: {len(losses)} predicted losses for {len(ranks)} ranks")
        total = predicted_loss(W, H, G)
        for rank, stated in zip(ranks, losses, strict=True):
            measured = predicted_loss(W - prepared.at_rank(rank).dense(), H, G)
            same = math.isclose(stated, measured, rel_tol=1e-3, abs_tol=TOLERANCE * total)
            where = f"{name}, rank {rank}"
            _require(same, f"{where}: predicted_losses() states {stated:.6g}, the factors have {measured:.6g}")
    if not seen:
        raise DoesNotApplyError("predicted_losses() is not given; predicted losses are measured on the factors")


def _shares(s: ReducerUnderTest) -> None:
    """takes shared results: gives the same from them, and does not write to them"""
    for name, W in s.matrices():
        shared = SharedResults()
        for rank in s.ranks(W)[:3]:
            alone = s.reducer.prepare(W, [rank], s.context(W)).at_rank(rank).dense()
            for _ in range(2):  # computed by the first, reused by the second
                context = dataclasses.replace(s.context(W), shared=shared)
                reused = s.reducer.prepare(W, [rank], context).at_rank(rank).dense()
                written = shared.modified()
                _require(
                    written is None, f"{name}, rank {rank}: the result of {written} was written to; clone it first"
                )
                _close(reused, alone, _norm(W), f"{name}, rank {rank}, from shared results")


#: Checks for every reducer. The first two are preconditions of the others.
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
    _loss_curve,
    _shares,
)
