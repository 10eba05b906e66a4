"""Racing: in a selection, a cell is given up as soon as documents show that it cannot be the choice.

The validation documents of each objective come in a random order, block by block. After each block every method's cells
are held against each other (`lrbench.stats.betting`); those given up are not scored any further. What is left has seen
all documents in the end, and the choice is made among it alone. `docs/selection.md` says what is promised.
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
from lrbench.run.selection.document_order import Course, course_of
from lrbench.run.selection.objective import Objective
from lrbench.run.selection.split import Split
from lrbench.stats.betting import PairwiseElimination
from lrbench.suite.selection import RaceSpec, SelectSpec
from lrbench.tasks.frozen_requests import FrozenRequests
from lrbench.tasks.score import aggregate_samples


@dataclass
class _Seen:
    """What is known of one cell.

    Attributes:
        row: of its first block, or of the one where it failed.
        stopped: tasks of the objectives that it was given up for.
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
    """All of a model's cells on the validation documents, for all objectives.

    Args:
        split: whose validation side they are scored on.
    """

    recorder: Recorder
    model_run: ModelRun
    split: Split
    objectives: Sequence[Objective]
    select: SelectSpec
    spec: RaceSpec

    def run(self) -> dict[Cell, Row]:
        """Every cell's row on validation; `Selection.stopped` says which saw not all of it."""
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
        """On all validation documents."""
        return self.model_run.engine.restricted(self.split.validation)

    def _rows(self, missing: Plan, keys: Mapping[Cell, str]) -> Iterator[Scored]:
        """What has no row yet: references in full first, then the others as they came out of the race."""
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
        """Labels of the methods that race: all of whose rows are wanted, or that were interrupted on the way.

        Where a race is over and one of its cells is tried again, the others are not: what lost stays as it is.
        """
        interrupted = self.recorder.directory.has_blocks()
        missing = set(wanted)
        found: dict[str, list[bool]] = {}
        for cell in raced:
            assert cell.method is not None
            found.setdefault(cell.method.label, []).append(cell in missing)
        return {label for label, absent in found.items() if all(absent) or (any(absent) and interrupted)}

    def _race(self, objective: Objective, baseline: Row) -> None:
        """Scores all candidates on an objective's documents, each for as long as it may be the choice."""
        samples = self.recorder.directory.samples(baseline.cell)
        course = course_of(objective, self._engine.requests, baseline, samples, self.select.seed)
        fields = self._fields(course if isinstance(course, Course) else None)
        whole = {task: self.split.validation[task] for task in objective.tasks}
        if isinstance(course, str):
            self.recorder.progress.note(f"no race for {objective.name}, every cell is scored in full: {course}")
            self._block(fields, [[*range(len(of.candidates))] for of in fields], whole)
            return
        start = 0
        for end in course.ends(self.spec.block):
            running = [of for of in fields if len(of.elimination.remaining) > 1]
            if not running:
                break
            self._block(running, [of.elimination.remaining.tolist() for of in running], course.documents(start, end))
            for of in running:
                of.judge(course, start, end, self._seen)
            start = end
            left = sum(len(of.elimination.remaining) for of in fields)
            total = sum(len(of.candidates) for of in fields)
            self.recorder.progress.note(
                f"race for {objective.name}: {end:,} of {len(course.units):,} drawn, {left} of {total} cells are left"
            )
        counted = set(course.metrics)
        beside = {task: documents for task, documents in whole.items() if task not in counted}
        self._finish(fields, course, beside)
        for of in fields:
            for place in of.elimination.eliminated:
                for cell in of.candidates[place].cells:
                    self._seen[cell].stopped += objective.tasks

    def _fields(self, course: Course | None) -> list[_Field]:
        """The candidates of each method, which race against each other."""
        by_label: dict[str, list[Candidate]] = {}
        for candidate in candidates(self.model_run.plan):
            known = [self._seen.get(cell) for cell in candidate.cells]
            if all(seen is not None and not seen.failed for seen in known):
                by_label.setdefault(candidate.label, []).append(candidate)
        population, bound = (len(course.units), course.bound) if course is not None else (1, 1.0)
        margin, alpha = self.spec.margin, self.spec.alpha
        return [_Field(of, PairwiseElimination(len(of), population, margin, alpha, bound)) for of in by_label.values()]

    def _block(
        self, fields: Sequence[_Field], places: Sequence[Sequence[int]], documents: Mapping[str, Sequence[int]]
    ) -> None:
        """Scores some candidates of each field on some documents, in the order of the plan."""
        chosen = {
            cell
            for of, of_field in zip(fields, places, strict=True)
            for place in of_field
            for cell in of.candidates[place].cells
            if not self._seen[cell].failed
        }
        cells = [cell for cell in self.model_run.plan.cells if cell in chosen]
        if cells and documents:
            engine = self.model_run.engine.restricted(documents)
            new = {cell for cell in cells if self._seen[cell].row is None}
            first, others = ([cell for cell in cells if (cell in new) is asked] for asked in (True, False))
            for part, measure in ((first, True), (others, False)):
                for cell, scored in self._session.block(part, engine, measure=measure):
                    self._seen[cell].add(scored)

    def _finish(self, fields: Sequence[_Field], course: Course, beside: Mapping[str, Sequence[int]]) -> None:
        """Scores on all documents whatever is left, and what was given up for a candidate that then failed."""
        finished: set[tuple[int, int]] = set()
        while True:
            waiting: dict[int, list[tuple[int, int]]] = {}
            for number, of in enumerate(fields):
                for place in (*of.elimination.remaining.tolist(), *of.again):
                    if (number, place) not in finished:
                        waiting.setdefault(of.drawn[place], []).append((number, place))
            if not waiting:
                return
            for drawn, places in waiting.items():
                finished.update(places)
                documents = {**course.documents(drawn, len(course.units)), **beside}
                of_fields = [[place for n, place in places if n == number] for number in range(len(fields))]
                self._block(fields, of_fields, documents)
            for of in fields:
                of.drop_failed(self._seen)

    def _finished(self, cell: Cell, key: str, known: dict[tuple[tuple[str, int], ...], FrozenRequests]) -> Scored:
        """A cell's row of all that it was asked.

        Args:
            known: requests of as many documents of each task, which come in one order.
        """
        seen = self._seen[cell]
        assert seen.row is not None
        if seen.failed:
            return Scored(seen.row.model_copy(update={"cell": key, "evaluate_seconds": seen.seconds}))
        order = {task: place for place, task in enumerate(self._engine.requests.tasks)}
        samples = sorted(seen.samples, key=lambda sample: (order[sample["task"]], sample["doc"]))
        documents: dict[str, list[int]] = {}
        for sample in samples:
            documents.setdefault(sample["task"], []).append(sample["doc"])
        asked = {task: len(of_task) for task, of_task in documents.items()}
        whole = self.split.sizes("validation")
        sizes = tuple(asked.items())
        if sizes not in known:
            known[sizes] = self._engine.requests.restricted(documents)
        stopped = {task: asked.get(task, 0) for task in seen.stopped if asked.get(task, 0) < whole[task]}
        row = seen.row.model_copy(
            update={
                "cell": key,
                "evaluate_seconds": seen.seconds,
                "scores": aggregate_samples(known[sizes], samples),
                "selection": Selection(
                    split="validation", documents=asked, stopped=stopped or None, predicted=cell.predicted
                ),
            }
        )
        return Scored(row, samples)


@dataclass
class _Field:
    """One method's candidates in the race for one objective.

    Attributes:
        drawn: how many units each was scored on, by its place.
        again: places of those that were given up for one that failed afterwards.
    """

    candidates: list[Candidate]
    elimination: PairwiseElimination
    again: list[int] = field(default_factory=list)
    drawn: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = dict.fromkeys(range(len(self.candidates)), 0)

    def judge(self, course: Course, start: int, end: int, seen: Mapping[Cell, _Seen]) -> None:
        """Takes in a block's values, and gives up what can be given up."""
        self.drop_failed(seen)
        asked = {key for unit in course.units[start:end] for key in unit}
        columns = []
        for place in self.elimination.remaining.tolist():
            cells = self.candidates[place].cells
            of_cells = [
                course.values(start, end, [s for s in seen[cell].samples if (s["task"], s["doc"]) in asked])
                for cell in cells
            ]
            columns.append(np.mean(of_cells, axis=0))
            self.drawn[place] = end
        if columns:
            self.elimination.observe(np.stack(columns, axis=1))
            if end < len(course.units):  # what has seen everything takes part in the choice
                self.elimination.eliminate()

    def drop_failed(self, seen: Mapping[Cell, _Seen]) -> None:
        """Takes out candidates of which a cell failed; what was given up for them alone is in question again."""
        for place in (*self.elimination.remaining.tolist(), *self.again):
            if any(seen[cell].failed for cell in self.candidates[place].cells):
                if place in self.again:
                    self.again.remove(place)
                else:
                    self.again += self.elimination.remove(place)
