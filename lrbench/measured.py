"""A run's scores as measurements: value, standard error, and the paired difference from the unedited model."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrbench.errors import InputError, one_line
from lrbench.metrics import base_name, is_share, lower_is_better, primary
from lrbench.scores import Score
from lrbench.stats import Difference, PerDocument, agree, independent, paired_difference, stratified, summed
from lrbench.store import Row, RunDirectory


@dataclass(frozen=True)
class Measured:
    """A metric's value on `n` documents, with its difference from the unedited model of the same run and model.

    `discordant` and `significant` are those of `lrbench.stats.Difference`.
    """

    value: float
    stderr: float | None = None
    n: int | None = None
    delta: float | None = None
    delta_stderr: float | None = None
    discordant: tuple[int, int] | None = None
    significant: bool | None = None


def unpaired(row: Row) -> dict[str, dict[str, Measured]]:
    """All metrics of a row, without differences."""
    return {
        task: {metric: Measured(score.value, score.stderr, score.n) for metric, score in scores.items()}
        for task, scores in row.scores.items()
    }


def asked_for(subtasks: Mapping[str, Sequence[str]], scored: Collection[str]) -> set[str]:
    """The tasks that a suite asked for itself, rather than for a group with them.

    A tag or a pattern has no score of its own: then the tasks that it stands for were asked for.

    Args:
        subtasks: each task that the suite names, with the tasks that it is made of.
        scored: the tasks that have scores, which are all asked for where the suite is not known.
    """
    return {name for task, parts in subtasks.items() for name in ([task] if task in scored else parts)} or set(scored)


@dataclass(frozen=True)
class Overall:
    """What the one score of a row is made of.

    It is the mean of the tasks' accuracies; where none has one, the geometric mean of what is better lower, such as
    perplexities, which may differ by orders of magnitude.

    Attributes:
        metrics: task -> its metric that counts.
        higher_is_better: whether these are accuracies.
    """

    metrics: Mapping[str, str]
    higher_is_better: bool

    @classmethod
    def of(cls, metrics: Mapping[str, str], lower: Collection[str]) -> Overall:
        """Of tasks that were asked for.

        Args:
            metrics: task -> the metric that stands for it.
            lower: the tasks for which a lower value of it is better.
        """
        shares = {task: metric for task, metric in metrics.items() if task not in lower and is_share(metric)}
        return cls(shares or {task: metric for task, metric in metrics.items() if task in lower}, bool(shares))

    @classmethod
    def of_row(cls, row: Row, subtasks: Mapping[str, Sequence[str]]) -> Overall:
        """Of a row by itself, while there is no table and no manifest to ask which way is better."""
        asked = asked_for(subtasks, row.scores)
        metrics = {task: primary(scores) for task, scores in row.scores.items() if scores and task in asked}
        return cls.of(metrics, {task for task, metric in metrics.items() if lower_is_better(metric)})

    def score(self, measured: Mapping[str, Mapping[str, Measured]]) -> Measured | None:
        """The score of one row over those of the tasks that it has; None where it has none of them."""
        parts = [measured[task][metric] for task, metric in self.metrics.items() if metric in measured.get(task, {})]
        if not parts:
            return None
        return mean(parts) if self.higher_is_better else geometric_mean(parts)


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
        self._top = asked_for(self.subtasks, {task for row in self.rows.values() for task in row.scores})
        models = {model["label"]: model for model in manifest.get("models") or ()}
        self.blocks: dict[str, int] = {label: model["blocks"] for label, model in models.items() if "blocks" in model}
        self._weights = {label: model.get("weight_hash") for label, model in models.items()}
        # What is known of tasks stands with the model, or with the engine that asked them.
        places = {label: (model, model.get("engine") or {}) for label, model in models.items()}
        self._tasks: dict[str, dict[str, dict[str, Any]]] = {
            label: {name: about for place in both for name, about in (place.get("tasks") or {}).items()}
            for label, both in places.items()
        }
        self._groups: dict[str, list[str]] = {
            name: parts
            for both in places.values()
            for place in both
            for name, parts in (place.get("groups") or {}).items()
        }
        self._unedited_samples: dict[str, dict[tuple[str, str], dict[int, PerDocument]]] = {}

    @property
    def order(self) -> list[str]:
        """Tasks in the suite's order, each group before its parts."""
        return list(dict.fromkeys(name for task, parts in self.subtasks.items() for name in (task, *parts)))

    def top_level(self, task: str) -> bool:
        """Whether the suite asked for this task itself, rather than for a group with it."""
        return task in self._top

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """What the task, or one of a group's tasks, says of its metric; None where the manifest does not know it."""
        for tasks in self._tasks.values():
            for leaf in self._leaves(task):
                said = (tasks.get(leaf, {}).get("higher_is_better") or {}).get(base_name(metric))
                if isinstance(said, bool):
                    return said
        return None

    def weights_of(self, row: Row) -> str | None:
        """The hash of the unedited weights; None where the manifest does not know them."""
        return self._weights.get(row.model)

    def documents_of(self, row: Row, task: str) -> Hashable:
        """Equal where two rows were asked the same of a task: by the hashes of its documents, prompts and metrics.

        Where the manifest has no hashes, by how many documents there were.
        """
        tasks = self._tasks.get(row.model, {})
        hashes = {leaf: tasks.get(leaf, {}).get("hashes") for leaf in self._leaves(task)}
        found = sorted((leaf, *sorted(of_leaf.items())) for leaf, of_leaf in hashes.items() if of_leaf)
        if found and len(found) == len(hashes):
            return tuple(found)
        return max((score.n for score in row.scores.get(task, {}).values()), default=0)

    def _leaves(self, task: str) -> list[str]:
        """The tasks that a group's score is made of; of a task, itself."""
        return self._groups.get(task) or self.subtasks.get(task) or [task]

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
            return unpaired(row)
        ours = self.samples(row.cell)
        if unedited.cell not in self._unedited_samples:
            self._unedited_samples[unedited.cell] = self.samples(unedited.cell)
        theirs = self._unedited_samples[unedited.cell]
        measured: dict[str, dict[str, Measured]] = {}
        for task, scores in row.scores.items():
            for metric, score in scores.items():
                base = unedited.scores.get(task, {}).get(metric)
                delta = difference = None
                if base is not None and math.isfinite(score.value - base.value):
                    delta = score.value - base.value
                    difference = self._difference(task, metric, delta, ours, theirs)
                measured.setdefault(task, {})[metric] = _compared(score, delta, difference)
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
            leaves = [(leaf, metric) for leaf in self._leaves(task) if (leaf, metric) in ours]
            parts = [paired_difference(ours[leaf], theirs.get(leaf, {}), metric) for leaf in leaves]
            whole = [part for part in parts if part is not None]
            return stratified(whole, delta) if whole and len(whole) == len(parts) else None
        found = paired_difference(ours[key], theirs.get(key, {}), metric)
        # A metric that is not made of its documents in a way known here would get an error of something else.
        return found if found is not None and agree(found.value, delta) else None


def _compared(score: Score | Measured, delta: float | None, difference: Difference | None) -> Measured:
    if difference is None:
        return Measured(score.value, score.stderr, score.n, delta)
    return Measured(
        score.value, score.stderr, score.n, delta, difference.stderr, difference.discordant, difference.significant
    )


def mean(parts: Sequence[Measured]) -> Measured:
    """The mean of several tasks' accuracies; its error takes tasks to share no documents."""
    if len(parts) == 1:
        return parts[0]
    weights = [1 / len(parts)] * len(parts)
    value = math.fsum(part.value for part in parts) / len(parts)
    whole = Measured(value, independent([part.stderr for part in parts], weights))
    deltas = [part.delta for part in parts if part.delta is not None]
    if len(deltas) < len(parts):
        return whole
    delta = math.fsum(deltas) / len(parts)
    stderr = independent([part.delta_stderr for part in parts], weights)
    smallest = min(part.n or 0 for part in parts)
    return _compared(whole, delta, Difference(delta, stderr, smallest, summed(part.discordant for part in parts)))


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
