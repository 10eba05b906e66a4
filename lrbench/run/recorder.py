"""Writes, counts and reports rows while a run scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.interface import Step
from lrbench.reduction.plan import Cell, Plan
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row, Selection
from lrbench.run.cell_scoring import Scored
from lrbench.run.manifest_writer import ManifestWriter, Part
from lrbench.run.model_run import ModelRun
from lrbench.run.partial_answers import AnswerStorage, RunPartials


class Progress(Protocol):
    """Called with each step of a run."""

    def note(self, message: str) -> None:
        """Called before slow steps, and with what the user should know."""

    def planned(self, model: str, cells: int, reused: int, tasks: Mapping[str, Sequence[str]]) -> None:
        """A model's cells are planned; `reused` of them have a row. `tasks` maps the suite's tasks to single tasks."""

    def scoring(self, step: Step) -> None:
        """The engine has answered some requests of a cell."""

    def finished(self, row: Row) -> None:
        """A row was written."""


@dataclass
class RunResult:
    """The counts of a run.

    Attributes:
        computed: rows that this run wrote, failed and skipped ones included.
        reused: cells that had a row before.
        failed, skipped: rows of the whole plan with this status, new and old.
        interrupted: whether the run ended before its last cell.
    """

    directory: RunDirectory
    computed: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def count(self, rows: Iterable[Row], *, new: bool) -> None:
        """Counts rows of the plan."""
        for row in rows:
            self.computed += new
            self.reused += not new
            self.failed += row.status == "failed"
            self.skipped += row.status == "skipped"

    def summary(self) -> str:
        """One line for the terminal."""
        any_work = self.computed or self.interrupted
        parts = [f"{self.computed} cells done in {self.seconds:.0f} s"] if any_work else ["nothing to compute"]
        if self.reused:
            parts.append(f"{self.reused} already there")
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.failed:
            parts.append(f"{self.failed} failed (--retry-failed tries them again)")
        return f"{', '.join(parts)}; rows in {self.directory.path}"


class Interrupted(KeyboardInterrupt):
    """A run was asked to end before its last cell; the rows of all finished cells are on disk.

    Attributes:
        result: the run's counts; None if they are not known.
    """

    def __init__(self, result: RunResult | None = None) -> None:
        super().__init__()
        self.result = result

    def __str__(self) -> str:
        done = f"{self.result.summary()}; " if self.result is not None else ""
        return f"interrupted; {done}the same call goes on where it stopped"

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows."""
        return [str(self)]


@dataclass
class Stop:
    """A request to end a run after the cell under way.

    Attributes:
        requested: set to request the end. The cell under way is then finished, or its current part if the engine
            answers requests in parts.
        at_work: whether a cell is under way or weights are being verified; else the run can end at once.
    """

    requested: bool = False
    at_work: bool = False

    def check(self) -> None:
        """Raises Interrupted if the end was requested."""
        if self.requested:
            raise Interrupted


@dataclass(frozen=True)
class Scope:
    """The cells to score, and the requests to score them on.

    Attributes:
        engine: bound to the requests; None for all requests of the suite.
        selection: gives each row's `selection`, unless the row has one already.
        definition: what defines the rows beside the cell and the requests.
    """

    plan: Plan
    engine: BaseEngine | None = None
    selection: Callable[[Cell], Selection] | None = None
    definition: Mapping[str, Any] | None = None


@dataclass
class Recorder:
    """Scores missing cells; writes, counts and reports each row.

    Attributes:
        done: hash -> row of the cells that are not scored again.
        retry_failed: whether failed cells are scored again.
        stop: checked after every cell.
    """

    directory: RunDirectory
    manifest: ManifestWriter
    result: RunResult
    progress: Progress
    done: dict[str, Row] = field(default_factory=dict)
    retry_failed: bool = False
    stop: Stop = field(default_factory=Stop)
    _unverified: list[Row] = field(default_factory=list)

    @contextmanager
    def verified(self, model_run: ModelRun) -> Iterator[None]:
        """Compares the model's weights with their hash after its cells are scored, or after a request to stop.

        A mismatch means that a method or a task changed the weights unseen, at an unknown time. Every row of the model
        that this run has scored then fails, and so does every row that was chosen among them. Partial answers are
        dropped.
        """
        interrupted = None
        try:
            yield
            self.stop.at_work = True  # from here on a request to stop waits for the comparison
        except Interrupted as stopped:
            interrupted, self.stop.at_work = stopped, True
        try:
            self._verify(model_run)
        finally:
            self.stop.at_work = False
        if interrupted is not None:
            raise interrupted

    def score(self, model_run: ModelRun, scope: Scope) -> dict[Cell, Row]:
        """Scores and writes the missing rows, and returns every cell's row.

        Raises:
            KeyboardInterrupt: after the rows of all finished cells are on disk.
        """
        with self.session(model_run, scope) as session:
            for scored in model_run.rows(session.missing, session.keys, session.engine):
                session.write(scored)
        return session.rows

    @contextmanager
    def session(self, model_run: ModelRun, scope: Scope) -> Iterator[Session]:
        """Counts and reports the existing rows, and prepares for writing the missing ones.

        Raises:
            Interrupted: a stop was requested.
        """
        self.stop.check()
        session = Session(self, model_run, scope)
        reused = [self.done[key] for key in session.keys.values() if key in self.done]
        self.result.count(reused, new=False)
        self.progress.planned(model_run.loaded.label, len(scope.plan.cells), len(reused), model_run.tasks.named)
        if session.missing.cells:
            self.connect(model_run, session.engine)
            if model_run.calibration is not None:
                model_run.calibration.expect(session.missing.cells)
            self.stop.at_work = True
            try:
                yield session
            finally:
                self.stop.at_work = False
                part = session.part.name if session.part is not None else None
                self.manifest.update_engine(model_run.loaded, session.engine, part)
        else:
            yield session
        self.directory.drop_blocks()
        for key, selection in session.selections.items():
            if selection.split == "test" and self.done[key].selection != selection:  # it was chosen among other cells
                self.done[key] = self.done[key].model_copy(update={"selection": selection})
                self.directory.append(self.done[key])

    def write(self, scored: Scored) -> None:
        """Writes a row, its per-document scores first, so that no row is without them."""
        row = scored.row
        if row.status == "ok":
            self.directory.write_samples(row.cell, scored.samples)
        self.directory.append(row)
        self.directory.drop_partial(row.cell)
        self.done[row.cell] = row
        self._unverified.append(row)
        self.result.count([row], new=True)
        self.progress.finished(row)

    def _verify(self, model_run: ModelRun) -> None:
        scored = [row.cell for row in self._unverified if row.status == "ok"]
        if (self._unverified or self.directory.has_partial()) and not model_run.intact():
            self.directory.drop_partial()
            label = model_run.loaded.label
            self._fail({**dict.fromkeys(scored), **dict.fromkeys(self._chosen(label) if scored else ())}, label)
        self._unverified.clear()

    def _chosen(self, label: str) -> Iterator[str]:
        """Hashes of the model's cells that are reported because they were chosen."""
        for cell, row in self.done.items():
            if row.model == label and row.status == "ok" and row.selection and row.selection.chosen_for is not None:
                yield cell

    def _fail(self, cells: Iterable[str], label: str) -> None:
        """Replaces rows by failed ones, all in one write: the weights were changed unseen."""
        rows = [self.done[cell] for cell in cells]
        methods = ", ".join(dict.fromkeys(row.label for row in rows if row.label)) or "the engine"
        change = "the model's weights were changed unseen"
        reason = f"{change} during this run (by one of {methods}, or by a task's code); its scores are invalid"
        failed = [
            row.model_copy(update={"status": "failed", "reason": reason, "scores": {}, "inference": None})
            for row in rows
        ]
        self.directory.append(*failed)
        self.done |= {row.cell: row for row in failed}
        self.result.failed += len(failed)
        effect = (
            f"{len(failed)} cells failed; --retry-failed scores them again" if failed else "no row was scored with them"
        )
        self.progress.note(f"{label}: {change}, by a method or a task's code: {effect}")

    def connect(self, model_run: ModelRun, engine: BaseEngine) -> RunPartials | None:
        """Records the environment of an engine, and from now on stores its partial answers."""
        requests = [engine.lm.max_length, list(engine.requests.hashes().items())]
        answers = AnswerStorage(self.directory, requests, self.stop.check if model_run.here else None)
        return model_run.connect(engine, answers, self.progress.scoring)


class Session:
    """Scores the missing rows of some cells on some requests.

    Attributes:
        engine: bound to the requests.
        keys: hash of each cell.
        missing: the cells without a row.
        selections: hash -> the row's `selection`.
        part: the documents of the requests, if they are not all of the suite's.
    """

    def __init__(self, recorder: Recorder, model_run: ModelRun, scope: Scope) -> None:
        self._recorder, self._model_run, self._plan = recorder, model_run, scope.plan
        self.engine = scope.engine or model_run.engine
        self.keys = model_run.keys(scope.plan, self.engine, scope.definition)
        selection = scope.selection
        self.selections = {self.keys[cell]: selection(cell) for cell in scope.plan.cells} if selection else {}
        self.missing = Plan(tuple(cell for cell in scope.plan.cells if self.keys[cell] not in recorder.done))
        self._left = len(self.missing.cells)
        setting = model_run.setting(self.engine)
        self.part = None
        if scope.engine is not None and self.selections:
            name = next(iter(self.selections.values())).part
            self.part = Part(name, self.engine, setting | dict(scope.definition or {}))
        recorder.manifest.add_model(
            model_run.loaded, model_run.tasks, model_run.engine, model_run.setting(), list(self.keys.values()),
            model_run.calibration, model_run.base, at_work=bool(self._left), part=self.part,
        )  # fmt: skip

    @property
    def rows(self) -> dict[Cell, Row]:
        """The rows of all cells; available after the missing ones are written."""
        return {cell: self._recorder.done[self.keys[cell]] for cell in self._plan.cells}

    def write(self, scored: Scored) -> None:
        """Writes a missing row. Raises Interrupted if a stop was requested and other rows are missing."""
        selection = self.selections.get(scored.row.cell)
        if selection is not None and not scored.row.selection:
            scored = replace(scored, row=scored.row.model_copy(update={"selection": selection}))
        self._recorder.write(scored)
        self._left -= 1
        if self._left and self._model_run.here:
            self._recorder.stop.check()

    def block(self, cells: Sequence[Cell], engine: BaseEngine, *, measure: bool) -> Iterator[tuple[Cell, Scored]]:
        """Scores some cells on some documents, as part of later rows; reuses the results of an interrupted run.

        The results stay on disk until the session ends.

        Args:
            engine: bound to these documents.
            measure: as `ModelRun.rows`.
        """
        recorder, keys = self._recorder, self._model_run.keys(Plan(tuple(cells)), engine)
        partials = recorder.connect(self._model_run, engine)
        assert partials is not None  # executors with workers refuse suites with a race
        missing = []
        for cell in cells:
            stored = partials.scored(keys[cell])
            if stored is None or (recorder.retry_failed and stored[0].status == "failed"):
                missing.append(cell)
            else:
                yield cell, Scored(*stored)
        by_key = {keys[cell]: cell for cell in missing}
        for scored in self._model_run.rows(Plan(tuple(missing)), keys, engine, measure=measure) if missing else ():
            partials.add_scored(scored.row.cell, scored.row, scored.samples)
            recorder.directory.drop_partial(scored.row.cell)
            yield by_key[scored.row.cell], scored
            recorder.stop.check()
