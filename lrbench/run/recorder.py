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
from lrbench.run.manifest_writer import Manifest, Part
from lrbench.run.model_run import Keep, ModelRun, Scored, setting_of
from lrbench.run.partial_answers import RunPartials


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


@dataclass
class Records:
    """A run's directory at work: scores what has no row yet, writes it, counts it and tells of it.

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

    def score(
        self,
        share: ModelRun,
        plan: Plan,
        engine: BaseEngine | None = None,
        selection: Callable[[Cell], Selection] | None = None,
        more: Mapping[str, Any] | None = None,
        rows: Callable[[Plan, Mapping[Cell, str]], Iterator[Scored]] | None = None,
    ) -> dict[Cell, Row]:
        """Every cell's row: those that are there, and the others, scored and written now.

        Args:
            engine: bound to the requests that count, where they are not all of the suite's.
            selection: what each cell's row is to a choice, where the row itself does not say.
            more: what else defines the rows.
            rows: scores cells, by their hashes; where it is not simply each on all documents.

        Raises:
            KeyboardInterrupt: after the rows of all finished cells are on disk.
        """
        self.stop.check()
        asked = engine or share.engine
        keys = share.keys(plan, asked, more)
        selected = {keys[cell]: selection(cell) for cell in plan.cells} if selection is not None else {}
        missing = Plan(tuple(cell for cell in plan.cells if keys[cell] not in self.done))
        part = None
        if engine is not None and selected:
            setting = setting_of(share.suite, share.loaded, share.spec, engine) | dict(more or {})
            part = Part(next(iter(selected.values())).share, engine, setting)
        self.manifest.add_model(
            share.loaded, share.tasks, share.engine, setting_of(share.suite, share.loaded, share.spec, share.engine),
            list(keys.values()), share.calibration, share.base, at_work=bool(missing.cells), part=part,
        )  # fmt: skip
        reused = [self.done[key] for key in keys.values() if key in self.done]
        self.result.count(reused, new=False)
        self.progress.planned(share.loaded.label, len(plan.cells), len(reused), share.tasks.named)
        if missing.cells:
            self._begin(share, asked)
            if share.calibration is not None:
                share.calibration.expect(missing.cells)
            self.stop.at_work = True
            try:
                found = rows(missing, keys) if rows is not None else share.rows(missing, keys, asked)
                for count, scored in enumerate(found, 1):
                    self.write(scored if scored.row.selection else replace(scored, row=_with(scored.row, selected)))
                    if count < len(missing.cells) and share.here:
                        self.stop.check()
            finally:
                self.stop.at_work = False
                self.manifest.update_engine(share.loaded, asked, part.name if part is not None else None)
        self.directory.drop_blocks()
        for key, now in selected.items():
            if now.split == "test" and self.done[key].selection != now:  # it was chosen among others then
                self.done[key] = _with(self.done[key], selected)
                self.directory.append(self.done[key])
        return {cell: self.done[keys[cell]] for cell in plan.cells}

    def block(
        self, share: ModelRun, cells: Sequence[Cell], engine: BaseEngine, *, measure: bool
    ) -> Iterator[tuple[Cell, Scored]]:
        """Some cells on some documents, as part of rows to come: what is known already, then what is scored now.

        It is kept on disk until `score` has written the rows.

        Args:
            engine: bound to these documents.
            measure: as `ModelRun.rows`.
        """
        plan = Plan(tuple(cells))
        keys = share.keys(plan, engine)
        partials = self._begin(share, engine)
        missing = []
        for cell in cells:
            kept = partials.scored(keys[cell])
            if kept is None or (self.retry_failed and kept[0].status == "failed"):
                missing.append(cell)
            else:
                yield cell, Scored(*kept)
        of_key = {keys[cell]: cell for cell in missing}
        for scored in share.rows(Plan(tuple(missing)), keys, engine, measure=measure) if missing else ():
            partials.keep(scored.row.cell, scored.row, scored.samples)
            self.directory.drop_partial(scored.row.cell)
            yield of_key[scored.row.cell], scored
            self.stop.check()

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

    def _begin(self, share: ModelRun, engine: BaseEngine) -> RunPartials:
        """Has the environment named, and kept what the engine is answered part by part."""
        asked = [engine.lm.max_length, list(engine.requests.hashes().items())]

        def partials(here: dict[str, Any]) -> RunPartials:
            return RunPartials(self.directory, asked, here, self.stop.check if share.here else None)

        here = share.begin(engine, Keep(self.directory.add_environment, partials, self.progress.scoring))
        return partials(here)


def _with(row: Row, selected: Mapping[str, Selection]) -> Row:
    """The row with what it is to a choice."""
    return row.model_copy(update={"selection": selected[row.cell]}) if row.cell in selected else row
