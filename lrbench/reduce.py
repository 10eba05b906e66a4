"""From a weight slot to checked, measured factors: the only place that calls reducers."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch

from lrbench.errors import LrbenchError, ReducerError, one_line
from lrbench.factors import Dense, Factors
from lrbench.linalg import optimal_errors
from lrbench.models.slots import WeightSlot
from lrbench.plan import Cell, Method
from lrbench.ranks import RankRequest, closed_rank, find_rank, ranks_to_prepare
from lrbench.reducer import Context, Prepared
from lrbench.store import Edit
from lrbench.validate import validate_factors

_T = TypeVar("_T")

#: What foreign code may raise without ending the run: a plugin that calls sys.exit() is a failed row as well.
FOREIGN = (Exception, SystemExit)


@dataclass(frozen=True)
class Reduction:
    """One slot reduced to one rank.

    Attributes:
        factors: what would be stored, in the model's dtype.
        edit: the row's record of it.
        seconds: the shared preparation and this rank's construction, synchronized.
    """

    factors: Factors
    edit: Edit
    seconds: float

    def matrix(self) -> torch.Tensor:
        """What stands in for W (out, in): the product of the stored factors, computed in float32 or better."""
        dtype = next(t.dtype for t in self.factors.tensors().values() if t.is_floating_point())
        return self.factors.to(dtype=_working(dtype)).dense()


class Reductions:
    """Reduces slots for a run. Keeps each slot's spectrum, and which reducers have been warmed up."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._optima: dict[str, list[float]] = {}
        self._warm: set[tuple[str, torch.device]] = set()

    def of_group(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces cells that differ in the rank alone (one seed, too), sharing each slot's preparation between them.

        Every rank's factors are held until all slots are done; where they would take more than a quarter of the free
        memory, the ranks are done one after the other, and the preparation is repeated.
        """
        slots, method = cells[0].slots, cells[0].method
        assert method is not None
        size = sum(slot.tensor().numel() * slot.tensor().element_size() for slot in slots)
        at_once = len(cells) if size * len(cells) <= _free_memory(slots[0].tensor().device) / 4 else 1
        for start in range(0, len(cells), at_once):
            part = cells[start : start + at_once]
            done: list[list[Reduction] | LrbenchError] = [[] for _ in part]
            for slot in slots:
                alive = [i for i, result in enumerate(done) if isinstance(result, list)]
                requests = [part[i].request for i in alive]
                outcomes = self._slot(slot, method, requests, cells[0].seed)  # type: ignore[arg-type]
                for i, outcome in zip(alive, outcomes, strict=True):
                    if isinstance(outcome, Reduction):
                        done[i].append(outcome)  # type: ignore[union-attr]
                    else:
                        done[i] = outcome
            yield from zip(part, done, strict=True)

    def _slot(
        self, slot: WeightSlot, method: Method, requests: Sequence[RankRequest], seed: int | None = None
    ) -> list[Reduction | LrbenchError]:
        """One slot at each requested rank; a failure that concerns them all is given to each."""
        if not requests:
            return []
        reducer = method.reducer
        try:
            with _failing_as(slot, method):
                work = _Work(slot, method, self._seed if seed is None else seed)
                optimum = self._optimum(slot, work.weight)
                spectrum = _singular_values(optimum)
                self._warm_up(work)
                ranks = ranks_to_prepare(requests, reducer, slot.about, spectrum)
                shared = work.prepare(ranks) if reducer.one_preparation else None
        except LrbenchError as error:
            return [error] * len(requests)
        done: list[Reduction | LrbenchError] = []
        for request in requests:
            try:
                with _failing_as(slot, method):
                    rank = closed_rank(request, reducer, slot.about, spectrum)
                    if rank is None:  # factors must be built to know it; that search is in no one's time
                        _, searched = shared or work.prepare(ranks)
                        rank = find_rank(request, reducer, slot.about, spectrum, work.weight, searched)
                    prepare_seconds, prepared = shared or work.prepare([rank])
                    seconds, factors = work.at_rank(prepared, rank)
                    work.check_honesty(factors, request, optimum)
                    done.append(work.measured(factors, optimum, prepare_seconds + seconds))
            except LrbenchError as error:
                done.append(error)
        return done

    def _optimum(self, slot: WeightSlot, weight: torch.Tensor) -> list[float]:
        """The Eckart-Young error at every rank, once a slot and run; it judges reducers and is in no one's time."""
        if slot.name not in self._optima:
            self._optima[slot.name] = optimal_errors(weight)
        return self._optima[slot.name]

    def _warm_up(self, work: _Work) -> None:
        """Runs a reducer once on a corner of its first weight, untimed: libraries initialise when first used."""
        key = (work.method.label, work.weight.device)
        if key in self._warm:
            return
        self._warm.add(key)
        corner = work.weight[:64, :64].contiguous()
        # A method may refuse so small a matrix. On the real one its errors count.
        with contextlib.suppress(*FOREIGN), _random_state_kept():
            reducer = work.method.reducer
            reducer.prepare(corner, [1], work.context()).at_rank(1).dense()
        _synchronize(corner.device)


class _Work:
    """One reducer at work on one slot: calls it, times it, and turns whatever it does wrong into a ReducerError."""

    def __init__(self, slot: WeightSlot, method: Method, seed: int) -> None:
        self.slot, self.method, self._seed = slot, method, seed
        weight = slot.read()
        # A copy, so that a plugin that writes to its input cannot spoil the model.
        self.weight = weight.to(_working(weight.dtype), copy=True, memory_format=torch.contiguous_format)  # (out, in)
        if not bool(self.weight.isfinite().all()):
            row, column = (~self.weight.isfinite()).nonzero()[0].tolist()
            value = float(self.weight[row, column])
            raise ReducerError(f"{slot.name}: the weight holds {value} at [{row}, {column}]; mend the checkpoint")

    def context(self) -> Context:
        return Context.seeded(self.slot.about, self.method.reducer, self._seed)

    def prepare(self, ranks: Sequence[int]) -> tuple[float, Prepared]:
        """Seconds, and the preparation for `ranks`."""
        context = self.context()
        return self._timed("prepare", lambda: self.method.reducer.prepare(self.weight, ranks, context))

    def at_rank(self, prepared: Prepared, rank: int) -> tuple[float, Factors]:
        """Seconds, and factors that have been checked."""
        seconds, factors = self._timed(f"rank {rank}", lambda: prepared.at_rank(rank))
        try:
            return seconds, validate_factors(factors, self.slot.about.shape, rank, self.method.reducer)
        except ReducerError as error:
            raise ReducerError(f"{self.slot.name}: {error}") from None

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

    def measured(self, factors: Factors, optimum: Sequence[float], seconds: float) -> Reduction:
        """Stores factors in the model's dtype, or Ŵ where that is smaller, and measures what is stored."""
        rows, columns = self.slot.about.shape
        rank = factors.rank  # that of Dense, or of a draw that repeats itself, is not the one asked
        dtype = self.slot.tensor().dtype
        smaller = factors.stored_numbers < rows * columns
        stored = factors.to(dtype=dtype) if smaller else Dense(factors.dense().to(dtype))
        result = Reduction(stored, seconds=seconds, edit=None)  # type: ignore[arg-type]
        rounded = result.matrix().to(dtype)
        if not bool(rounded.isfinite().all()):
            raise ReducerError(
                f"{self.slot.name}: the result of {self.method.label} at rank {rank} overflows "
                f"{str(dtype).removeprefix('torch.')}; its factors are badly scaled"
            )
        norm = optimum[0]
        edit = Edit(
            weight=self.slot.name, layer=self.slot.about.layer, role=self.slot.about.role,
            shape=self.slot.about.shape, rank=rank, stored_numbers=stored.stored_numbers,
            stored_bytes=stored.stored_bytes, stored_as="factors" if smaller else "dense",
            relative_error=_norm(self.weight - rounded.to(self.weight.dtype)) / norm if norm else _norm(rounded),
            optimal_error=optimum[min(rank, len(optimum) - 1)] / norm if norm else 0.0,
        )  # fmt: skip
        return dataclasses.replace(result, edit=edit)

    def _timed(self, what: str, call: Callable[[], _T]) -> tuple[float, _T]:
        _synchronize(self.weight.device)
        try:
            with _random_state_kept():
                started = time.perf_counter()
                result = call()
                _synchronize(self.weight.device)
                seconds = time.perf_counter() - started
        except FOREIGN as error:  # whatever a plugin raises is a failure of this reducer on this slot
            text = f"{self.slot.name}: {self.method.label} failed at {what}: {one_line(error)}"
            raise ReducerError(text) from error
        if not torch.equal(self.weight, self.slot.read().to(self.weight.dtype)):
            raise ReducerError(
                f"{self.slot.name}: {self.method.label} writes to the weight it is given; clone it first"
            )
        return seconds, result


@contextlib.contextmanager
def _failing_as(slot: WeightSlot, method: Method) -> Iterator[None]:
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


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Puts back what plugins must not touch: the global random state, and the default dtype."""
    dtype = torch.get_default_dtype()
    python = random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python)


def _working(dtype: torch.dtype) -> torch.dtype:
    """What reducers compute in: float64 stays, everything else is float32."""
    return dtype if dtype == torch.float64 else torch.float32


def _singular_values(optimum: Sequence[float]) -> torch.Tensor:
    """Descending, (min(m, n),), from the optimal errors: what each next rank takes away."""
    squares = torch.tensor(optimum, dtype=torch.float64).square()
    return (squares[:-1] - squares[1:]).clamp(min=0).sqrt()


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
