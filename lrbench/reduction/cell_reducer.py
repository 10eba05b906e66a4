"""Reduces the weights of cells, sharing each weight's computations between ranks and methods."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import psutil
import torch

from lrbench.errors import FOREIGN, LrbenchError
from lrbench.linalg import WeightedSpectrum, optimal_errors, output_error, root
from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Dense, LowRank
from lrbench.reducers.ranks import WHOLE, RankRequest, closed_rank, find_rank, ranks_to_prepare
from lrbench.reducers.shared_results import SharedResults
from lrbench.reduction.allocator import Allocator
from lrbench.reduction.greedy_plan import GREEDY
from lrbench.reduction.plan import Cell, Method
from lrbench.reduction.reduced_weight import Reduction, base_weight
from lrbench.reduction.weight_job import (
    BaseWeights,
    Statistics,
    WeightJob,
    WorkingCopy,
    failing_as,
    reduced_matrix,
)
from lrbench.results.rows import Edit
from lrbench.system.device import synchronize
from lrbench.system.isolation import process_state_kept

_CACHE_FRACTION = 1 / 8  # of the free memory, for working copies and shared results


class CellReducer:
    """Reduces the slots of a run's cells.

    Caches optimal errors per slot, and working copies with shared results of the most recent slots, up to an eighth of
    the free memory. With a base, reducers and errors refer to W − W_base instead of W.
    """

    def __init__(self, seed: int, calibration: Statistics | None = None, base: BaseWeights | None = None) -> None:
        self._seed = seed
        self._calibration = calibration
        self._base = base
        self._optima: dict[str, list[float]] = {}
        self._output_optima: dict[str, list[float]] = {}
        self._allocator = Allocator(self, calibration)
        self._accepted: dict[tuple[str, str, RankRequest, int | None], Reduction] = {}
        self._warm: set[tuple[str, torch.device]] = set()
        self._copies: OrderedDict[str, WorkingCopy] = OrderedDict()

    def reduce_group(
        self, cells: Sequence[Cell], *, measured: bool = True
    ) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces cells that differ only in the rank, sharing each slot's preparation between them.

        The factors of all ranks are held until all slots are done. If they would take more than a quarter of the free
        memory, the cells are reduced in several parts, and the preparation is repeated for each.

        Args:
            measured: whether to measure errors; else reductions have no record of the edit, see `measured`.
        """
        slots, method = cells[0].slots, cells[0].method
        assert method is not None
        if cells[0].allocation is not None:
            yield from self._allocator.reduce(cells)
            return
        if cells[0].mode == GREEDY:
            yield from self._composed(cells)
            return
        if cells[0].drops_updates:
            yield from ((cell, [self._without_update(slot) for slot in cell.slots]) for cell in cells)
            return
        size = sum(slot.size * slot.tensor().element_size() for slot in slots)
        at_once = max(1, int(_free_memory(slots[0].tensor().device) / 4 / max(1, size)))
        for start in range(0, len(cells), at_once):
            batch = cells[start : start + at_once]
            results: list[list[Reduction] | LrbenchError] = [[] for _ in batch]
            for slot in slots:
                alive = [i for i, result in enumerate(results) if isinstance(result, list)]
                requests = [batch[i].request_of(slot) for i in alive]
                outcomes = self._slot(slot, method, requests, cells[0].seed, measured=measured)
                for i, outcome in zip(alive, outcomes, strict=True):
                    if isinstance(outcome, Reduction):
                        results[i].append(outcome)  # type: ignore[union-attr]
                    else:
                        results[i] = outcome
            yield from zip(batch, results, strict=True)

    def _composed(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces the last slot of each cell; the accepted slots before it are reduced once per run."""
        method, seed, slots = cells[0].method, cells[0].seed, cells[0].slots
        assert method is not None
        before: list[Reduction] = []
        for slot, request in zip(slots[:-1], cells[0].requests, strict=False):
            key = (slot.name, method.label, request, seed)
            if key not in self._accepted:
                [outcome] = self._slot(slot, method, [request], seed)
                if not isinstance(outcome, Reduction):
                    yield from ((cell, outcome) for cell in cells)
                    return
                self._accepted[key] = outcome
            before.append(self._accepted[key])
        last = self._slot(slots[-1], method, [cell.requests[-1] for cell in cells], seed) if slots else []
        for place, cell in enumerate(cells):
            if not slots:
                yield cell, []
            elif isinstance(outcome := last[place], Reduction):
                yield cell, [*before, outcome]
            else:
                yield cell, outcome

    def begin(self, slot: WeightSlot, method: Method, seed: int | None) -> tuple[WeightJob, list[float]]:
        """A warmed-up job of a method on a slot, and the slot's optimal errors."""
        own_seed = self._seed if seed is None else seed
        job = WeightJob(slot, method, own_seed, self._copy(slot), self._calibration, self._base)
        optimum = self._optimum(slot, job)
        self._warm_up(job)
        return job, optimum

    def measured(self, cell: Cell, reductions: Sequence[Reduction]) -> list[Reduction]:
        """The reductions of a cell's slots with records of the edits. Raises ReducerError."""
        method = cell.method
        assert method is not None
        results = []
        for slot, reduction in zip(cell.slots, reductions, strict=True):
            if reduction.edit is None:
                with failing_as(slot, method):
                    job, optimum = self.begin(slot, method, cell.seed)
                    reduction = self._measured(job, reduction, optimum)
                self.forget_old(slot)
            results.append(reduction)
        return results

    def _measured(self, job: WeightJob, reduction: Reduction, optimum: Sequence[float]) -> Reduction:
        measured = job.measure(reduction, optimum)
        return self._with_predicted_loss(job, self._with_output_error(job.slot, job, measured))

    def _slot(
        self,
        slot: WeightSlot,
        method: Method,
        requests: Sequence[RankRequest],
        seed: int | None = None,
        *,
        measured: bool = True,
    ) -> list[Reduction | LrbenchError]:
        """Reduces one slot at each requested rank; a failure of the preparation is returned for every rank."""
        reducer = method.reducer
        to_reduce = [request for request in requests if request != WHOLE]
        if not to_reduce:
            return [self._whole(slot, method) for _ in requests]
        try:
            with failing_as(slot, method):
                job, optimum = self.begin(slot, method, seed)
                spectrum = _singular_values(optimum)
                ranks = ranks_to_prepare(to_reduce, reducer, slot.about, spectrum)
                shared = job.prepare(ranks) if reducer.one_preparation else None
        except LrbenchError as error:
            self.discard(slot)
            return [error] * len(requests)
        results: list[Reduction | LrbenchError] = []
        for place, request in enumerate(requests):
            if request in requests[:place]:  # two allocations with the same rank
                results.append(results[requests.index(request)])
                continue
            if request == WHOLE:
                results.append(self._whole(slot, method))
                continue
            try:
                with failing_as(slot, method):
                    rank = closed_rank(request, reducer, slot.about, spectrum)
                    if rank is None:  # the rank is found by building factors; this search is not timed
                        searched = shared or job.prepare(ranks)
                        rank = find_rank(request, reducer, slot.about, spectrum, job.weight, searched.prepared)
                    preparation = shared or job.prepare([rank])
                    factors, seconds, chosen = job.at_rank(preparation, rank)
                    job.check_error(factors, request, optimum)
                    rounded = job.round(factors, seconds, chosen)
                    results.append(self._measured(job, rounded, optimum) if measured else rounded)
            except LrbenchError as error:
                # A method that wrote to shared results must not make other methods fail.
                self.discard(slot)
                results.append(error)
        self.forget_old(slot)
        return results

    def _copy(self, slot: WeightSlot) -> WorkingCopy:
        """The slot's cached working copy."""
        if slot.name not in self._copies:
            base = None if self._base is None else base_weight(self._base.slot(slot), slot.read())
            self._copies[slot.name] = WorkingCopy(reduced_matrix(slot, base), SharedResults(), base)
        self._copies.move_to_end(slot.name)
        return self._copies[slot.name]

    def _without_update(self, slot: WeightSlot) -> Reduction:
        """The base's weight, as an update of rank 0."""
        assert self._base is not None
        weight, (rows, columns) = slot.read(), slot.about.shape
        nothing = LowRank(weight.new_zeros(rows, 0), weight.new_zeros(0, columns))
        edit = Edit(
            weight=slot.name, layer=slot.about.layer, role=slot.about.role, shape=slot.about.shape, rank=0,
            stored_numbers=0, stored_bytes=0, stored_as="factors", relative_error=1.0, optimal_error=1.0,
        )  # fmt: skip
        return Reduction(nothing, edit, 0.0, base=self._base.slot(slot))

    def discard(self, slot: WeightSlot) -> None:
        """Evicts the slot's working copy."""
        self._copies.pop(slot.name, None)

    def forget_old(self, slot: WeightSlot) -> None:
        """Evicts the least recently used copies until the rest fits the memory budget."""
        sizes = {name: copy.nbytes for name, copy in self._copies.items()}
        held = sum(sizes.values())
        budget = (_free_memory(slot.tensor().device) + held) * _CACHE_FRACTION
        for name, size in sizes.items():
            if held <= budget:
                break
            del self._copies[name]
            held -= size

    def _optimum(self, slot: WeightSlot, job: WeightJob) -> list[float]:
        """The Eckart-Young error at every rank, computed once per slot and run, untimed."""
        if slot.name not in self._optima:
            if ("", job.weight.device) not in self._warm:  # shared parts of it may be charged to the next reducer
                self._warm.add(("", job.weight.device))
                optimal_errors(job.weight[:64, :64].contiguous())
            self._optima[slot.name] = optimal_errors(job.weight, once=job.shared.once)
        return self._optima[slot.name]

    def _with_output_error(self, slot: WeightSlot, job: WeightJob, reduction: Reduction) -> Reduction:
        """Adds the layer's output error, if the method uses the inputs' second moment."""
        if self._calibration is None or "second_moment" not in job.statistics:
            return reduction
        H = self._calibration.second_moment(slot)
        optima = self.output_optimum(slot, job, H)
        stored = job.rounded(reduction)
        edit = reduction.edit.model_copy(
            update={
                "output_error": output_error(job.weight, stored, H),
                "optimal_output_error": optima[min(reduction.edit.rank, len(optima) - 1)],
            }
        )
        return dataclasses.replace(reduction, edit=edit)

    def _with_predicted_loss(self, job: WeightJob, reduction: Reduction) -> Reduction:
        """Adds the loss that the change of the weight is predicted to add, if its moments are known."""
        moments = None if self._calibration is None else self._calibration.loss_moments(job.slot)
        if moments is None:
            return reduction
        loss = moments.of_change(job.weight - job.rounded(reduction))
        edit = reduction.edit.model_copy(update={"predicted_loss": loss})
        return dataclasses.replace(reduction, edit=edit)

    def _whole(self, slot: WeightSlot, method: Method) -> Reduction:
        """A slot left unreduced, stored in full."""
        factors = Dense(slot.read().clone(memory_format=torch.contiguous_format))
        no_error = 0.0 if "second_moment" in method.reducer.needs else None
        known = self._calibration is not None and self._calibration.loss_moments(slot) is not None
        edit = Edit(
            weight=slot.name, layer=slot.about.layer, role=slot.about.role, shape=slot.about.shape,
            rank=min(slot.about.shape), stored_numbers=factors.stored_numbers, stored_bytes=factors.stored_bytes,
            stored_as="dense", relative_error=0.0, optimal_error=0.0,
            output_error=no_error, optimal_output_error=no_error, predicted_loss=0.0 if known else None,
        )  # fmt: skip
        return Reduction(factors, edit, 0.0)

    def output_optimum(self, slot: WeightSlot, job: WeightJob, H: torch.Tensor) -> list[float]:
        """The least relative output error at every rank, computed once per slot and run."""
        if slot.name not in self._output_optima:
            errors = WeightedSpectrum(job.weight, root(H)).weighted_errors()
            self._output_optima[slot.name] = [error / errors[0] if errors[0] else 0.0 for error in errors]
        return self._output_optima[slot.name]

    def _warm_up(self, job: WeightJob) -> None:
        """Runs a reducer once, untimed, on a corner of its first weight, so that libraries are initialised."""
        key = (job.method.label, job.weight.device)
        if key in self._warm:
            return
        self._warm.add(key)
        corner = job.weight[:64, :64].contiguous()
        # A method may refuse so small a matrix; only errors on the whole matrix count.
        with contextlib.suppress(*FOREIGN), process_state_kept():
            reducer = job.method.reducer
            reducer.prepare(corner, [1], job.context(corner.shape)).at_rank(1).dense()
        synchronize(corner.device)


def _singular_values(optimum: Sequence[float]) -> torch.Tensor:
    """Singular values, descending, (min(m, n),), from the differences of squared optimal errors."""
    squares = torch.tensor(optimum, dtype=torch.float64).square()
    return (squares[:-1] - squares[1:]).clamp(min=0).sqrt()


def _free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
