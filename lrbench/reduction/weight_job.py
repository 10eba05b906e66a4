"""One reducer at work on one slot: the only place that calls reducers, times them and judges what they return."""

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
from lrbench.reducers.shared_results import Bill, Shared
from lrbench.reduction.plan import Method
from lrbench.reduction.reduced_weight import Reduction, working_dtype
from lrbench.results.rows import Edit
from lrbench.system.device import synchronize
from lrbench.system.isolation import process_state_kept
from lrbench.system.text import one_line

_T = TypeVar("_T")


@dataclass
class Copy:
    """A slot's weight, or its update, in the dtype that reducers compute in, and what they have computed from it."""

    weight: torch.Tensor  # (out, in)
    shared: Shared
    base: torch.Tensor | None = None  # (out, in); what the weight is an update of, in the model's dtype

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.weight.nbytes + self.shared.nbytes + (0 if self.base is None else self.base.nbytes)


class Bases(Protocol):
    """Where updates have their bases from."""

    def slot(self, slot: WeightSlot) -> WeightSlot:
        """The base's slot for one of the fine-tuned model's; raises ModelError."""


class Statistics(Protocol):
    """Where calibrated methods have their statistics from."""

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[Mapping[str, torch.Tensor], float]:
        """Those of a slot's inputs, by kind, and the seconds that collecting them took; raises ReducerError."""

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """E[x xᵀ] (in, in) of a slot's inputs, by which an output error is measured; raises ReducerError."""

    def loss(self) -> float:
        """Nats by which a token of the calibration text is unexpected, to the model as it is now."""


@dataclass(frozen=True)
class Preparation:
    """What a reducer prepared of a weight, what that took, and what it was charged for of what others share."""

    prepared: Prepared
    seconds: float
    bill: Bill


class Work:
    """One reducer at work on one slot: calls it, times it, and turns whatever it does wrong into a ReducerError."""

    def __init__(
        self,
        slot: WeightSlot,
        method: Method,
        seed: int,
        copy: Copy,
        calibration: Statistics | None = None,
        base: Bases | None = None,
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
            raise ReducerError(f"{slot.name}: the weight holds {value} at [{row}, {column}]; mend the checkpoint")

    def context(self, inputs: int | None = None) -> Context:
        """What the reducer is given beside the weight, or beside the first `inputs` columns of it."""
        statistics = {name: _of_first(statistic, inputs) for name, statistic in self.statistics.items()}
        return Context.seeded(self.slot.about, self.method.reducer, self._seed, statistics=statistics)

    def prepare(self, ranks: Sequence[int]) -> Preparation:
        """The preparation for `ranks`, timed."""
        context = dataclasses.replace(self.context(), shared=self.shared)
        bill = Bill()
        seconds, prepared = self._timed(
            "prepare", lambda: self.method.reducer.prepare(self.weight, ranks, context), bill
        )
        return Preparation(prepared, seconds, bill)

    def at_rank(self, preparation: Preparation, rank: int) -> tuple[Factors, float, dict[str, Any]]:
        """Factors that have been checked, seconds with the preparation's, and what the method chose."""
        bill = preparation.bill.copy()  # what the preparation has been charged for is in its seconds
        seconds, factors = self._timed(f"rank {rank}", lambda: preparation.prepared.at_rank(rank), bill)
        chosen = dict(preparation.prepared.chosen(rank))
        for name, value in chosen.items():
            if not (isinstance(name, str) and isinstance(value, str | int | float | bool)):
                raise ReducerError(
                    f"{self.slot.name}: {self.method.label}: chosen() says {name!r}: {value!r}; return plain values"
                )
        try:
            checked = validate_factors(factors, self.slot.about.shape, rank, self.method.reducer)
        except ReducerError as error:
            raise ReducerError(f"{self.slot.name}: {error}") from None
        return checked, preparation.seconds + seconds, chosen

    def check_honesty(self, factors: Factors, request: RankRequest, optimum: Sequence[float]) -> None:
        """Refuses factors that are better than any matrix of their rank, or worse than their own error curve said.

        Both before rounding to the model's dtype. The allowance is for roundings in the weight's.
        """
        norm = optimum[0]
        error = _norm(self.weight - factors.dense()) / norm if norm else 0.0
        least = optimum[min(factors.rank, len(optimum) - 1)] / norm if norm else 0.0
        if error < least * (1 - 1e-3) - 1e-5:
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} has error {error:.3g} at rank {factors.rank}, where no matrix "
                f"has less than {least:.3g}; its rank is not what it says"
            )
        if request.kind == "error" and error > request.value * (1 + 1e-3) + 1e-5:
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} has error {error:.3g} where its errors() promised at most "
                f"{request.value:g}; mend its errors()"
            )

    def measured(self, factors: Factors, optimum: Sequence[float], seconds: float, chosen: dict[str, Any]) -> Reduction:
        """Stores factors in the model's dtype, or Ŵ where that is smaller, and measures what is stored."""
        rows, columns = self.slot.about.shape
        rank = factors.rank  # that of Dense, or of a draw that repeats itself, is not the one asked
        dtype = self.slot.tensor().dtype
        smaller = factors.stored_numbers < rows * columns
        stored = factors.to(dtype=dtype) if smaller else Dense(factors.dense().to(dtype))
        result = Reduction(stored, None, seconds, self.calibrate_seconds, self._base_slot)  # type: ignore[arg-type]
        rounded = self.rounded(result)
        if not bool(rounded.isfinite().all()):
            raise ReducerError(
                f"{self.slot.name}: the result of {self.method.label} at rank {rank} overflows "
                f"{str(dtype).removeprefix('torch.')}; its factors are badly scaled"
            )
        norm = optimum[0]
        least = optimum[min(rank, len(optimum) - 1)] / norm if norm else 0.0
        edit = Edit(
            weight=self.slot.name, layer=self.slot.about.layer, role=self.slot.about.role,
            shape=self.slot.about.shape, rank=rank, stored_numbers=stored.stored_numbers,
            stored_bytes=stored.stored_bytes, stored_as="factors" if smaller else "dense",
            relative_error=_norm(self.weight - rounded) / norm if norm else _norm(rounded),
            optimal_error=least if self.method.reducer.rank_of == "weight" else None, chosen=chosen,
        )  # fmt: skip
        return dataclasses.replace(result, edit=edit)

    def rounded(self, reduction: Reduction) -> torch.Tensor:
        """What stands in for `weight` (out, in) once it is in the model, in the dtype of `weight`.

        Of an update, what the sum with the base's weight is rounded to, less the base's weight.
        """
        placed = reduction.matrix().to(self.slot.tensor().dtype).to(self.weight.dtype)
        return placed if self._base is None else placed - self._base.to(self.weight.dtype)

    def _timed(self, what: str, call: Callable[[], _T], bill: Bill) -> tuple[float, _T]:
        """What a call took, with what its shared results took when they were made, whoever asked first."""
        charged, spent = bill.charged, bill.spent
        synchronize(self.weight.device)
        try:
            with process_state_kept(), self.shared.billed(bill):
                started = time.perf_counter()
                result = call()
                synchronize(self.weight.device)
                elapsed = time.perf_counter() - started
        except FOREIGN as error:  # whatever a plugin raises is a failure of this reducer on this slot
            text = f"{self.slot.name}: {self.method.label} failed at {what}: {one_line(error)}"
            raise ReducerError(text) from error
        if not torch.equal(self.weight, reduced_matrix(self.slot, self._base)):
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to the weight it is given; clone it first"
            )
        if any(statistic._version != self._versions[name] for name, statistic in self.statistics.items()):
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to the statistics it is given; clone them first"
            )
        if written := self.shared.written_to():
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to a shared result, that of {written}; clone it first"
            )
        return elapsed - (bill.spent - spent) + (bill.charged - charged), result


@contextlib.contextmanager
def failing_as(slot: WeightSlot, method: Method) -> Iterator[None]:
    """Whatever is raised inside is a failure of this method on this slot: plugins and their factors are foreign code.

    Raises:
        ReducerError: in place of any other exception.
    """
    try:
        yield
    except LrbenchError:
        raise
    except FOREIGN as error:
        raise ReducerError(f"{slot.name}: {method.label}: {one_line(error)}") from error


def reduced_matrix(slot: WeightSlot, base: torch.Tensor | None) -> torch.Tensor:
    """What is reduced, (out, in): the weight, or what it adds to the base's; a copy, which plugins cannot spoil."""
    weight = slot.read()
    dtype = working_dtype(weight.dtype)
    copied = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return copied if base is None else copied.sub_(base.to(dtype))


def _of_first(statistic: torch.Tensor, inputs: int | None) -> torch.Tensor:
    """A statistic of the first inputs only; the very same object where all are meant."""
    if inputs is None:
        return statistic
    return statistic[:inputs, :inputs].contiguous() if statistic.ndim == 2 else statistic[:inputs]


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
