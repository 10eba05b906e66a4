"""From cells to checked, measured factors: each weight's work is shared between the ranks and methods that need it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch

from lrbench.errors import FOREIGN, LrbenchError
from lrbench.linalg import WeightedSpectrum, optimal_errors, output_error, root
from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Dense, Factors, LowRank
from lrbench.reducers.ranks import WHOLE, AllocationKind, RankRequest, closed_rank, find_rank, ranks_to_prepare
from lrbench.reducers.shared_results import Shared
from lrbench.reduction.allocation.budget import Budget, Choices, by_size
from lrbench.reduction.allocation.loss_curves import (
    Judge,
    choices_by_building,
    choices_by_rank,
    largest_rank,
    squared_error,
)
from lrbench.reduction.apply import in_place
from lrbench.reduction.greedy_plan import GREEDY
from lrbench.reduction.plan import Cell, Method
from lrbench.reduction.reduced_weight import Reduction, beside
from lrbench.reduction.weight_job import (
    Bases,
    Copy,
    Preparation,
    Statistics,
    Work,
    failing_as,
    reduced_matrix,
)
from lrbench.results.rows import Edit
from lrbench.system.device import synchronize
from lrbench.system.isolation import process_state_kept

_KEPT = 1 / 8  # of the free memory, for copies of weights and what is shared between methods


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
        self._baseline_loss: float | None = None
        self._accepted: dict[tuple[str, str, RankRequest, int | None], Reduction] = {}
        self._warm: set[tuple[str, torch.device]] = set()
        self._copies: OrderedDict[str, Copy] = OrderedDict()

    def of_group(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces cells that differ in the rank alone (one seed, too), sharing each slot's preparation between them.

        Every rank's factors are held until all slots are done; where they would take more than a quarter of the free
        memory, the ranks are done one after the other, and the preparation is repeated.
        """
        slots, method = cells[0].slots, cells[0].method
        assert method is not None
        if cells[0].allocation is not None:
            yield from self._shared_out(cells)
            return
        if cells[0].mode == GREEDY:
            yield from self._composed(cells)
            return
        if cells[0].drops_updates:
            yield from ((cell, [self._without_update(slot) for slot in cell.slots]) for cell in cells)
            return
        size = sum(slot.numbers * slot.tensor().element_size() for slot in slots)
        at_once = len(cells) if size * len(cells) <= _free_memory(slots[0].tensor().device) / 4 else 1
        for start in range(0, len(cells), at_once):
            part = cells[start : start + at_once]
            done: list[list[Reduction] | LrbenchError] = [[] for _ in part]
            for slot in slots:
                alive = [i for i, result in enumerate(done) if isinstance(result, list)]
                requests = [part[i].request_of(slot) for i in alive]
                outcomes = self._slot(slot, method, requests, cells[0].seed)
                for i, outcome in zip(alive, outcomes, strict=True):
                    if isinstance(outcome, Reduction):
                        done[i].append(outcome)  # type: ignore[union-attr]
                    else:
                        done[i] = outcome
            yield from zip(part, done, strict=True)

    def _composed(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces the last slot of each; those before it, which have been accepted, are reduced once in a run."""
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

    def _shared_out(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Reduction] | LrbenchError]]:
        """Reduces cells of one allocation, once the ranks are found that fill each one's budget.

        First every slot is prepared for its curve alone, which all budgets share; then cells are reduced to the ranks
        found. Where a method turns out to store less than it says, so that a budget is missed, both are done again with
        what its factors do store.
        """
        method, kind, waiting = cells[0].method, cells[0].allocation, list(cells)
        assert method is not None
        assert kind is not None
        for by_building in (False, True):
            missed: list[Cell] = []
            try:
                choices, costs = self._choices(cells[0], by_building=by_building)
            except LrbenchError as error:
                yield from ((cell, error) for cell in waiting)
                return
            given: list[tuple[Cell, Budget, Cell]] = []
            for cell in waiting:
                assert cell.request is not None
                budget = Budget.of(cell.slots, float(cell.request.value))
                try:
                    allocation = budget.shared(choices, kind, method.label)
                    budget.refuse_missed(allocation.size, method.label)
                except LrbenchError as error:
                    yield cell, error
                    continue
                requests = tuple(one.request(option) for one, option in zip(choices, allocation.choice, strict=True))
                given.append((cell, budget, dataclasses.replace(cell, requests=requests, allocation=None)))
            done = self.of_group([ranked for *_, ranked in given]) if given else ()
            for (cell, budget, _), (ranked, outcome) in zip(given, done, strict=True):
                if isinstance(outcome, LrbenchError):
                    yield cell, outcome
                    continue
                stored = sum(reduction.edit.stored_numbers for reduction in outcome)
                if stored < budget.least and not by_building:
                    missed.append(cell)
                    continue
                try:
                    budget.refuse_missed(stored, method.label)
                except LrbenchError as error:
                    yield cell, error
                    continue
                asked = zip(outcome, ranked.requests, costs, strict=True)
                yield cell, [_allocated(reduction, request, cost) for reduction, request, cost in asked]
            waiting = missed
            if not waiting:
                return

    def _choices(self, cell: Cell, *, by_building: bool) -> tuple[list[Choices], list[Cost]]:
        """What each slot of a cell may be, by the cell's allocation, and what finding that took.

        Raises:
            ReducerError: the method fails on a slot.
        """
        method, slots = cell.method, cell.slots
        assert method is not None
        sized = None if by_building else by_size(method.reducer, slots)
        if sized is not None and cell.allocation == "uniform":
            return sized, [Cost()] * len(slots)
        found, costs = [], []
        for place, slot in enumerate(slots):
            try:
                with failing_as(slot, method):
                    work, optimum = self._begin(slot, method, cell.seed)
                    known = None if sized is None else sized[place]
                    preparation = work.prepare([largest_rank(work, known)])
                    started = time.perf_counter()
                    judge = self._judge(cell.allocation, work, preparation, optimum)
                    if known is not None:
                        found.append(choices_by_rank(work, preparation, known, judge))
                    else:
                        found.append(choices_by_building(work, preparation, judge, Budget.of(slots, 1.0).numbers))
                    again = 0.0 if method.reducer.one_preparation else preparation.seconds
                    costs.append(Cost(time.perf_counter() - started + again, preparation.seconds - again))
            except LrbenchError:
                self._copies.pop(slot.name, None)
                raise
            self._forget_old(slot)
        return found, costs

    def _judge(
        self, kind: AllocationKind | None, work: Work, preparation: Preparation, optimum: Sequence[float]
    ) -> Judge:
        """How an allocation tells what is lost of a slot."""
        slot, calibration = work.slot, self._calibration
        judge = squared_error(work, preparation, optimum[0])
        if kind == "output-error":
            assert calibration is not None
            H = calibration.second_moment(slot)
            best = self._output_optimum(slot, work, H) if "output-optimal" in work.method.reducer.promises else None
            return Judge(
                lambda factors: output_error(work.weight, factors.dense(), H) ** 2,
                lambda ranks: None if best is None else [best[rank] ** 2 for rank in ranks],
            )
        if kind == "sensitivity":
            assert calibration is not None
            if self._baseline_loss is None:
                self._baseline_loss = calibration.loss()
            baseline, model = self._baseline_loss, slot.model
            assert model is not None

            def on_text(factors: Factors) -> float:
                with in_place(model, [slot], [work.measured(factors, optimum, 0.0, {})]):
                    return calibration.loss() - baseline

            return dataclasses.replace(judge, on_text=on_text)
        return judge

    def _begin(self, slot: WeightSlot, method: Method, seed: int | None) -> tuple[Work, list[float]]:
        """A method at work on a slot, warmed up, and the optimal errors that it is judged by."""
        own = self._seed if seed is None else seed
        work = Work(slot, method, own, self._copy(slot), self._calibration, self._base)
        optimum = self._optimum(slot, work)
        self._warm_up(work)
        return work, optimum

    def _slot(
        self, slot: WeightSlot, method: Method, requests: Sequence[RankRequest], seed: int | None = None
    ) -> list[Reduction | LrbenchError]:
        """One slot at each requested rank; a failure that concerns them all is given to each."""
        reducer = method.reducer
        asked = [request for request in requests if request != WHOLE]
        if not asked:
            return [_whole(slot, method) for _ in requests]
        try:
            with failing_as(slot, method):
                work, optimum = self._begin(slot, method, seed)
                spectrum = _singular_values(optimum)
                ranks = ranks_to_prepare(asked, reducer, slot.about, spectrum)
                shared = work.prepare(ranks) if reducer.one_preparation else None
        except LrbenchError as error:
            self._copies.pop(slot.name, None)
            return [error] * len(requests)
        done: list[Reduction | LrbenchError] = []
        for request in requests:
            if request == WHOLE:
                done.append(_whole(slot, method))
                continue
            try:
                with failing_as(slot, method):
                    rank = closed_rank(request, reducer, slot.about, spectrum)
                    if rank is None:  # factors must be built to know it; that search is in no one's time
                        searched = shared or work.prepare(ranks)
                        rank = find_rank(request, reducer, slot.about, spectrum, work.weight, searched.prepared)
                    preparation = shared or work.prepare([rank])
                    factors, seconds, chosen = work.at_rank(preparation, rank)
                    work.check_honesty(factors, request, optimum)
                    measured = work.measured(factors, optimum, seconds, chosen)
                    measured = self._with_output_error(slot, work, measured)
                    done.append(measured)
            except LrbenchError as error:
                # A method that wrote to what others share must not fail them.
                self._copies.pop(slot.name, None)
                done.append(error)
        self._forget_old(slot)
        return done

    def _copy(self, slot: WeightSlot) -> Copy:
        """The slot's, as the method before left it."""
        if slot.name not in self._copies:
            base = None if self._base is None else beside(self._base.slot(slot), slot.read())
            self._copies[slot.name] = Copy(reduced_matrix(slot, base), Shared(), base)
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

    def _optimum(self, slot: WeightSlot, work: Work) -> list[float]:
        """The Eckart-Young error at every rank, once a slot and run; it judges reducers and is in no one's time."""
        if slot.name not in self._optima:
            if ("", work.weight.device) not in self._warm:  # its parts may be in the next reducer's time
                self._warm.add(("", work.weight.device))
                optimal_errors(work.weight[:64, :64].contiguous())
            self._optima[slot.name] = optimal_errors(work.weight, once=work.shared.once)
        return self._optima[slot.name]

    def _with_output_error(self, slot: WeightSlot, work: Work, reduction: Reduction) -> Reduction:
        """Adds what the layer's output loses, where the method was given the inputs' second moment."""
        if self._calibration is None or "second_moment" not in work.statistics:
            return reduction
        H = self._calibration.second_moment(slot)
        optima = self._output_optimum(slot, work, H)
        stored = work.rounded(reduction)
        edit = reduction.edit.model_copy(
            update={
                "output_error": output_error(work.weight, stored, H),
                "optimal_output_error": optima[min(reduction.edit.rank, len(optima) - 1)],
            }
        )
        return dataclasses.replace(reduction, edit=edit)

    def _output_optimum(self, slot: WeightSlot, work: Work, H: torch.Tensor) -> list[float]:
        """The least relative output error at every rank, once a slot and run."""
        if slot.name not in self._output_optima:
            errors = WeightedSpectrum(work.weight, root(H)).weighted_errors()
            self._output_optima[slot.name] = [error / errors[0] if errors[0] else 0.0 for error in errors]
        return self._output_optima[slot.name]

    def _warm_up(self, work: Work) -> None:
        """Runs a reducer once on a corner of its first weight, untimed: libraries initialise when first used."""
        key = (work.method.label, work.weight.device)
        if key in self._warm:
            return
        self._warm.add(key)
        corner = work.weight[:64, :64].contiguous()
        # A method may refuse so small a matrix. On the real one its errors count.
        with contextlib.suppress(*FOREIGN), process_state_kept():
            reducer = work.method.reducer
            reducer.prepare(corner, [1], work.context(corner.shape[1])).at_rank(1).dense()
        synchronize(corner.device)


@dataclass(frozen=True)
class Cost:
    """Seconds that it took to find what a slot may be.

    Attributes:
        curve: beyond what the reduction to the rank found takes again.
        preparation: what it does take; of a slot that stays as it is nothing was reduced, and this was for the curve.
    """

    curve: float = 0.0
    preparation: float = 0.0


def _allocated(reduction: Reduction, request: RankRequest, cost: Cost) -> Reduction:
    """With the rank that was shared out to it, and what finding that took."""
    whole = request == WHOLE
    edit = reduction.edit.model_copy(update={"allocated": "whole" if whole else int(request.value)})
    seconds = cost.curve + (cost.preparation if whole else 0.0)
    return dataclasses.replace(reduction, edit=edit, allocate_seconds=seconds)


def _whole(slot: WeightSlot, method: Method) -> Reduction:
    """A slot that stays as it is, stored in full."""
    factors = Dense(slot.read().clone(memory_format=torch.contiguous_format))
    nothing_lost = 0.0 if "second_moment" in method.reducer.needs else None
    edit = Edit(
        weight=slot.name, layer=slot.about.layer, role=slot.about.role, shape=slot.about.shape,
        rank=min(slot.about.shape), stored_numbers=factors.stored_numbers, stored_bytes=factors.stored_bytes,
        stored_as="dense", relative_error=0.0, optimal_error=0.0,
        output_error=nothing_lost, optimal_output_error=nothing_lost,
    )  # fmt: skip
    return Reduction(factors, edit, 0.0)


def _singular_values(optimum: Sequence[float]) -> torch.Tensor:
    """Descending, (min(m, n),), from the optimal errors: what each next rank takes away."""
    squares = torch.tensor(optimum, dtype=torch.float64).square()
    return (squares[:-1] - squares[1:]).clamp(min=0).sqrt()


def _free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
