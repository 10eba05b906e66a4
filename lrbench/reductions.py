"""From a weight slot to checked, measured factors: the only place that calls reducers."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import psutil
import torch

from lrbench.errors import LrbenchError, ReducerError, one_line
from lrbench.factors import Dense, Factors, LowRank
from lrbench.linalg import WeightedSpectrum, optimal_errors, output_error, root
from lrbench.models.slots import WeightSlot
from lrbench.plan import Cell, Method
from lrbench.ranks import RankRequest, closed_rank, find_rank, ranks_to_prepare
from lrbench.reducer import Context, Prepared
from lrbench.shared import Bill, Shared
from lrbench.store import Edit
from lrbench.validate import validate_factors

_T = TypeVar("_T")

#: What foreign code may raise without ending the run: a plugin that calls sys.exit() is a failed row as well.
FOREIGN = (Exception, SystemExit)
_KEPT = 1 / 8  # of the free memory, for copies of weights and what is shared between methods


@dataclass(frozen=True)
class Reduction:
    """One slot reduced to one rank.

    Attributes:
        factors: what would be stored, in the model's dtype.
        edit: the row's record of it.
        seconds: the shared preparation and this rank's construction, synchronized.
        calibrate_seconds: the slot's share of what collecting its statistics cost.
        base: what the factors are an update of, on whatever device; None where they stand in for the weight itself.
    """

    factors: Factors
    edit: Edit
    seconds: float
    calibrate_seconds: float = 0.0
    base: WeightSlot | None = None

    def matrix(self) -> torch.Tensor:
        """What stands in for W (out, in): the product of the stored factors, computed in float32 or better.

        Of an update, the base's weight with the product added to it.
        """
        product = self.factors.to(dtype=_working(self.factors.dtype)).dense()
        return product if self.base is None else product + _beside(self.base, self.factors).to(product.dtype)


def sizes(
    slots: Sequence[WeightSlot], reductions: Sequence[Reduction], numbers: int, beside: int | None = None
) -> dict[str, float | None]:
    """keep of the targets and of the model, and the compression ratio; None where nothing at all is stored.

    A part of a fused or stacked parameter replaces its own numbers. A tied weight is replaced only when all that use it
    are edited; else its factors come on top of it.

    Args:
        slots, reductions: one of each for each edited weight.
        numbers: parameters of the unedited model.
        beside: of updates, what else must be stored on top of the base; see `Base.numbers_beside`.
    """
    stored = sum(reduction.edit.stored_numbers for reduction in reductions)
    dense = sum(slot.numbers for slot in slots)
    if beside is None:
        places = {slot: slot.place for slot in slots}
        edited_users = Counter(places.values())
        whole = {place: slot.numbers for slot, place in places.items() if edited_users[place] == slot.users}
        beside = numbers - sum(whole.values())
    model = (beside + stored) / numbers
    return {"keep_targets": stored / dense, "keep_model": model, "compression_ratio": 1 / model if model else None}


@dataclass
class _Copy:
    """A slot's weight, or its update, in the dtype that reducers compute in, and what they have computed from it."""

    weight: torch.Tensor  # (out, in)
    shared: Shared
    base: torch.Tensor | None = None  # (out, in); what the weight is an update of, in the model's dtype

    @property
    def nbytes(self) -> int:
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


class Reductions:
    """Reduces slots for a run. Keeps each slot's optimal errors, and which reducers have been warmed up.

    Copies of weights, and what reducers share, are kept of the slots used last, up to an eighth of the free memory:
    methods follow one another on a slot, or on the same few slots.

    With a base, W − W_base stands for each weight W: reducers are given that, and errors are of that.
    """

    def __init__(self, seed: int, calibration: Statistics | None = None, base: Bases | None = None) -> None:
        self._seed = seed
        self._calibration = calibration
        self._base = base
        self._optima: dict[str, list[float]] = {}
        self._output_optima: dict[str, list[float]] = {}
        self._warm: set[tuple[str, torch.device]] = set()
        self._copies: OrderedDict[str, _Copy] = OrderedDict()

    def of_group(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces cells that differ in the rank alone (one seed, too), sharing each slot's preparation between them.

        Every rank's factors are held until all slots are done; where they would take more than a quarter of the free
        memory, the ranks are done one after the other, and the preparation is repeated.
        """
        slots, method = cells[0].slots, cells[0].method
        assert method is not None
        if cells[0].request is None:
            yield from ((cell, [self._without_update(slot) for slot in cell.slots]) for cell in cells)
            return
        size = sum(slot.numbers * slot.tensor().element_size() for slot in slots)
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
                own = self._seed if seed is None else seed
                work = _Work(slot, method, own, self._copy(slot), self._calibration, self._base)
                optimum = self._optimum(slot, work)
                spectrum = _singular_values(optimum)
                self._warm_up(work)
                ranks = ranks_to_prepare(requests, reducer, slot.about, spectrum)
                shared = work.prepare(ranks) if reducer.one_preparation else None
        except LrbenchError as error:
            self._copies.pop(slot.name, None)
            return [error] * len(requests)
        done: list[Reduction | LrbenchError] = []
        for request in requests:
            try:
                with _failing_as(slot, method):
                    rank = closed_rank(request, reducer, slot.about, spectrum)
                    if rank is None:  # factors must be built to know it; that search is in no one's time
                        searched = shared or work.prepare(ranks)
                        rank = find_rank(request, reducer, slot.about, spectrum, work.weight, searched.prepared)
                    preparation = shared or work.prepare([rank])
                    factors, seconds, chosen = work.at_rank(preparation, rank)
                    work.check_honesty(factors, request, optimum)
                    measured = work.measured(factors, optimum, seconds, chosen)
                    done.append(self._with_output_error(slot, work, measured))
            except LrbenchError as error:
                # A method that wrote to what others share must not fail them.
                self._copies.pop(slot.name, None)
                done.append(error)
        self._forget_old(slot)
        return done

    def _copy(self, slot: WeightSlot) -> _Copy:
        """The slot's, as the method before left it."""
        if slot.name not in self._copies:
            base = None if self._base is None else _beside(self._base.slot(slot), slot.read())
            self._copies[slot.name] = _Copy(_target(slot, base), Shared(), base)
        self._copies.move_to_end(slot.name)
        return self._copies[slot.name]

    def _without_update(self, slot: WeightSlot) -> Reduction:
        """The base's own weight, as an update of rank 0."""
        assert self._base is not None
        weight, (rows, columns) = slot.read(), slot.about.shape
        nothing = LowRank(weight.new_zeros(rows, 0), weight.new_zeros(0, columns))
        edit = Edit(
            weight=slot.name, layer=slot.about.layer, role=slot.about.role, shape=slot.about.shape, rank=0,
            stored_numbers=0, stored_bytes=0, stored_as="factors", relative_error=1.0, optimal_error=1.0,
        )  # fmt: skip
        return Reduction(nothing, edit, 0.0, base=self._base.slot(slot))

    def _forget_old(self, slot: WeightSlot) -> None:
        """Keeps the copies used last, as many as fit."""
        sizes = {name: copy.nbytes for name, copy in self._copies.items()}
        held = sum(sizes.values())
        budget = (_free_memory(slot.tensor().device) + held) * _KEPT
        for name, size in sizes.items():
            if held <= budget:
                break
            del self._copies[name]
            held -= size

    def _optimum(self, slot: WeightSlot, work: _Work) -> list[float]:
        """The Eckart-Young error at every rank, once a slot and run; it judges reducers and is in no one's time."""
        if slot.name not in self._optima:
            if ("", work.weight.device) not in self._warm:  # its parts may be in the next reducer's time
                self._warm.add(("", work.weight.device))
                optimal_errors(work.weight[:64, :64].contiguous())
            self._optima[slot.name] = optimal_errors(work.weight, once=work.shared.once)
        return self._optima[slot.name]

    def _with_output_error(self, slot: WeightSlot, work: _Work, reduction: Reduction) -> Reduction:
        """Adds what the layer's output loses, where the method was given the inputs' second moment."""
        if self._calibration is None or "second_moment" not in work.statistics:
            return reduction
        H = self._calibration.second_moment(slot)
        if slot.name not in self._output_optima:
            errors = WeightedSpectrum(work.weight, root(H)).weighted_errors()
            self._output_optima[slot.name] = [error / errors[0] if errors[0] else 0.0 for error in errors]
        optima = self._output_optima[slot.name]
        stored = work.rounded(reduction)
        edit = reduction.edit.model_copy(
            update={
                "output_error": output_error(work.weight, stored, H),
                "optimal_output_error": optima[min(reduction.edit.rank, len(optima) - 1)],
            }
        )
        return dataclasses.replace(reduction, edit=edit)

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
            reducer.prepare(corner, [1], work.context(corner.shape[1])).at_rank(1).dense()
        _synchronize(corner.device)


@dataclass(frozen=True)
class _Preparation:
    prepared: Prepared
    seconds: float
    bill: Bill


class _Work:
    """One reducer at work on one slot: calls it, times it, and turns whatever it does wrong into a ReducerError."""

    def __init__(
        self,
        slot: WeightSlot,
        method: Method,
        seed: int,
        copy: _Copy,
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

    def prepare(self, ranks: Sequence[int]) -> _Preparation:
        """The preparation for `ranks`, timed."""
        context = dataclasses.replace(self.context(), shared=self.shared)
        bill = Bill()
        seconds, prepared = self._timed(
            "prepare", lambda: self.method.reducer.prepare(self.weight, ranks, context), bill
        )
        return _Preparation(prepared, seconds, bill)

    def at_rank(self, preparation: _Preparation, rank: int) -> tuple[Factors, float, dict[str, Any]]:
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
        edit = Edit(
            weight=self.slot.name, layer=self.slot.about.layer, role=self.slot.about.role,
            shape=self.slot.about.shape, rank=rank, stored_numbers=stored.stored_numbers,
            stored_bytes=stored.stored_bytes, stored_as="factors" if smaller else "dense",
            relative_error=_norm(self.weight - rounded) / norm if norm else _norm(rounded),
            optimal_error=optimum[min(rank, len(optimum) - 1)] / norm if norm else 0.0, chosen=chosen,
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
        _synchronize(self.weight.device)
        try:
            with _random_state_kept(), self.shared.billed(bill):
                started = time.perf_counter()
                result = call()
                _synchronize(self.weight.device)
                elapsed = time.perf_counter() - started
        except FOREIGN as error:  # whatever a plugin raises is a failure of this reducer on this slot
            text = f"{self.slot.name}: {self.method.label} failed at {what}: {one_line(error)}"
            raise ReducerError(text) from error
        if not torch.equal(self.weight, _target(self.slot, self._base)):
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


def _target(slot: WeightSlot, base: torch.Tensor | None) -> torch.Tensor:
    """What is reduced, (out, in): the weight, or what it adds to the base's; a copy, which plugins cannot spoil."""
    weight = slot.read()
    dtype = _working(weight.dtype)
    copied = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return copied if base is None else copied.sub_(base.to(dtype))


def _beside(base: WeightSlot, other: torch.Tensor | Factors) -> torch.Tensor:
    """A base's weight (out, in) in the dtype of what it stands beside, and on its device."""
    return base.read().to(dtype=other.dtype, device=other.device)


def _of_first(statistic: torch.Tensor, inputs: int | None) -> torch.Tensor:
    """A statistic of the first inputs only; the very same object where all are meant."""
    if inputs is None:
        return statistic
    return statistic[:inputs, :inputs].contiguous() if statistic.ndim == 2 else statistic[:inputs]


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
