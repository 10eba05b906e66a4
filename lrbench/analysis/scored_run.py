"""A run's rows measured: lines of a table, each with its difference from the baseline of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lrbench.analysis.score import Measured, asked_for, compared
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
class Line:
    """What stands in one line of a table: a cell, or one cell at several seeds."""

    rows: tuple[Row, ...]

    @property
    def row(self) -> Row:
        """The first."""
        return self.rows[0]

    @property
    def baseline(self) -> bool:
        """Whether this is the baseline."""
        return self.row.reducer is None


def lines_of(rows: Iterable[Row]) -> list[Line]:
    """Rows, with those put together that differ in the seed alone."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        weights = tuple(sorted(edit.weight for edit in row.edits))
        share = row.selection.share if row.selection is not None else None
        asked = row.mode, tuple(row.requested.items()), row.allocation
        cell = (row.model, row.reducer, row.label, *asked, weights, share)
        alike = found.setdefault((*cell, 0), [])
        copy = 0
        while (row.reducer is None and alike) or any(other.seed == row.seed for other in alike):
            copy += 1  # the same seed twice is no repetition: something else differs, so each has a line
            alike = found.setdefault((*cell, copy), [])
        alike.append(row)
    return [Line(tuple(rows)) for rows in found.values()]


_UNKNOWN = TaskRecord()


class ScoredRun:
    """A run's rows and what its manifest says of them; measures rows against the baselines.

    Args:
        split: where a suite chooses, which side's scored rows count; None for both. What was not scored counts always.
    """

    def __init__(self, run: RunDirectory, name: str, split: Literal["validation", "test"] | None = None) -> None:
        self.run, self.name = run, name
        self.manifest = run.manifest() if run.manifest_file.is_file() else {}
        manifest = parse(self.manifest)
        # A file may hold more than its suite asks for now: rows of a plugin or of a task as it was before a change.
        everything = manifest.rows_of_suite(run.rows())
        self.rows = {cell: row for cell, row in everything.items() if _is_of(row, split)}
        self.waiting = sum(row.status == "ok" for cell, row in everything.items() if cell not in self.rows)
        self.subtasks: dict[str, list[str]] = {
            entry.task: [name for name in entry.subtasks if name != entry.task] for entry in manifest.tasks
        }
        derived = manifest.suite.get("derived") or {}
        self.derived: list[DerivedColumn] = []
        try:
            for label, given in derived.items():
                self.derived.append(DerivedColumn.parse(label, given, self.derived))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{run.manifest_file}: derived columns cannot be read: {one_line(error)}") from None
        self._top = asked_for(self.subtasks, {task for row in self.rows.values() for task in row.scores})
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
        """Whether the suite asked for this task itself, rather than for a group with it."""
        return task in self._top

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """What the task, or one of a group's tasks, says of its metric; None where the manifest does not know it."""
        for tasks in self._tasks.values():
            for leaf in self.leaves(task):
                said = tasks.get(leaf, _UNKNOWN).higher_is_better.get(base_name(metric))
                if isinstance(said, bool):
                    return said
        return None

    def weights_of(self, row: Row) -> str | None:
        """The hash of the original weights; None where the manifest does not know them."""
        return self._weights.get(row.model)

    def documents_of(self, row: Row, task: str) -> Hashable:
        """Equal where two rows were asked the same of a task: by the hashes of its documents, prompts and metrics.

        Where the manifest has no hashes, by how many documents there were.
        """
        tasks = self._tasks_of(row)
        hashes = {leaf: tasks.get(leaf, _UNKNOWN).hashes for leaf in self.leaves(task)}
        found = sorted((leaf, *sorted(of_leaf.items())) for leaf, of_leaf in hashes.items() if of_leaf)
        if found and len(found) == len(hashes) and not self.stopped(row, task):
            return tuple(found)
        return max((score.n for score in row.scores.get(task, {}).values()), default=0)

    def document_hashes(self, row: Row, task: str) -> Hashable | None:
        """The hashes of a task's documents, prompts apart; None where the manifest does not know them."""
        tasks = self._tasks_of(row)
        found = {leaf: tasks.get(leaf, _UNKNOWN).hashes.get("documents") for leaf in self.leaves(task)}
        return None if None in found.values() else tuple(sorted(found.items()))

    def stopped(self, row: Row, task: str) -> bool:
        """Whether a race gave the cell up before it had seen all documents of a task."""
        stopped = row.selection.stopped if row.selection is not None else None
        return stopped is not None and any(leaf in stopped for leaf in self.leaves(task))

    def _tasks_of(self, row: Row) -> dict[str, TaskRecord]:
        """What the manifest says of the tasks, as this row was asked them."""
        if row.selection is not None:
            return self._parts.get((row.model, row.selection.share), {})
        return self._tasks.get(row.model, {})

    def leaves(self, task: str) -> list[str]:
        """The tasks that a group's score is made of; of a task, itself."""
        return self._groups.get(task) or self.subtasks.get(task) or [task]

    def baseline_of(self, row: Row) -> Row | None:
        """The baseline that `row` is compared with: of its seed where there is one."""
        found = [
            other
            for other in self.rows.values()
            if other.reducer is None
            and other.model == row.model
            and other.status == "ok"
            and _split(other) == _split(row)
        ]
        return next((other for other in found if other.seed == row.seed), found[0] if found else None)

    def scores(self, row: Row) -> tuple[dict[tuple[str, str], DocumentValues], dict[str, dict[int, Hashable]]]:
        """(task, metric) -> the documents' values; and task -> document -> the group that it is to be drawn with.

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
                    twice = 2 if "acc_mutual_info" in sample["metrics"] else 1  # asked with and without the context
                    choices.setdefault(task, []).append(len(sample.get("loglikelihoods") or ()) // twice)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.run.samples_file(row.cell)}: not a cell's samples: {one_line(error)}") from None
        for task, counts in choices.items():
            if (task, "acc") in values and min(counts) > 1:
                self.chance[row.model, task] = math.fsum(1 / count for count in counts) / len(counts)
        found = {key: DocumentValues.of(of_key) for key, of_key in values.items()}
        for key, scores in found.items():  # the same tuple for all cells: there may be thousands of documents
            found[key] = DocumentValues(self._documents.setdefault(scores.documents, scores.documents), scores.values)
        return found, groups

    def measure(self, lines: Sequence[Line]) -> list[dict[str, dict[str, Measured]]]:
        """All metrics of each line, with differences from its baseline, their intervals and tests."""
        return _Measuring(self, lines).all()


def _split(row: Row) -> str | None:
    return row.selection.split if row.selection is not None else None


def _is_of(row: Row, split: str | None) -> bool:
    if split is None or row.selection is None or row.selection.split == split:
        return True
    return row.status != "ok" and split == "test"  # what failed on validation could not be chosen


#: A cell's (task, metric) -> values by document.
ByDocument = Mapping[tuple[str, str], DocumentValues]


class Contrasts:
    """Differences between pairs of cells; every metric is resampled once, for all pairs together.

    Args:
        pairs: the rows of one line (several where there are several seeds), and the row they are compared with; None
            where there is nothing to compare.
        groups: of each pair, task -> document -> the group that it is drawn with.
        leaves: the tasks that a group's score is made of.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Sequence[ByDocument], ByDocument] | None],
        groups: Sequence[Mapping[str, Mapping[int, Hashable]]],
        leaves: Callable[[str], Sequence[str]],
    ) -> None:
        self._pairs, self._groups, self._leaves = pairs, groups, leaves
        self._found: dict[tuple[str, str], list[Difference | None]] = {}

    def difference(self, place: int, task: str, metric: str, delta: float) -> Difference | None:
        """Of one pair; None where documents do not tell, or do not give `delta`, the difference of the scores."""
        pair = self._pairs[place]
        if pair is None:
            return None
        known = pair[0][0]
        if (task, metric) not in known:
            leaves = [leaf for leaf in self._leaves(task) if (leaf, metric) in known]
            parts = [self._of_documents(leaf, metric)[place] for leaf in leaves]
            whole = [part for part in parts if part is not None]
            return stratified(whole, delta) if whole and len(whole) == len(parts) else None
        found = self._of_documents(task, metric)[place]
        # A metric that is not made of its documents in a way known here would get an error of something else.
        return found if found is not None and nearly_equal(found.value, delta) else None

    def _of_documents(self, task: str, metric: str) -> list[Difference | None]:
        key = task, metric
        if key not in self._found:
            asked: dict[int, PairedValues] = {}
            for place, pair in enumerate(self._pairs):
                if pair is not None and all(key in side for side in (*pair[0], pair[1])):
                    sides = [side[key] for side in pair[0]]
                    asked[place] = PairedValues(sides, [pair[1][key]], self._groups[place].get(task, {}))
            done = dict(zip(asked, differences(list(asked.values()), metric, task), strict=True))
            self._found[key] = [done.get(place) for place in range(len(self._pairs))]
        return self._found[key]


class _Measuring:
    """Lines on their way to measurements."""

    def __init__(self, run: ScoredRun, lines: Sequence[Line]) -> None:
        self.run, self.lines = run, lines
        self.baselines = [None if line.baseline else run.baseline_of(line.row) for line in lines]
        scores: dict[str, ByDocument] = {}
        groups: dict[str, Mapping[str, Mapping[int, Hashable]]] = {}
        for base in (*self.baselines, *(line.row for line in lines if line.baseline)):  # the latter for their chance
            if base is not None and base.cell not in scores:
                scores[base.cell], groups[base.cell] = run.scores(base)
        pairs: list[tuple[Sequence[ByDocument], ByDocument] | None] = []
        for line, base in zip(lines, self.baselines, strict=True):
            pairs.append(None if base is None else ([run.scores(row)[0] for row in line.rows], scores[base.cell]))
        of_lines = [groups[base.cell] if base is not None else {} for base in self.baselines]
        self.contrasts = Contrasts(pairs, of_lines, run.leaves)

    def all(self) -> list[dict[str, dict[str, Measured]]]:
        return [self._measured(place) for place in range(len(self.lines))]

    def _measured(self, place: int) -> dict[str, dict[str, Measured]]:
        line, base = self.lines[place], self.baselines[place]
        measured: dict[str, dict[str, Measured]] = {}
        for task, metrics in line.row.scores.items():
            for metric in metrics:
                found = [row.scores[task][metric] for row in line.rows if metric in row.scores.get(task, {})]
                whole = _over_seeds(found)
                theirs = base.scores.get(task, {}).get(metric) if base is not None else None
                if any(self.run.stopped(row, task) for row in line.rows):
                    theirs = None  # the difference of the two scores would be one of other documents, too
                if theirs is not None and math.isfinite(whole.value - theirs.value):
                    delta = whole.value - theirs.value
                    difference = self.contrasts.difference(place, task, metric, delta)
                    whole = compared(whole, delta, difference)
                measured.setdefault(task, {})[metric] = whole
        return measured


def _over_seeds(scores: Sequence[Score]) -> Measured:
    """One row's score, or the mean of several seeds', whose error over documents only the documents can tell."""
    if len(scores) == 1:
        return Measured(scores[0].value, scores[0].stderr, scores[0].n)
    values = tuple(score.value for score in scores)
    return Measured(math.fsum(values) / len(values), n=scores[0].n, by_seed=values)


def split_of(row: Row) -> Split:
    """`validation` of a row that served a choice, `test` of one that was held out from it; empty without a selection.

    Rows of one table are of one part: a score on the documents that chose the row is no score of the choice.
    """
    return row.selection.split if row.selection is not None else ""


def in_words(split: Split) -> str:
    """Behind a model's name: `, held-out documents`."""
    return {"validation": ", documents of the selection", "test": ", held-out documents"}.get(split, "")


def first_class(row: Row) -> bool:
    """Whether a row is to be reported: those that a choice was made on are shown apart."""
    return split_of(row) != "validation"
