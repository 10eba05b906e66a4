"""Reduces cells of `keep_model`: chooses the ranks that fill each cell's budget, then reduces the weights to them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lrbench.errors import FOREIGN, LrbenchError, ReducerError, SpoiltModelError
from lrbench.linalg import output_error
from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Factors
from lrbench.reducers.ranks import WHOLE, AllocationKind, RankRequest
from lrbench.reduction.allocation.budget import Budget, RankOptions, options_by_shape
from lrbench.reduction.allocation.family import candidates, least_predicted_loss
from lrbench.reduction.allocation.loss_curves import (
    LossMeasure,
    largest_rank,
    options_by_construction,
    options_by_rank,
    refined,
    squared_error,
)
from lrbench.reduction.apply import in_place
from lrbench.reduction.calibration.loss_moments import MOMENTS
from lrbench.reduction.plan import Cell, Method
from lrbench.reduction.reduced_weight import Reduction
from lrbench.reduction.weight_job import Preparation, Statistics, WeightJob, failing_as
from lrbench.results.rows import AllocationTrial
from lrbench.system.text import one_line

_REFINEMENTS = 2  # rounds in which interpolated losses are replaced by measured ones at the chosen ranks

Outcome = list[Reduction] | LrbenchError


class WeightReducer(Protocol):
    """Reduces weights to known ranks; see `CellReducer`."""

    def reduce_group(self, cells: Sequence[Cell], *, measured: bool) -> Iterator[tuple[Cell, Outcome]]:
        """Reduces cells that differ only in the ranks, in order."""

    def measured(self, cell: Cell, reductions: Sequence[Reduction]) -> list[Reduction]:
        """The reductions of a cell's slots with records of the edits. Raises ReducerError."""

    def begin(self, slot: WeightSlot, method: Method, seed: int | None) -> tuple[WeightJob, list[float]]:
        """A warmed-up job of a method on a slot, and the slot's optimal errors."""

    def output_optimum(self, slot: WeightSlot, job: WeightJob, H: torch.Tensor) -> list[float]:
        """The least relative output error at every rank."""

    def forget_old(self, slot: WeightSlot) -> None:
        """Evicts the least recently used working copies until the rest fits the memory budget."""

    def discard(self, slot: WeightSlot) -> None:
        """Evicts the slot's working copy."""


@dataclass(frozen=True)
class Cost:
    """Seconds spent on a slot's rank options.

    Attributes:
        curve: time that the later reduction to the chosen rank does not repeat.
        preparation: time that the reduction repeats; counted for the curve if the slot is left unreduced.
    """

    curve: float = 0.0
    preparation: float = 0.0


@dataclass(frozen=True)
class _Attempt:
    """The allocations among which one is chosen for a cell, and the cost of their curves."""

    cell: Cell
    budget: Budget
    requests: dict[str, tuple[RankRequest, ...]]
    costs: list[Cost]

    def ranked(self) -> list[Cell]:
        """The cell with the ranks of each allocation."""
        return [dataclasses.replace(self.cell, requests=each, allocation=None) for each in self.requests.values()]


class Allocator:
    """Chooses ranks under a budget.

    Args:
        weights: reduces weights to the chosen ranks.
        calibration: of the allocations that use text.
    """

    def __init__(self, weights: WeightReducer, calibration: Statistics | None) -> None:
        self._weights, self._calibration = weights, calibration
        self._baseline_loss: float | None = None
        self._held_out_baseline: float | None = None

    def reduce(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Reduces cells of one allocation that differ only in the budget.

        The loss curves of the slots are computed once for all budgets. If a method stores less than it declares and
        misses a budget, the curves and ranks are computed again from the factors' actual sizes.
        """
        waiting = list(cells)
        for by_construction in (False, True):
            try:
                rank_options, costs = self._rank_options(cells[0], by_construction=by_construction)
            except LrbenchError as error:
                yield from ((cell, error) for cell in waiting)
                return
            attempts = []
            for cell in waiting:
                try:
                    attempts.append(self._attempt(cell, rank_options, costs))
                except LrbenchError as error:
                    yield cell, error
            ranked = [each for attempt in attempts for each in attempt.ranked()]
            by_trial = cells[0].allocation == "loss"  # errors are measured of the chosen allocation only
            reduced = self._weights.reduce_group(ranked, measured=not by_trial) if ranked else iter(())
            waiting = []
            for attempt in attempts:
                outcome = self._best(attempt, reduced, may_miss=not by_construction)
                if outcome is None:
                    waiting.append(attempt.cell)
                else:
                    yield attempt.cell, outcome
            if not waiting:
                return

    def _attempt(self, cell: Cell, rank_options: Sequence[RankOptions], costs: Sequence[Cost]) -> _Attempt:
        """The allocations to try for a cell. Raises ReducerError if the budget cannot be satisfied."""
        assert cell.request is not None
        assert cell.method is not None
        assert cell.allocation is not None
        budget, label = Budget.of(cell.slots, float(cell.request.value)), cell.method.label
        own_costs = list(costs)
        if cell.allocation == "loss":
            budget.refuse_too_small(sum(int(weight.options.sizes[0]) for weight in rank_options), label)
            rank_options, own_costs = self._refined(cell, budget, rank_options, own_costs)
            allocations = candidates(rank_options, budget, label)
        else:
            allocations = {cell.allocation: budget.allocate(rank_options, cell.allocation, label)}
            budget.refuse_missed(allocations[cell.allocation].size, label)
        requests = {
            name: tuple(
                options.request(option) for options, option in zip(rank_options, allocation.choice, strict=True)
            )
            for name, allocation in allocations.items()
        }
        return _Attempt(cell, budget, requests, own_costs)

    def _best(self, attempt: _Attempt, reduced: Iterator[tuple[Cell, Outcome]], *, may_miss: bool) -> Outcome | None:
        """The reductions of the allocation that loses least on held-out text, the only one if there is one.

        Args:
            reduced: gives the outcome of each of the attempt's allocations next.
            may_miss: whether to return None if the factors of an allocation store too little for the budget.
        """
        cell, losses, failed, seconds = attempt.cell, dict[str, float](), dict[str, str](), 0.0
        best: tuple[float, str, list[Reduction]] | None = None
        failure: LrbenchError | None = None
        spoilt: SpoiltModelError | None = None
        missed = False
        for name in attempt.requests:
            started = time.perf_counter()
            _, outcome = next(reduced)
            stored = 0 if isinstance(outcome, LrbenchError) else sum(each.factors.stored_numbers for each in outcome)
            try:
                if isinstance(outcome, LrbenchError):
                    raise outcome
                missed |= may_miss and stored < attempt.budget.min_stored
                if missed or spoilt is not None:
                    continue
                assert cell.method is not None
                attempt.budget.refuse_missed(stored, cell.method.label)
                loss = self._held_out_loss(cell.slots, outcome) if cell.allocation == "loss" else 0.0
            except SpoiltModelError as error:
                spoilt = error  # what other allocations would lose now is not known
                continue
            except LrbenchError as error:
                failure = failure or error
                failed[name] = one_line(error)
                continue
            losses[name] = loss
            if best is None or loss < best[0]:
                best = loss, name, outcome
            seconds += time.perf_counter() - started
        if spoilt is not None:
            return spoilt
        if missed:
            return None
        if best is None:
            assert failure is not None
            return failure
        _, name, outcome = best
        trial = None
        if cell.allocation == "loss":
            try:
                outcome = self._weights.measured(cell, outcome)
            except LrbenchError as error:
                return error
            assert self._calibration is not None
            assert self._held_out_baseline is not None
            seconds = max(0.0, seconds - sum(each.seconds for each in outcome))
            trial = AllocationTrial(
                chosen=name, tokens=self._calibration.held_out_tokens, baseline=self._held_out_baseline,
                losses=losses, failed=failed, seconds=seconds,
            )  # fmt: skip
        parts = zip(outcome, attempt.requests[name], attempt.costs, strict=True)
        share = seconds / len(outcome) if trial is not None else 0.0
        return [_with_allocation(each, request, cost, share, trial) for each, request, cost in parts]

    def _held_out_loss(self, slots: Sequence[WeightSlot], reductions: Sequence[Reduction]) -> float:
        """The loss that the edited model adds to the baseline's on held-out text; infinite if it is not a number.

        Raises:
            LrbenchError: the model failed on the text, or an original weight was changed.
        """
        calibration, model = self._calibration, slots[0].model
        assert calibration is not None
        assert model is not None
        if self._held_out_baseline is None:
            self._held_out_baseline = calibration.held_out_loss()
        try:
            with in_place(model, slots, reductions):
                loss = calibration.held_out_loss() - self._held_out_baseline
        except LrbenchError:
            raise
        except FOREIGN as error:  # out of memory, or the model's own code
            raise ReducerError(f"the model failed on the held-out text: {one_line(error)}") from error
        return math.inf if math.isnan(loss) else loss

    def _rank_options(self, cell: Cell, *, by_construction: bool) -> tuple[list[RankOptions], list[Cost]]:
        """The rank options of each slot of a cell, and the cost of computing them.

        Raises:
            ReducerError: the method fails on a slot.
        """
        method, slots = cell.method, cell.slots
        assert method is not None
        sized = None if by_construction else options_by_shape(method.reducer, slots)
        if sized is not None and cell.allocation == "uniform":
            return sized, [Cost()] * len(slots)
        options, costs = [], []
        parameters = Budget.of(slots, 1.0).parameters
        for place, slot in enumerate(slots):
            known = None if sized is None else sized[place]
            with self._measuring(cell, slot, known) as (job, preparation, measure):
                started = time.perf_counter()
                if known is not None:
                    options.append(options_by_rank(job, preparation, known, measure))
                else:
                    options.append(options_by_construction(job, preparation, measure, parameters))
                repeated = 0.0 if method.reducer.one_preparation else preparation.seconds
                costs.append(Cost(time.perf_counter() - started + repeated, preparation.seconds - repeated))
        return options, costs

    def _refined(
        self, cell: Cell, budget: Budget, rank_options: Sequence[RankOptions], costs: list[Cost]
    ) -> tuple[list[RankOptions], list[Cost]]:
        """The rank options with the losses at the chosen ranks measured where they are interpolated, and the cost.

        Each budget refines curves of its own, so that its ranks do not depend on other budgets.
        """
        options, costs = list(rank_options), list(costs)
        for _ in range(_REFINEMENTS):
            choice = least_predicted_loss(options, budget).choice
            unmeasured = {
                place: weight.ranks[option]
                for place, (weight, option) in enumerate(zip(options, choice, strict=True))
                if weight.measured is not None
                and option < len(weight.ranks)
                and weight.ranks[option] not in weight.measured
            }
            for place, rank in unmeasured.items():
                with self._measuring(cell, cell.slots[place], options[place]) as (job, preparation, measure):
                    started = time.perf_counter()
                    options[place] = refined(job, preparation, options[place], measure, rank)
                    seconds = preparation.seconds + time.perf_counter() - started
                    costs[place] = dataclasses.replace(costs[place], curve=costs[place].curve + seconds)
            if not unmeasured:
                break
        return options, costs

    @contextlib.contextmanager
    def _measuring(
        self, cell: Cell, slot: WeightSlot, known: RankOptions | None
    ) -> Iterator[tuple[WeightJob, Preparation, LossMeasure]]:
        """A slot's job, prepared for its largest rank, and the measure of its losses. Raises ReducerError."""
        method = cell.method
        assert method is not None
        try:
            with failing_as(slot, method):
                job, optimum = self._weights.begin(slot, method, cell.seed)
                preparation = job.prepare([largest_rank(job, known)])
                yield job, preparation, self._loss_measure(cell.allocation, job, preparation, optimum)
        except LrbenchError:
            self._weights.discard(slot)
            raise
        self._weights.forget_old(slot)

    def _loss_measure(
        self, kind: AllocationKind | None, job: WeightJob, preparation: Preparation, optimum: Sequence[float]
    ) -> LossMeasure:
        """The measure by which an allocation compares losses of a slot."""
        slot, calibration = job.slot, self._calibration
        measure = squared_error(job, preparation, optimum[0])
        if kind == "output-error":
            assert calibration is not None
            H = calibration.second_moment(slot)
            known = "output-optimal" in job.method.reducer.promises
            optimal = self._weights.output_optimum(slot, job, H) if known else None
            return LossMeasure(
                lambda factors: output_error(job.weight, factors.dense(), H) ** 2,
                lambda ranks: None if optimal is None else [optimal[rank] ** 2 for rank in ranks],
            )
        if kind == "loss":
            assert calibration is not None
            calibration.statistics(slot, MOMENTS)  # raises, with the reason, where there are none
            moments = calibration.loss_moments(slot)
            if moments is None:
                raise ReducerError(f"{slot.name}: no predicted loss is known")
            return LossMeasure(
                lambda factors: moments.of_change(job.weight - factors.dense()),
                lambda ranks: moments.of_ranks(preparation.prepared, ranks),
                dropped=moments.of_change(job.weight),
            )
        if kind == "sensitivity":
            assert calibration is not None
            if self._baseline_loss is None:
                self._baseline_loss = calibration.loss()
            baseline, model = self._baseline_loss, slot.model
            assert model is not None

            def on_text(factors: Factors) -> float:
                with in_place(model, [slot], [job.round_and_measure(factors, optimum, 0.0, {})]):
                    return calibration.loss() - baseline

            return dataclasses.replace(measure, on_text=on_text)
        return measure


def _with_allocation(
    reduction: Reduction, request: RankRequest, cost: Cost, further: float, trial: AllocationTrial | None
) -> Reduction:
    """Records the allocated rank, the time that the allocation took, and the trial that it won.

    Args:
        further: seconds of the trial.
    """
    unreduced = request == WHOLE
    edit = reduction.edit.model_copy(update={"allocated": "whole" if unreduced else int(request.value)})
    seconds = cost.curve + (cost.preparation if unreduced else 0.0) + further
    return dataclasses.replace(reduction, edit=edit, allocate_seconds=seconds, trial=trial)
