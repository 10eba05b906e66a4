"""A run's progress: cells done, time left, the engine's position and speed, the best row. Plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrbench.analysis.score import Overall, unpaired
from lrbench.evaluation.interface import Step
from lrbench.results.rows import Row
from lrbench.system.text import clean

WINDOW = 10.0  # seconds of scoring over which the speed is a mean


class TerminalProgress:
    """Shows a run's progress on standard error; standard output holds only the table."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._best: tuple[float, str] | None = None
        self._subtasks: Mapping[str, Sequence[str]] = {}
        self._done = self._total = 0
        self._last_line = 0.0
        self._start = time.monotonic()
        self._where = ""
        self._tokens = self._seconds = 0.0

    def __enter__(self) -> TerminalProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[engine]}"),
                TextColumn("{task.fields[best]}"),
                console=self._console, transient=True,
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, message: str) -> None:
        """Prints a message."""
        self._say(f"[dim]{_escaped(message)}[/dim]")

    def planned(self, model: str, cells: int, reused: int, tasks: Mapping[str, Sequence[str]]) -> None:
        """Starts counting a model's cells; a row's score is the leaderboard's over `tasks` (task -> subtasks)."""
        self._subtasks = tasks
        self._total, self._done, self._best = cells - reused, 0, None
        self._where, self._tokens, self._seconds = "", 0.0, 0.0
        already = f", {reused} already there" if reused else ""
        self.note(f"{model}: {cells} cells{already}")
        if self._bar is not None and self._total:
            self._task = self._bar.add_task(_escaped(model), total=self._total, engine="", best="")

    def scoring(self, step: Step) -> None:
        """Records the engine's position and speed.

        The speed is a mean over the last seconds. A token that passes through half of the blocks counts half, so that
        the speed does not depend on where cells begin.
        """
        fading = max(0.0, 1 - step.seconds / WINDOW)
        self._tokens = self._tokens * fading + step.tokens
        self._seconds = self._seconds * fading + step.seconds
        self._where = f"block {step.block + 1}/{step.blocks}" if step.block < step.blocks else "head"
        if step.parts > 1:
            self._where = f"part {step.part}/{step.parts} · {self._where}"
        if self._bar is not None:
            self._bar.update(self._task, engine=self._engine())
        elif step.parts > 1:  # all its cells finish at the end, so until then only this shows progress
            self._line()

    def finished(self, row: Row) -> None:
        """Counts a row and reports a failed one at once."""
        self._done += 1
        if row.status == "failed":
            self._say(f"[red]failed[/red] {_escaped(_name(row))}: {_escaped(row.reason or '')}")
        if row.status == "ok" and row.requested:
            self._compete(row)
        if self._bar is not None:
            best = f"best {self._best[0]:.3f} {self._best[1]}" if self._best else ""
            self._bar.update(self._task, advance=1, best=_escaped(best))
        else:
            self._line()

    def _line(self) -> None:
        """Prints the progress after ten seconds, at the end, and ever more rarely between, so that lines stay few."""
        now = time.monotonic()
        if now - self._last_line > max(10, (now - self._start) / 20) or self._done == self._total:
            self._last_line = now
            engine = f", {self._engine()}" if self._where else ""
            best = f", best {self._best[0]:.3f} ({self._best[1]})" if self._best else ""
            self._say(_escaped(f"{self._done} of {self._total} cells{engine}{best}"))

    def _say(self, marked: str) -> None:
        self._console.print(marked, highlight=False, soft_wrap=True, emoji=False)

    def _engine(self) -> str:
        if not self._tokens or not self._seconds:
            return self._where
        return f"{self._where} · {_round(self._tokens / self._seconds)} tokens/s"

    def _compete(self, row: Row) -> None:
        overall = Overall.of_row(row, self._subtasks)
        score = overall.score(unpaired(row))
        if score is None:
            return
        if self._best is None or (
            score.value > self._best[0] if overall.higher_is_better else score.value < self._best[0]
        ):
            self._best = (score.value, _name(row))


def _escaped(text: str) -> str:
    """Escapes text for rich, since names in it may contain markup."""
    return markup.escape(clean(text))


def _round(number: float) -> str:
    """Two digits: `18k`, `1.8k`, `180`."""
    number = float(f"{number:.2g}")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _name(row: Row) -> str:
    if row.method is None:
        return "baseline"
    where = row.edits[0].weight if len(row.edits) == 1 else f"{len(row.edits)} weights" if row.edits else ""
    return " ".join(part for part in (row.method, row.setting, where) if part)
