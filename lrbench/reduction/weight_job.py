"""Runs one reducer on one slot. The only module that calls reducers, times them and checks their output."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from lrbench.errors import FOREIGN, LrbenchError, ReducerError
from lrbench.models.slots import WeightSlot
from lrbench.reducers.base import Context, Prepared
from lrbench.reducers.factors import Dense, Factors
from lrbench.reducers.output_check import validate_factors
from lrbench.reducers.ranks import RankRequest
from lrbench.reducers.shared_results import SharedCost, SharedResults
from lrbench.reduction.calibration.loss_moments import LossMoments
from lrbench.reduction.plan import Method
from lrbench.reduction.reduced_weight import Reduction, working_dtype
from lrbench.results.rows import Edit
from lrbench.system.device import synchronize
from lrbench.system.isolation import process_state_kept
from lrbench.system.text import one_line

_T = TypeVar("_T")


@dataclass
class WorkingCopy:
    """The cached working copy of a slot's weight or update, with the results that reducers share."""

    weight: torch.Tensor  # (out, in)
    shared: SharedResults
    base: torch.Tensor | None = None  # (out, in); the base's weight if `weight` is an update, in the model's dtype

    @property
    def nbytes(self) -> int:
        """Total bytes."""
        return self.weight.nbytes + self.shared.nbytes + (0 if self.base is None else self.base.nbytes)


class BaseWeights(Protocol):
    """Provides the base's weights."""

    def slot(self, slot: WeightSlot) -> WeightSlot:
        """The base's slot that corresponds to the fine-tuned model's; raises ModelError."""


class Statistics(Protocol):
    """Provides the statistics of calibrated methods."""

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[Mapping[str, torch.Tensor], float]:
        """Statistics of a slot's inputs by kind, and the seconds of collecting them; raises ReducerError."""

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """E[x xᵀ] (in, in) of a slot's inputs, for output errors; raises ReducerError."""

    def loss_moments(self, slot: WeightSlot) -> LossMoments | None:
        """The moments of a slot's predicted loss; None if they are unknown."""

    def loss(self) -> float:
        """The current model's mean loss on the calibration text, in nats per token."""

    @property
    def held_out_tokens(self) -> int:
        """The number of tokens of the held-out text."""

    def held_out_loss(self) -> float:
        """The current model's mean loss on the held-out part of the calibration text, in nats per token."""


@dataclass(frozen=True)
class Preparation:
    """A reducer's preparation of a weight, its seconds, and its charges for shared results."""

    prepared: Prepared
    seconds: float
    cost: SharedCost


class WeightJob:
    """Calls one reducer on one slot, times it, and turns its failures into ReducerErrors."""

    def __init__(
        self,
        slot: WeightSlot,
        method: Method,
        seed: int,
        copy: WorkingCopy,
        calibration: Statistics | None = None,
        base: BaseWeights | None = None,
    ) -> None:
        self.slot, self.method, self._seed = slot, method, seed
        self.statistics: Mapping[str, torch.Tensor] = {}
        self.calibrate_seconds = 0.0
        if calibration is not None and method.reducer.needs:
            self.statistics, self.calibrate_seconds = calibration.statistics(slot, method.reducer.needs)
        self._versions = {name: statistic._version for name, statistic in self.statistics.items()}
        self.weight, self.shared = copy.weight, copy.shared  # (out, in)
        self._base, self._base_slot = copy.base, None if base is None else base.slot(slot)
        if not bool(self.weight.isfinite().all()):
            row, column = (~self.weight.isfinite()).nonzero()[0].tolist()
            value = float(self.weight[row, column])
            raise ReducerError(f"{slot.name}: the weight holds {value} at [{row}, {column}]; repair the checkpoint")

    def context(self, corner: torch.Size | None = None) -> Context:
        """The reducer's context for the weight, or for its first rows and columns, a corner of that shape."""
        statistics = {name: _of_corner(name, statistic, corner) for name, statistic in self.statistics.items()}
        return Context.seeded(self.slot.about, self.method.reducer, self._seed, statistics=statistics)

    def prepare(self, ranks: Sequence[int]) -> Preparation:
        """Runs and times the preparation for `ranks`."""
        context = dataclasses.replace(self.context(), shared=self.shared)
        cost = SharedCost()
        seconds, prepared = self._timed(
            "prepare", lambda: self.method.reducer.prepare(self.weight, ranks, context), cost
        )
        return Preparation(prepared, seconds, cost)

    def at_rank(self, preparation: Preparation, rank: int) -> tuple[Factors, float, dict[str, Any]]:
        """Checked factors, seconds including the preparation's, and the parameters that the method chose."""
        cost = preparation.cost.copy()  # the preparation's charges are included in its seconds
        seconds, factors = self._timed(f"rank {rank}", lambda: preparation.prepared.at_rank(rank), cost)
        chosen = dict(preparation.prepared.chosen(rank))
        for name, value in chosen.items():
            if not (isinstance(name, str) and isinstance(value, str | int | float | bool)):
                raise ReducerError(
                    f"{self.slot.name}: {self.method.label}: chosen() returned {name!r}: {value!r}; return plain values"
                )
        try:
            checked = validate_factors(factors, self.slot.about.shape, rank, self.method.reducer)
        except ReducerError as error:
            raise ReducerError(f"{self.slot.name}: {error}") from None
        return checked, preparation.seconds + seconds, chosen

    def check_error(self, factors: Factors, request: RankRequest, optimum: Sequence[float]) -> None:
        """Refuses factors better than any matrix of their rank, or worse than the reducer's own error curve.

        Checked before rounding to the model's dtype; the tolerance covers rounding in the weight's dtype.
        """
        norm = optimum[0]
        error = _norm(self.weight - factors.dense()) / norm if norm else 0.0
        least = optimum[min(factors.rank, len(optimum) - 1)] / norm if norm else 0.0
        if error < least * (1 - 1e-3) - 1e-5:
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} has error {error:.3g} at rank {factors.rank}, where no matrix "
                f"has less than {least:.3g}; it reports a wrong rank"
            )
        if request.kind == "error" and error > request.value * (1 + 1e-3) + 1e-5:
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} has error {error:.3g} where its errors() promised at most "
                f"{request.value:g}; correct its errors()"
            )

    def round_and_measure(
        self, factors: Factors, optimum: Sequence[float], seconds: float, chosen: dict[str, Any]
    ) -> Reduction:
        """Rounds factors (or Ŵ, if that is smaller) to the model's dtype and measures the rounded result."""
        return self.measure(self.round(factors, seconds, chosen), optimum)

    def round(self, factors: Factors, seconds: float, chosen: dict[str, Any]) -> Reduction:
        """Factors (or Ŵ, if that is smaller) rounded to the model's dtype, without a record of the edit."""
        rows, columns = self.slot.about.shape
        dtype = self.slot.tensor().dtype
        smaller = factors.stored_numbers < rows * columns
        stored = factors.to(dtype=dtype) if smaller else Dense(factors.dense().to(dtype))
        # The rank of the factors may differ from the requested one: Dense factors, or repeated random draws.
        base, calibrate_seconds = self._base_slot, self.calibrate_seconds
        no_edit: Any = None
        return Reduction(stored, no_edit, seconds, calibrate_seconds, base, rank=factors.rank, chosen=chosen)

    def measure(self, reduction: Reduction, optimum: Sequence[float]) -> Reduction:
        """The reduction with the record of its edit."""
        stored, rank = reduction.factors, reduction.rank
        rows, columns = self.slot.about.shape
        smaller = stored.stored_numbers < rows * columns
        rounded = self.rounded(reduction)
        if not bool(rounded.isfinite().all()):
            dtype = str(self.slot.tensor().dtype).removeprefix("torch.")
            raise ReducerError(
                f"{self.slot.name}: the result of {self.method.label} at rank {rank} overflows {dtype}; "
                "its factors are badly scaled"
            )
        norm = optimum[0]
        least = optimum[min(rank, len(optimum) - 1)] / norm if norm else 0.0
        edit = Edit(
            weight=self.slot.name, layer=self.slot.about.layer, role=self.slot.about.role,
            shape=self.slot.about.shape, rank=rank, stored_numbers=stored.stored_numbers,
            stored_bytes=stored.stored_bytes, stored_as="factors" if smaller else "dense",
            relative_error=_norm(self.weight - rounded) / norm if norm else _norm(rounded),
            optimal_error=least if self.method.reducer.rank_of == "weight" else None, chosen=dict(reduction.chosen),
        )  # fmt: skip
        return dataclasses.replace(reduction, edit=edit)

    def rounded(self, reduction: Reduction) -> torch.Tensor:
        """Ŵ (out, in) after rounding to the model's dtype, in the dtype of `weight`.

        For an update, the sum with the base is rounded, then the base is subtracted.
        """
        placed = reduction.matrix().to(self.slot.tensor().dtype).to(self.weight.dtype)
        return placed if self._base is None else placed - self._base.to(self.weight.dtype)

    def _timed(self, stage: str, call: Callable[[], _T], cost: SharedCost) -> tuple[float, _T]:
        """Seconds of a call and its result. Shared results are charged in full, even if another method made them."""
        charged, spent = cost.charged, cost.spent
        synchronize(self.weight.device)
        try:
            with process_state_kept(), self.shared.counted_in(cost):
                started = time.perf_counter()
                result = call()
                synchronize(self.weight.device)
                elapsed = time.perf_counter() - started
        except FOREIGN as error:  # a plugin may raise anything
            text = f"{self.slot.name}: {self.method.label} failed at {stage}: {one_line(error)}"
            raise ReducerError(text) from error
        if not torch.equal(self.weight, reduced_matrix(self.slot, self._base)):
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to the weight it is given; clone it first"
            )
        if any(statistic._version != self._versions[name] for name, statistic in self.statistics.items()):
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to the statistics it is given; clone them first"
            )
        if written := self.shared.modified():
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to the shared result {written}; clone it first"
            )
        return elapsed - (cost.spent - spent) + (cost.charged - charged), result


@contextlib.contextmanager
def failing_as(slot: WeightSlot, method: Method) -> Iterator[None]:
    """Turns any exception of foreign code into a ReducerError that names the slot and the method."""
    try:
        yield
    except LrbenchError:
        raise
    except FOREIGN as error:
        raise ReducerError(f"{slot.name}: {method.label}: {one_line(error)}") from error


def reduced_matrix(slot: WeightSlot, base: torch.Tensor | None) -> torch.Tensor:
    """A copy of the matrix to reduce, (out, in): the weight, or its difference from the base."""
    weight = slot.read()
    dtype = working_dtype(weight.dtype)
    copied = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return copied if base is None else copied.sub_(base.to(dtype))


def _of_corner(kind: str, statistic: torch.Tensor, corner: torch.Size | None) -> torch.Tensor:
    """A statistic of a weight's first outputs and inputs, (out, in) of a corner; the same object if that is None."""
    if corner is None:
        return statistic
    size = corner[0] if kind == "output_gradient_moment" else corner[1]
    return statistic[:size, :size].contiguous() if statistic.ndim == 2 else statistic[:size]


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
