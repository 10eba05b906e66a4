"""Racing: in a selection, a cell is stopped as soon as documents show that it cannot be chosen.

The validation documents of each objective are drawn in random order, block by block. After each block the cells of each
method are compared with each other (`lrbench.stats.betting`), and those that cannot be chosen are scored no further.
The remaining cells are scored on all documents, and the choice is made among them. docs/selection.md states the
guarantee.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lrbench.evaluation.base_engine import BaseEngine
from lrbench.reduction.plan import Cell, Plan
from lrbench.results.rows import Row, Selection
from lrbench.run.cell_scoring import Scored
from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Recorder, Scope
from lrbench.run.selection.choice import Candidate, candidates
from lrbench.run.selection.document_order import DocumentOrder, document_order_of
from lrbench.run.selection.objective import Objective
from lrbench.run.selection.split import Split
from lrbench.stats.betting import PairwiseElimination
from lrbench.suite.selection import RaceSpec, SelectSpec
from lrbench.tasks.frozen_requests import FrozenRequests
from lrbench.tasks.score import aggregate_samples


@dataclass
class _Seen:
    """The results of one cell so far.

    Attributes:
        row: of its first block, or of the block in which it failed.
        stopped: tasks of the objectives for which it was stopped.
    """

    row: Row | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.row is not None and self.row.status != "ok"

    def add(self, scored: Scored) -> None:
        if self.row is None or scored.row.status != "ok":
            self.row = scored.row
        self.samples += scored.samples
        self.seconds += scored.row.evaluate_seconds


@dataclass
class Race:
    """The race among a model's cells on the validation documents of `split`, for all objectives."""

    recorder: Recorder
    model_run: ModelRun
    split: Split
    objectives: Sequence[Objective]
    select: SelectSpec
    spec: RaceSpec

    def run(self) -> dict[Cell, Row]:
        """Every cell's row on validation; `Selection.stopped` marks cells that were not scored on all documents."""
        sizes = self.split.sizes("validation")

        def selection(cell: Cell) -> Selection:
            return Selection(split="validation", documents=sizes, predicted=cell.predicted)

        scope = Scope(self.model_run.plan, self._engine, selection, {"race": self.spec.resolved()})
        with self.recorder.session(self.model_run, scope) as self._session:
            if self._session.missing.cells:
                for scored in self._rows(self._session.missing, self._session.keys):
                    self._session.write(scored)
        return self._session.rows

    @cached_property
    def _engine(self) -> BaseEngine:
        """Bound to all validation documents."""
        return self.model_run.engine.restricted(self.split.validation)

    def _rows(self, missing: Plan, keys: Mapping[Cell, str]) -> Iterator[Scored]:
        """The missing rows: of references, on all documents, then of the others after their race."""
        plan, done = self.model_run.plan, self.recorder.done
        raced = [cell for candidate in candidates(plan) for cell in candidate.cells if not (cell.skip or cell.failure)]
        first = [cell for cell in missing.cells if cell not in raced]
        yield from self.model_run.rows(Plan(tuple(first)), keys, self._engine)
        baseline = done[next(keys[cell] for cell in plan.cells if cell.method is None)]
        wanted = [cell for cell in missing.cells if cell in raced]
        racing = self._racing(raced, wanted) if baseline.status == "ok" else set()
        alone = [cell for cell in wanted if cell.method is not None and cell.method.label not in racing]
        if alone:
            self.recorder.progress.note(f"{len(alone)} cells are scored in full: their race is over, or cannot be held")
            yield from self.model_run.rows(Plan(tuple(alone)), keys, self._engine)
        raced = [cell for cell in raced if cell.method is not None and cell.method.label in racing]
        self._seen = {cell: _Seen() for cell in raced}
        for objective in self.objectives:
            self._race(objective, baseline)
        scorers: dict[tuple[tuple[str, int], ...], FrozenRequests] = {}
        for cell in wanted:
            if cell in self._seen:
                yield self._finished(cell, keys[cell], scorers)

    def _racing(self, raced: Sequence[Cell], wanted: Sequence[Cell]) -> set[str]:
        """Labels of the methods that race: all of their rows are missing, or their race was interrupted.

        A cell that is scored again after its race is over does not race: the rows of its competitors stay.
        """
        interrupted = self.recorder.directory.has_blocks()
        missing = set(wanted)
        by_label: dict[str, list[bool]] = {}
        for cell in raced:
            assert cell.method is not None
            by_label.setdefault(cell.method.label, []).append(cell in missing)
        return {label for label, absent in by_label.items() if all(absent) or (any(absent) and interrupted)}

    def _race(self, objective: Objective, baseline: Row) -> None:
        """Scores candidates on an objective's documents, each for as long as it can be chosen."""
        samples = self.recorder.directory.samples(baseline.cell)
        order = document_order_of(objective, self._engine.requests, baseline, samples, self.select.seed)
        contests = self._contests(order if isinstance(order, DocumentOrder) else None)
        whole = {task: self.split.validation[task] for task in objective.tasks}
        if isinstance(order, str):
            self.recorder.progress.note(f"no race for {objective.name}, every cell is scored in full: {order}")
            self._block(contests, [[*range(len(contest.candidates))] for contest in contests], whole)
            return
        start = 0
        for end in order.ends(self.spec.block):
            running = [contest for contest in contests if len(contest.elimination.remaining) > 1]
            if not running:
                break
            remaining = [contest.elimination.remaining.tolist() for contest in running]
            self._block(running, remaining, order.documents(start, end))
            for contest in running:
                contest.judge(order, start, end, self._seen)
            start = end
            left = sum(len(contest.elimination.remaining) for contest in contests)
            total = sum(len(contest.candidates) for contest in contests)
            self.recorder.progress.note(
                f"race for {objective.name}: {end:,} of {len(order.units):,} drawn, {left} of {total} cells are left"
            )
        others = {task: documents for task, documents in whole.items() if task not in order.metrics}
        self._finish(contests, order, others)
        for contest in contests:
            for place in contest.elimination.eliminated:
                for cell in contest.candidates[place].cells:
                    self._seen[cell].stopped += objective.tasks

    def _contests(self, order: DocumentOrder | None) -> list[_Contest]:
        """One contest for each method, among its candidates."""
        by_label: dict[str, list[Candidate]] = {}
        for candidate in candidates(self.model_run.plan):
            results = [self._seen.get(cell) for cell in candidate.cells]
            if all(seen is not None and not seen.failed for seen in results):
                by_label.setdefault(candidate.label, []).append(candidate)
        population, bound = (len(order.units), order.bound) if order is not None else (1, 1.0)
        margin, alpha = self.spec.margin, self.spec.alpha
        return [
            _Contest(rivals, PairwiseElimination(len(rivals), population, margin, alpha, bound))
            for rivals in by_label.values()
        ]

    def _block(
        self, contests: Sequence[_Contest], places: Sequence[Sequence[int]], documents: Mapping[str, Sequence[int]]
    ) -> None:
        """Scores the candidates at `places` of each contest on some documents, in the order of the plan."""
        chosen = {
            cell
            for contest, places_of in zip(contests, places, strict=True)
            for place in places_of
            for cell in contest.candidates[place].cells
            if not self._seen[cell].failed
        }
        cells = [cell for cell in self.model_run.plan.cells if cell in chosen]
        if cells and documents:
            engine = self.model_run.engine.restricted(documents)
            new = {cell for cell in cells if self._seen[cell].row is None}
            for measure in (True, False):  # the first time only
                part = [cell for cell in cells if (cell in new) is measure]
                for cell, scored in self._session.block(part, engine, measure=measure):
                    self._seen[cell].add(scored)

    def _finish(self, contests: Sequence[_Contest], order: DocumentOrder, others: Mapping[str, Sequence[int]]) -> None:
        """Scores the remaining candidates on all documents, and those that were eliminated by one that then failed.

        Args:
            others: documents of tasks that do not count for the objective's value.
        """
        finished: set[tuple[int, int]] = set()
        while True:
            waiting: dict[int, list[tuple[int, int]]] = {}
            for number, contest in enumerate(contests):
                for place in (*contest.elimination.remaining.tolist(), *contest.again):
                    if (number, place) not in finished:
                        waiting.setdefault(contest.drawn[place], []).append((number, place))
            if not waiting:
                return
            for drawn, places in waiting.items():
                finished.update(places)
                documents = {**order.documents(drawn, len(order.units)), **others}
                places_of = [[place for n, place in places if n == number] for number in range(len(contests))]
                self._block(contests, places_of, documents)
            for contest in contests:
                contest.drop_failed(self._seen)

    def _finished(self, cell: Cell, key: str, scorers: dict[tuple[tuple[str, int], ...], FrozenRequests]) -> Scored:
        """A cell's row over all documents that it was scored on.

        Args:
            scorers: a cache of restricted requests, by the number of documents of each task. Cells with equal numbers
                have the same documents, since the order is the same for all.
        """
        seen = self._seen[cell]
        assert seen.row is not None
        if seen.failed:
            return Scored(seen.row.model_copy(update={"cell": key, "evaluate_seconds": seen.seconds}))
        places = {task: place for place, task in enumerate(self._engine.requests.tasks)}
        samples = sorted(seen.samples, key=lambda sample: (places[sample["task"]], sample["doc"]))
        documents: dict[str, list[int]] = {}
        for sample in samples:
            documents.setdefault(sample["task"], []).append(sample["doc"])
        counts = {task: len(indices) for task, indices in documents.items()}
        whole = self.split.sizes("validation")
        sizes = tuple(counts.items())
        if sizes not in scorers:
            scorers[sizes] = self._engine.requests.restricted(documents)
        stopped = {task: counts.get(task, 0) for task in seen.stopped if counts.get(task, 0) < whole[task]}
        row = seen.row.model_copy(
            update={
                "cell": key,
                "evaluate_seconds": seen.seconds,
                "scores": aggregate_samples(scorers[sizes], samples),
                "selection": Selection(
                    split="validation", documents=counts, stopped=stopped or None, predicted=cell.predicted
                ),
            }
        )
        return Scored(row, samples)


@dataclass
class _Contest:
    """The candidates of one method in the race for one objective. A place is an index into them.

    Attributes:
        drawn: place -> the number of units that the candidate was scored on.
        again: places of candidates that were eliminated by one that failed later.
    """

    candidates: list[Candidate]
    elimination: PairwiseElimination
    again: list[int] = field(default_factory=list)
    drawn: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = dict.fromkeys(range(len(self.candidates)), 0)

    def judge(self, order: DocumentOrder, start: int, end: int, seen: Mapping[Cell, _Seen]) -> None:
        """Adds the values of a block, and eliminates candidates that cannot be chosen."""
        self.drop_failed(seen)
        keys = {key for unit in order.units[start:end] for key in unit}
        columns = []
        for place in self.elimination.remaining.tolist():
            cells = self.candidates[place].cells
            of_cells = [
                order.values(start, end, [s for s in seen[cell].samples if (s["task"], s["doc"]) in keys])
                for cell in cells
            ]
            columns.append(np.mean(of_cells, axis=0))
            self.drawn[place] = end
        if columns:
            self.elimination.observe(np.stack(columns, axis=1))
            if end < len(order.units):  # after the last block the choice itself decides
                self.elimination.eliminate()

    def drop_failed(self, seen: Mapping[Cell, _Seen]) -> None:
        """Removes candidates with a failed cell; those that only they eliminated are candidates again."""
        for place in (*self.elimination.remaining.tolist(), *self.again):
            if any(seen[cell].failed for cell in self.candidates[place].cells):
                if place in self.again:
                    self.again.remove(place)
                else:
                    self.again += self.elimination.remove(place)
