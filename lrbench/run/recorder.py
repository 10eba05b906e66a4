"""What a run writes while it runs, and what it tells: rows, counts, progress."""

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
from lrbench.run.manifest_writer import Manifest, Part
from lrbench.run.model_run import ModelRun
from lrbench.run.partial_answers import AnswerStorage, RunPartials


class Progress(Protocol):
    """Hears what a run does, as it does it."""

    def note(self, message: str) -> None:
        """Something happens that takes a while, or that the user should know."""

    def planned(self, model: str, cells: int, reused: int, tasks: Mapping[str, Sequence[str]]) -> None:
        """A model's cells are known, how many are there already, and what the suite's tasks stand for."""

    def scoring(self, step: Step) -> None:
        """A cell was answered some requests."""

    def finished(self, row: Row) -> None:
        """A row was written."""


@dataclass
class RunResult:
    """What a run did.

    Attributes:
        computed: cells worked on now, whatever became of them.
        reused: cells that had a row.
        failed, skipped: such rows of the whole plan, new and old.
        interrupted: it ended before its last cell.
    """

    directory: RunDirectory
    computed: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def count(self, rows: Iterable[Row], *, new: bool) -> None:
        """Adds rows of the plan."""
        for row in rows:
            self.computed += new
            self.reused += not new
            self.failed += row.status == "failed"
            self.skipped += row.status == "skipped"

    def summary(self) -> str:
        """One line for the terminal."""
        worked = self.computed or self.interrupted
        parts = [f"{self.computed} cells done in {self.seconds:.0f} s"] if worked else ["nothing to compute"]
        if self.reused:
            parts.append(f"{self.reused} already there")
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.failed:
            parts.append(f"{self.failed} failed (--retry-failed tries them again)")
        return f"{', '.join(parts)}; rows in {self.directory.path}"


class Interrupted(KeyboardInterrupt):
    """A run ends before its last cell, on demand; the rows of all finished cells are on disk.

    Attributes:
        result: what it did until then, where that is known.
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
    """Whether a run is to end after what is at work.

    Attributes:
        asked: set by whoever wants that; at work is then finished, and a part of it where requests go in parts.
        at_work: whether there is a cell to be finished, or weights to be looked at; else there is nothing to wait for.
    """

    asked: bool = False
    at_work: bool = False

    def check(self) -> None:
        """Raises Interrupted where the end is asked for."""
        if self.asked:
            raise Interrupted


@dataclass(frozen=True)
class Scope:
    """The cells to score, and on which requests.

    Attributes:
        engine: bound to the requests, if they are not all of the suite's.
        selection: the part of each cell's row in a choice, if the row itself does not say.
        definition: what else defines the rows.
    """

    plan: Plan
    engine: BaseEngine | None = None
    selection: Callable[[Cell], Selection] | None = None
    definition: Mapping[str, Any] | None = None


@dataclass
class Recorder:
    """Scores missing cells; writes, counts and reports each row.

    Attributes:
        done: rows that stand, by cell; of failed ones only those that are not tried again.
        retry_failed: whether what failed is tried again.
        stop: looked at after every cell.
    """

    directory: RunDirectory
    manifest: Manifest
    result: RunResult
    progress: Progress
    done: dict[str, Row] = field(default_factory=dict)
    retry_failed: bool = False
    stop: Stop = field(default_factory=Stop)
    _unverified: list[Row] = field(default_factory=list)

    @contextmanager
    def verified(self, model_run: ModelRun) -> Iterator[None]:
        """Compares the model's weights with their hash after its cells are scored, or after the run is asked to stop.

        A mismatch means that a method or a task changed the weights unseen, and nobody knows when. Every row of the
        model that this run has scored then fails, with every row that a choice among them reports. Answers to parts of
        the requests are dropped.
        """
        interrupted = None
        try:
            yield
            self.stop.at_work = True  # a request to stop now waits until the weights are compared
        except Interrupted as stopped:
            interrupted, self.stop.at_work = stopped, True
        try:
            self._verify(model_run)
        finally:
            self.stop.at_work = False
        if interrupted is not None:
            raise interrupted

    def score(self, model_run: ModelRun, scope: Scope) -> dict[Cell, Row]:
        """Every cell's row: scores and writes the missing ones.

        Raises:
            KeyboardInterrupt: after the rows of all finished cells are on disk.
        """
        with self.session(model_run, scope) as session:
            for scored in model_run.rows(session.missing, session.keys, session.engine):
                session.write(scored)
        return session.rows

    @contextmanager
    def session(self, model_run: ModelRun, scope: Scope) -> Iterator[Session]:
        """Counts and reports the rows that are there, and opens the run for the missing ones.

        Raises:
            Interrupted: the run was asked to stop.
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
            if selection.split == "test" and self.done[key].selection != selection:  # it was chosen among others then
                self.done[key] = self.done[key].model_copy(update={"selection": selection})
                self.directory.append(self.done[key])

    def write(self, scored: Scored) -> None:
        """Writes a row, its per-document scores first: a row never stands without them."""
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
        """Cells of a model that are reported because they were chosen."""
        for cell, row in self.done.items():
            if row.model == label and row.status == "ok" and row.selection and row.selection.chosen_for is not None:
                yield cell

    def _fail(self, cells: Iterable[str], label: str) -> None:
        """Fails rows that stand on weights that were changed unseen, all in one write."""
        rows = [self.done[cell] for cell in cells]
        methods = ", ".join(dict.fromkeys(row.label for row in rows if row.label)) or "the engine"
        what = "the model's weights were changed unseen"
        reason = f"{what} during this run (by one of {methods}, or by a task's code); no score of it stands"
        failed = [
            row.model_copy(update={"status": "failed", "reason": reason, "scores": {}, "inference": None})
            for row in rows
        ]
        self.directory.append(*failed)
        self.done |= {row.cell: row for row in failed}
        self.result.failed += len(failed)
        then = f"{len(failed)} cells failed; --retry-failed scores them again" if failed else "no row stands on them"
        self.progress.note(f"{label}: {what}, by a method or a task's code: {then}")

    def connect(self, model_run: ModelRun, engine: BaseEngine) -> RunPartials | None:
        """Records the environment of an engine, and stores its partial answers from now on."""
        requests = [engine.lm.max_length, list(engine.requests.hashes().items())]
        answers = AnswerStorage(self.directory, requests, self.stop.check if model_run.here else None)
        return model_run.connect(engine, answers, self.progress.scoring)


class Session:
    """Scores the missing rows of some cells on some requests.

    Attributes:
        engine: bound to the requests.
        keys: hash of each cell.
        missing: the cells without a row.
        selections: hash -> the row's part in a choice.
        part: the manifest's entry of the requests, if they are not all of the suite's.
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
            name = next(iter(self.selections.values())).share
            self.part = Part(name, self.engine, setting | dict(scope.definition or {}))
        recorder.manifest.add_model(
            model_run.loaded, model_run.tasks, model_run.engine, model_run.setting(), list(self.keys.values()),
            model_run.calibration, model_run.base, at_work=bool(self._left), part=self.part,
        )  # fmt: skip

    @property
    def rows(self) -> dict[Cell, Row]:
        """The rows of all cells, once the missing ones are written."""
        return {cell: self._recorder.done[self.keys[cell]] for cell in self._plan.cells}

    def write(self, scored: Scored) -> None:
        """Writes a missing row. Raises Interrupted where the run is to stop, unless it was the last one."""
        selection = self.selections.get(scored.row.cell)
        if selection is not None and not scored.row.selection:
            scored = replace(scored, row=scored.row.model_copy(update={"selection": selection}))
        self._recorder.write(scored)
        self._left -= 1
        if self._left and self._model_run.here:
            self._recorder.stop.check()

    def block(self, cells: Sequence[Cell], engine: BaseEngine, *, measure: bool) -> Iterator[tuple[Cell, Scored]]:
        """Scores some cells on some documents, as part of rows to come; reuses what an interrupted run stored.

        The results stay on disk until the session ends.

        Args:
            engine: bound to these documents.
            measure: as `ModelRun.rows`.
        """
        recorder, keys = self._recorder, self._model_run.keys(Plan(tuple(cells)), engine)
        partials = recorder.connect(self._model_run, engine)
        assert partials is not None  # a suite that races is refused where workers score
        missing = []
        for cell in cells:
            stored = partials.scored(keys[cell])
            if stored is None or (recorder.retry_failed and stored[0].status == "failed"):
                missing.append(cell)
            else:
                yield cell, Scored(*stored)
        by_key = {keys[cell]: cell for cell in missing}
        for scored in self._model_run.rows(Plan(tuple(missing)), keys, engine, measure=measure) if missing else ():
            partials.keep(scored.row.cell, scored.row, scored.samples)
            recorder.directory.drop_partial(scored.row.cell)
            yield by_key[scored.row.cell], scored
            recorder.stop.check()
