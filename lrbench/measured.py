"""A run's scores as measurements: value, standard error, and the paired difference from the unedited model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrbench.errors import InputError, one_line
from lrbench.paired import Difference, PerDocument, agree, paired_difference, stratified
from lrbench.store import Row, RunDirectory


@dataclass(frozen=True)
class Measured:
    """A metric's value on `n` documents, with its difference from the unedited model of the same run and model."""

    value: float
    stderr: float | None = None
    n: int | None = None
    delta: float | None = None
    delta_stderr: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is more than two of its standard errors."""
        return self.delta is not None and self.delta_stderr is not None and abs(self.delta) > 2 * self.delta_stderr


class ScoredRun:
    """A run's rows and what its manifest says of them; measures rows against the unedited models."""

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.run, self.name = run, name
        manifest = run.manifest() if run.manifest_file.is_file() else {}
        rows = run.rows()
        # A file may hold more than its suite asks for now: rows of a plugin or of a task as it was before a change.
        self.rows = {cell: rows[cell] for cell in manifest.get("cells", rows) if cell in rows}
        self.subtasks: dict[str, list[str]] = {
            entry["task"]: [name for name in entry.get("subtasks") or () if name != entry["task"]]
            for entry in manifest.get("tasks") or ()
        }
        scored = {task for row in self.rows.values() for task in row.scores}
        # A tag or a pattern has no score of its own: then the tasks that it stands for were asked for.
        self._top = {
            name for task, parts in self.subtasks.items() for name in ([task] if task in scored else parts)
        } or scored
        self.blocks: dict[str, int] = {
            model["label"]: model["blocks"] for model in manifest.get("models") or () if "blocks" in model
        }
        self._unedited_samples: dict[str, dict[tuple[str, str], dict[int, PerDocument]]] = {}

    @property
    def order(self) -> list[str]:
        """Tasks in the suite's order, each group before its parts."""
        return list(dict.fromkeys(name for task, parts in self.subtasks.items() for name in (task, *parts)))

    def top_level(self, task: str) -> bool:
        """Whether the suite asked for this task itself, rather than for a group with it."""
        return task in self._top

    def baseline_of(self, row: Row) -> Row | None:
        """The unedited model that `row` is compared with: of its seed where there is one."""
        found = [
            other
            for other in self.rows.values()
            if other.reducer is None and other.model == row.model and other.status == "ok"
        ]
        return next((other for other in found if other.seed == row.seed), found[0] if found else None)

    def samples(self, cell: str) -> dict[tuple[str, str], dict[int, PerDocument]]:
        """(task, metric) -> document -> value."""
        values: dict[tuple[str, str], dict[int, PerDocument]] = {}
        try:
            for sample in self.run.samples(cell):
                for metric, value in sample["metrics"].items():
                    values.setdefault((sample["task"], metric), {})[sample["doc"]] = value
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            path = self.run.path / "samples" / f"{cell}.jsonl"
            raise InputError(f"{path}: not a cell's samples: {one_line(error)}") from None
        return values

    def measure(self, row: Row) -> dict[str, dict[str, Measured]]:
        """All metrics of a row, with differences from the unedited model and their paired standard errors."""
        unedited = None if row.reducer is None else self.baseline_of(row)
        if unedited is None or not row.scores:
            return {
                task: {metric: Measured(score.value, score.stderr, score.n) for metric, score in scores.items()}
                for task, scores in row.scores.items()
            }
        ours = self.samples(row.cell)
        if unedited.cell not in self._unedited_samples:
            self._unedited_samples[unedited.cell] = self.samples(unedited.cell)
        theirs = self._unedited_samples[unedited.cell]
        measured: dict[str, dict[str, Measured]] = {}
        for task, scores in row.scores.items():
            for metric, score in scores.items():
                base = unedited.scores.get(task, {}).get(metric)
                delta = stderr = None
                if base is not None and math.isfinite(score.value - base.value):
                    delta = score.value - base.value
                    difference = self._difference(task, metric, delta, ours, theirs)
                    stderr = difference.stderr if difference else None
                measured.setdefault(task, {})[metric] = Measured(score.value, score.stderr, score.n, delta, stderr)
        return measured

    def _difference(
        self,
        task: str,
        metric: str,
        delta: float,
        ours: Mapping[tuple[str, str], dict[int, PerDocument]],
        theirs: Mapping[tuple[str, str], dict[int, PerDocument]],
    ) -> Difference | None:
        key = task, metric
        if key not in ours:
            leaves = [(leaf, metric) for leaf in self.subtasks.get(task, ()) if (leaf, metric) in ours]
            parts = [paired_difference(ours[leaf], theirs.get(leaf, {}), metric) for leaf in leaves]
            whole = [part for part in parts if part is not None]
            return stratified(whole, delta) if whole and len(whole) == len(parts) else None
        found = paired_difference(ours[key], theirs.get(key, {}), metric)
        # A metric that is not made of its documents in a way known here would get an error of something else.
        return found if found is not None and agree(found.value, delta) else None


def mean(parts: Sequence[Measured]) -> Measured:
    """The mean of several tasks' accuracies; its error takes tasks to share no documents."""
    if len(parts) == 1:
        return parts[0]
    value = math.fsum(part.value for part in parts) / len(parts)
    deltas = [part.delta for part in parts if part.delta is not None]
    return Measured(
        value,
        stderr=_independent([part.stderr for part in parts]),
        delta=math.fsum(deltas) / len(parts) if len(deltas) == len(parts) else None,
        delta_stderr=_independent([part.delta_stderr for part in parts]),
    )


def geometric_mean(parts: Sequence[Measured]) -> Measured | None:
    """The geometric mean of several tasks' perplexities, which may differ by orders of magnitude."""
    if len(parts) == 1:
        return parts[0]
    value = _geometric([part.value for part in parts])
    if value is None:
        return None
    unedited = _geometric([part.value - part.delta for part in parts if part.delta is not None])
    whole = unedited is not None and all(part.delta is not None for part in parts)
    return Measured(value, delta=value - unedited if whole and unedited is not None else None)


def _geometric(values: Sequence[float]) -> float | None:
    if not values or any(not 0 < value < math.inf for value in values):
        return None
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _independent(errors: Sequence[float | None]) -> float | None:
    """The standard error of a mean of tasks, which share no documents."""
    known = [error for error in errors if error is not None]
    return math.sqrt(math.fsum(error**2 for error in known)) / len(errors) if len(known) == len(errors) else None
