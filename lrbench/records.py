"""What a run writes while it runs, and what it tells: rows, counts, progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lrbench.evaluate.bound import BoundEngine
from lrbench.evaluate.engine import Step
from lrbench.manifest import Manifest
from lrbench.model_run import Keep, ModelRun, Scored, setting_of
from lrbench.partials import RunPartials
from lrbench.plan import Plan
from lrbench.store import Row, RunDirectory


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
    """

    directory: RunDirectory
    computed: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def count(self, rows: Iterable[Row], *, new: bool) -> None:
        """Adds rows of the plan."""
        for row in rows:
            self.computed += new
            self.reused += not new
            self.failed += row.status == "failed"
            self.skipped += row.status == "skipped"

    def summary(self) -> str:
        """One line for the terminal."""
        parts = [f"{self.computed} cells done in {self.seconds:.0f} s"] if self.computed else ["nothing to compute"]
        if self.reused:
            parts.append(f"{self.reused} already there")
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.failed:
            parts.append(f"{self.failed} failed (--retry-failed tries them again)")
        return f"{', '.join(parts)}; rows in {self.directory.path}"


@dataclass
class Records:
    """A run's directory at work: scores what has no row yet, writes it, counts it and tells of it.

    Attributes:
        done: rows that stand, by cell; of failed ones only those that are not tried again.
    """

    directory: RunDirectory
    manifest: Manifest
    result: RunResult
    progress: Progress
    done: dict[str, Row] = field(default_factory=dict)

    def score(self, share: ModelRun, plan: Plan, engine: BoundEngine | None = None) -> dict[int, Row]:
        """Every cell's row, by the `id` of the cell: those that are there, and the others, scored and written now.

        Args:
            engine: bound to the requests that count, where they are not all of the suite's.

        Raises:
            KeyboardInterrupt: after the rows of all finished cells are on disk.
        """
        engine = engine or share.engine
        keys = share.keys(plan, engine)
        missing = Plan(tuple(cell for cell in plan.cells if keys[id(cell)] not in self.done))
        self.manifest.add_model(
            share.loaded, share.tasks, engine, setting_of(share.suite, share.loaded, share.spec, engine),
            list(keys.values()), share.calibration, share.base, at_work=bool(missing.cells),
        )  # fmt: skip
        reused = [self.done[key] for key in keys.values() if key in self.done]
        self.result.count(reused, new=False)
        self.progress.planned(share.loaded.label, len(plan.cells), len(reused), share.tasks.named)
        if missing.cells:
            self._begin(share, engine)
            if share.calibration is not None:
                share.calibration.expect(missing.cells)
            try:
                for scored in share.rows(missing, keys, engine):
                    self.write(scored)
            finally:
                self.manifest.update_engine(share.loaded, engine)
        return {id(cell): self.done[keys[id(cell)]] for cell in plan.cells}

    def write(self, scored: Scored) -> None:
        """Writes a row, its per-document scores first: a row never stands without them."""
        row = scored.row
        if row.status == "ok":
            self.directory.write_samples(row.cell, scored.samples)
        self.directory.append(row)
        self.directory.drop_partial(row.cell)
        self.done[row.cell] = row
        self.result.count([row], new=True)
        self.progress.finished(row)

    def _begin(self, share: ModelRun, engine: BoundEngine) -> None:
        """Has the environment named, and kept what the engine is answered part by part."""
        asked = [engine.lm.max_length, list(engine.requests.hashes().items())]
        share.begin(
            engine,
            Keep(
                self.directory.add_environment,
                lambda here: RunPartials(self.directory, asked, here),
                self.progress.scoring,
            ),
        )
