"""Measures a run's rows: scores with their differences from the run's baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lrbench.analysis.score import Measurement, requested_tasks, with_difference
from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory
from lrbench.results.manifest import TaskRecord, parse
from lrbench.results.rows import Row, Score
from lrbench.stats import Difference, DocumentValues, PairedValues, PerDocument, differences, nearly_equal, stratified
from lrbench.stats.metric_names import base_name
from lrbench.suite.derived_columns import DerivedColumn
from lrbench.system.text import one_line

Split = Literal["", "test", "validation"]


@dataclass(frozen=True)
class ScoredLine:
    """One line of a table: a cell, or the same cell at several seeds."""

    rows: tuple[Row, ...]

    @property
    def row(self) -> Row:
        """The first row."""
        return self.rows[0]

    @property
    def baseline(self) -> bool:
        """Whether this is the baseline."""
        return self.row.reducer is None


def lines_of(rows: Iterable[Row]) -> list[ScoredLine]:
    """Groups rows that differ only in the seed."""
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        weights = tuple(sorted(edit.weight for edit in row.edits))
        documents = row.selection.part if row.selection is not None else None
        request = row.mode, tuple(row.requested.items()), row.allocation
        cell = (row.model, row.reducer, row.label, *request, weights, documents)
        group = groups.setdefault((*cell, 0), [])
        copy = 0
        while (row.reducer is None and group) or any(other.seed == row.seed for other in group):
            copy += 1  # the same seed twice means that something else differs: a separate line
            group = groups.setdefault((*cell, copy), [])
        group.append(row)
    return [ScoredLine(tuple(rows)) for rows in groups.values()]


_UNKNOWN = TaskRecord()


class ScoredRun:
    """A run's rows with its manifest; measures rows against the baselines.

    Args:
        split: in a run that selects, the split whose scored rows count; None for both. Unscored rows always count.
    """

    def __init__(self, run: RunDirectory, name: str, split: Literal["validation", "test"] | None = None) -> None:
        self.run, self.name = run, name
        self.manifest = run.manifest() if run.manifest_file.is_file() else {}
        manifest = parse(self.manifest)
        # The file may hold rows that the suite no longer includes, from an earlier version of a plugin or a task.
        suite_rows = manifest.rows_of_suite(run.rows())
        self.rows = {cell: row for cell, row in suite_rows.items() if _is_of(row, split)}
        self.waiting = sum(row.status == "ok" for cell, row in suite_rows.items() if cell not in self.rows)
        self.subtasks: dict[str, list[str]] = {
            entry.task: [name for name in entry.subtasks if name != entry.task] for entry in manifest.tasks
        }
        derived = manifest.suite.get("derived") or {}
        self.derived: list[DerivedColumn] = []
        try:
            for label, value in derived.items():
                self.derived.append(DerivedColumn.parse(label, value, self.derived))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{run.manifest_file}: derived columns cannot be read: {one_line(error)}") from None
        self._top = requested_tasks(self.subtasks, {task for row in self.rows.values() for task in row.scores})
        models = manifest.models
        self.blocks: dict[str, int] = {model.label: model.blocks for model in models if model.blocks is not None}
        self._weights = {model.label: model.weight_hash for model in models}
        self._parts = {
            (model.label, documents): part.engine.tasks for model in models for documents, part in model.parts.items()
        }
        self._tasks = {model.label: {**model.tasks, **model.engine.tasks} for model in models}
        self._groups: dict[str, list[str]] = {}
        for model in models:
            self._groups |= {**model.groups, **model.engine.groups}
        self.chance: dict[tuple[str, str], float] = {}
        self._documents: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def order(self) -> list[str]:
        """Tasks in the suite's order, each group before its parts."""
        return list(dict.fromkeys(name for task, parts in self.subtasks.items() for name in (task, *parts)))

    def top_level(self, task: str) -> bool:
        """Whether the suite names this task itself, not as part of a group."""
        return task in self._top

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Whether the task, or a task of the group, declares that higher is better; None if the manifest lacks it."""
        for tasks in self._tasks.values():
            for leaf in self.leaves(task):
                declared = tasks.get(leaf, _UNKNOWN).higher_is_better.get(base_name(metric))
                if isinstance(declared, bool):
                    return declared
        return None

    def weights_of(self, row: Row) -> str | None:
        """The hash of the original weights; None if the manifest lacks it."""
        return self._weights.get(row.model)

    def documents_of(self, row: Row, task: str) -> Hashable:
        """Equal for rows scored on the same requests of a task: the hashes of documents, prompts and metrics.

        Without hashes in the manifest, the number of documents.
        """
        tasks = self._tasks_of(row)
        hashes = {leaf: tasks.get(leaf, _UNKNOWN).hashes for leaf in self.leaves(task)}
        known = sorted((leaf, *sorted(of_leaf.items())) for leaf, of_leaf in hashes.items() if of_leaf)
        if known and len(known) == len(hashes) and not self.stopped(row, task):
            return tuple(known)
        return max((score.n for score in row.scores.get(task, {}).values()), default=0)

    def document_hashes(self, row: Row, task: str) -> Hashable | None:
        """The hashes of a task's documents without prompts; None if the manifest lacks them."""
        tasks = self._tasks_of(row)
        hashes = {leaf: tasks.get(leaf, _UNKNOWN).hashes.get("documents") for leaf in self.leaves(task)}
        return None if None in hashes.values() else tuple(sorted(hashes.items()))

    def stopped(self, row: Row, task: str) -> bool:
        """Whether a race stopped the cell before it had seen all documents of a task."""
        stopped = row.selection.stopped if row.selection is not None else None
        return stopped is not None and any(leaf in stopped for leaf in self.leaves(task))

    def _tasks_of(self, row: Row) -> dict[str, TaskRecord]:
        """The manifest's task records for the documents of this row."""
        if row.selection is not None:
            return self._parts.get((row.model, row.selection.part), {})
        return self._tasks.get(row.model, {})

    def leaves(self, task: str) -> list[str]:
        """The tasks that a group's score is computed from; for a task, the task itself."""
        return self._groups.get(task) or self.subtasks.get(task) or [task]

    def baseline_of(self, row: Row) -> Row | None:
        """The baseline to compare a row with, of the same seed if possible."""
        baselines = [
            other
            for other in self.rows.values()
            if other.reducer is None
            and other.model == row.model
            and other.status == "ok"
            and _split(other) == _split(row)
        ]
        return next((other for other in baselines if other.seed == row.seed), baselines[0] if baselines else None)

    def scores(self, row: Row) -> tuple[dict[tuple[str, str], DocumentValues], dict[str, dict[int, Hashable]]]:
        """(task, metric) -> values per document; and task -> document -> the cluster that it is resampled with.

        Raises:
            InputError: the file of samples cannot be read; names it.
        """
        values: dict[tuple[str, str], dict[int, PerDocument]] = {}
        groups: dict[str, dict[int, Hashable]] = {}
        choices: dict[str, list[int]] = {}
        try:
            for sample in self.run.samples(row.cell):
                task, doc = sample["task"], sample["doc"]
                if not isinstance(task, str) or type(doc) is not int:
                    raise TypeError("'task' is a name and 'doc' a whole number")
                for metric, value in sample["metrics"].items():
                    values.setdefault((task, metric), {})[doc] = value
                if sample.get("group") is not None:
                    hash(sample["group"])
                    groups.setdefault(task, {})[doc] = sample["group"]
                if row.reducer is None:
                    repeats = 2 if "acc_mutual_info" in sample["metrics"] else 1  # scored with and without the context
                    choices.setdefault(task, []).append(len(sample.get("loglikelihoods") or ()) // repeats)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.run.samples_file(row.cell)}: not a cell's samples: {one_line(error)}") from None
        for task, counts in choices.items():
            if (task, "acc") in values and min(counts) > 1:
                self.chance[row.model, task] = math.fsum(1 / count for count in counts) / len(counts)
        by_metric = {key: DocumentValues.of(of_key) for key, of_key in values.items()}
        for key, scores in by_metric.items():  # all cells share one tuple of documents, to save memory
            by_metric[key] = DocumentValues(
                self._documents.setdefault(scores.documents, scores.documents), scores.values
            )
        return by_metric, groups

    def measure(self, lines: Sequence[ScoredLine]) -> list[dict[str, dict[str, Measurement]]]:
        """All metrics of each line, with differences from its baseline, intervals and tests."""
        baselines = [None if line.baseline else self.baseline_of(line.row) for line in lines]
        scores: dict[str, ByDocument] = {}
        groups: dict[str, Mapping[str, Mapping[int, Hashable]]] = {}
        # Baselines without other lines are read too, because they set the chance level.
        for base in (*baselines, *(line.row for line in lines if line.baseline)):
            if base is not None and base.cell not in scores:
                scores[base.cell], groups[base.cell] = self.scores(base)
        contrasts = Contrasts(
            [
                ([self.scores(row)[0] for row in line.rows], scores[base.cell]) if base is not None else None
                for line, base in zip(lines, baselines, strict=True)
            ],
            [groups[base.cell] if base is not None else {} for base in baselines],
            self.leaves,
        )
        return [
            self._measured(line, base, partial(contrasts.difference, place))
            for place, (line, base) in enumerate(zip(lines, baselines, strict=True))
        ]

    def _measured(
        self, line: ScoredLine, base: Row | None, difference_of: Callable[[str, str, float], Difference | None]
    ) -> dict[str, dict[str, Measurement]]:
        measured: dict[str, dict[str, Measurement]] = {}
        for task, metrics in line.row.scores.items():
            for metric in metrics:
                measurement = _over_seeds(
                    [row.scores[task][metric] for row in line.rows if metric in row.scores.get(task, {})]
                )
                of_baseline = base.scores.get(task, {}).get(metric) if base is not None else None
                if any(self.stopped(row, task) for row in line.rows):
                    of_baseline = None  # the two scores come from different documents
                if of_baseline is not None and math.isfinite(measurement.value - of_baseline.value):
                    delta = measurement.value - of_baseline.value
                    measurement = with_difference(measurement, delta, difference_of(task, metric, delta))
                measured.setdefault(task, {})[metric] = measurement
        return measured


def _split(row: Row) -> str | None:
    return row.selection.split if row.selection is not None else None


def _is_of(row: Row, split: str | None) -> bool:
    if split is None or row.selection is None or row.selection.split == split:
        return True
    return row.status != "ok" and split == "test"  # a cell that failed on validation could not be chosen


#: A cell's (task, metric) -> values by document.
ByDocument = Mapping[tuple[str, str], DocumentValues]


class Contrasts:
    """Differences between pairs of cells; every metric is resampled once for all pairs.

    Args:
        pairs: the rows of one line (one per seed), and the row to compare with; None without a comparison.
        groups: for each pair, task -> document -> the cluster that it is resampled with.
        leaves: maps a group to the tasks that its score is computed from.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Sequence[ByDocument], ByDocument] | None],
        groups: Sequence[Mapping[str, Mapping[int, Hashable]]],
        leaves: Callable[[str], Sequence[str]],
    ) -> None:
        self._pairs, self._groups, self._leaves = pairs, groups, leaves
        self._differences: dict[tuple[str, str], list[Difference | None]] = {}

    def difference(self, place: int, task: str, metric: str, delta: float) -> Difference | None:
        """The difference of one pair; None if its documents are unknown or do not reproduce the scores' `delta`."""
        pair = self._pairs[place]
        if pair is None:
            return None
        known = pair[0][0]
        if (task, metric) not in known:
            leaves = [leaf for leaf in self._leaves(task) if (leaf, metric) in known]
            parts = [self._of_documents(leaf, metric)[place] for leaf in leaves]
            known_parts = [part for part in parts if part is not None]
            return stratified(known_parts, delta) if known_parts and len(known_parts) == len(parts) else None
        paired = self._of_documents(task, metric)[place]
        # Otherwise the metric is aggregated in an unknown way, and the error would not belong to it.
        return paired if paired is not None and nearly_equal(paired.value, delta) else None

    def _of_documents(self, task: str, metric: str) -> list[Difference | None]:
        key = task, metric
        if key not in self._differences:
            comparable: dict[int, PairedValues] = {}
            for place, pair in enumerate(self._pairs):
                if pair is not None and all(key in side for side in (*pair[0], pair[1])):
                    sides = [side[key] for side in pair[0]]
                    comparable[place] = PairedValues(sides, [pair[1][key]], self._groups[place].get(task, {}))
            result = dict(zip(comparable, differences(list(comparable.values()), metric, task), strict=True))
            self._differences[key] = [result.get(place) for place in range(len(self._pairs))]
        return self._differences[key]


def _over_seeds(scores: Sequence[Score]) -> Measurement:
    """One row's score, or the mean over seeds, without a standard error, which only paired documents give."""
    if len(scores) == 1:
        return Measurement(scores[0].value, scores[0].stderr, scores[0].n)
    values = tuple(score.value for score in scores)
    return Measurement(math.fsum(values) / len(values), n=scores[0].n, by_seed=values)


def split_of(row: Row) -> Split:
    """The split of a row's documents; empty without a selection. A table never mixes splits."""
    return row.selection.split if row.selection is not None else ""


def split_suffix(split: Split) -> str:
    """The text after a model's name: `, held-out documents`."""
    return {"validation": ", documents of the selection", "test": ", held-out documents"}.get(split, "")
