"""Rows as a table: one line a cell, with differences from the unedited model, the Pareto front and an order.

A leaderboard holds values, not text; how they look is the concern of `lrbench.render`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lrbench.edits_in_words import describe, optimal_error, ranks, relative_error
from lrbench.errors import InputError, did_you_mean
from lrbench.measured import Measured, Overall, ScoredRun
from lrbench.metrics import is_share, lower_is_better, primary
from lrbench.store import Row, RunDirectory

Kind = Literal["text", "score", "share", "ratio", "times", "error", "seconds", "flag"]
Value = str | bool | float | Measured | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what `--sort` and the exports call it.
        heading: two lines over it: what it is, and its metric or unit.
        kind: what its values are, and so how they are written.
        better: which way is better, where either is.
        task: the task, for scores (and `metric`).
        subtask: whether its documents are part of another column's.
        detail: worth keeping, but not in a table that people read.
    """

    name: str
    heading: tuple[str, str]
    kind: Kind
    better: Literal["higher", "lower"] | None = None
    task: str = ""
    metric: str = ""
    subtask: bool = False
    detail: bool = False


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        row: the cell.
        run: the run that it is of.
        values: a value for each column.
        metrics: all metrics of all tasks.
        scored_on: of columns of scores, equal for lines that can be compared: the same weights asked the same of the
            same documents.
        elsewhere: whether the unedited model that it is compared with was scored in another environment.
    """

    row: Row
    run: str
    values: dict[str, Value]
    metrics: dict[str, dict[str, Measured]]
    scored_on: dict[str, Hashable]
    elsewhere: bool = False

    @property
    def baseline(self) -> bool:
        """Whether this is the unedited model."""
        return self.row.reducer is None

    @property
    def pareto(self) -> bool:
        """Whether no other line scored on the same documents keeps less and scores more."""
        return self.values["pareto"] is True

    @property
    def section(self) -> tuple[str, Value, bool]:
        """Lines that stand together in the default order."""
        return self.row.model, self.values["setting"], self.baseline


@dataclass(frozen=True)
class Leaderboard:
    """The table.

    Attributes:
        columns: in the order in which they are to be shown.
        entries: scored cells, in order, the unedited models first.
        failures: cells that failed or were skipped, with `row.reason`.
        sort: the column asked for, None for the default order.
        left_out: scored cells that `top` dropped.
        without_samples: scored cells whose per-document scores are not there, so that they cannot be paired.
    """

    columns: list[Column]
    entries: list[Entry]
    failures: list[Entry] = field(default_factory=list)
    sort: str | None = None
    left_out: int = 0
    without_samples: int = 0

    @property
    def elsewhere(self) -> int:
        """How many lines were scored in another environment than the unedited model that they are compared with."""
        return sum(entry.elsewhere for entry in self.entries)

    def top(self, count: int) -> Leaderboard:
        """The first `count` lines of each setting, or of the whole where a sort was asked for; baselines stay."""
        seen: dict[Any, int] = {}
        kept = []
        for entry in self.entries:
            place = None if self.sort else entry.section
            seen[place] = seen.get(place, 0) + (not entry.baseline)
            if entry.baseline or seen[place] <= count:
                kept.append(entry)
        return replace(self, entries=kept, left_out=self.left_out + len(self.entries) - len(kept))

    def best(self) -> set[tuple[int, str]]:
        """(line, column) of the best values among the lines with one model, setting and set of edited weights.

        Scores compete only where they are of the same documents. Where all are equal none is best.
        """
        found: set[tuple[int, str]] = set()
        for column in self.columns:
            if column.better is None:
                continue
            settings: dict[Hashable, list[int]] = {}
            for index, entry in enumerate(self.entries):
                if not entry.baseline:
                    setting = (entry.row.model, entry.values["setting"], entry.values["edited"])
                    settings.setdefault((*setting, entry.scored_on.get(column.name)), []).append(index)
            for lines in settings.values():
                values = {line: as_number(self.entries[line].values[column.name]) for line in lines}
                numbers = {number for number in values.values() if number is not None}
                if len(numbers) > 1:
                    best = max(numbers) if column.better == "higher" else min(numbers)
                    found.update((line, column.name) for line, number in values.items() if number == best)
        return found


def build(runs: Sequence[RunDirectory], sort: str | None = None) -> Leaderboard:
    """The leaderboard of one or several runs.

    The default order is by model, then by setting (what keeps most first), then by score. Every model's unedited row
    stands above the others.

    Args:
        runs: run directories; several get a column that tells them apart.
        sort: a column's name, with a leading `-` for descending. Lines without a value come last.

    Raises:
        InputError: no such column, or a run's files cannot be read.
    """
    scored = [ScoredRun(run, name) for run, name in zip(runs, _run_names(runs), strict=True)]
    tasks = _task_columns(scored)
    top = [column for column in tasks if not column.subtask]
    overall = Overall.of(
        {column.task: column.metric for column in top}, {column.task for column in top if column.better == "lower"}
    )
    entries: list[Entry] = []
    failures: list[Entry] = []
    for run in scored:
        for row in run.rows.values():
            (entries if row.status == "ok" else failures).append(_entry(run, row, tasks, overall))
    everything = [*entries, *failures]
    score = Column(
        name="score",
        heading=("score", "mean" if overall.higher_is_better else "geomean"),
        kind="share" if overall.higher_is_better else "score",
        better="higher" if overall.higher_is_better else "lower",
        detail=len(overall.metrics) < 2,
    )
    columns = [
        *([Column("run", ("run", ""), "text")] if len(runs) > 1 else []),
        Column("model", ("model", ""), "text"),
        Column("method", ("method", ""), "text"),
        Column("setting", ("setting", ""), "text"),
        Column("edited", ("edited", ""), "text"),
        *([Column("seed", ("seed", ""), "text")] if len({entry.row.seed for entry in everything}) > 1 else []),
        *tasks,
        score,
        Column("keep", ("keep", "targets"), "ratio", "lower"),
        Column("keep_model", ("keep", "model"), "ratio", "lower"),
        Column("compression", ("size", "smaller"), "times", "higher"),
        Column("error", ("error", "rel."), "error", "lower"),
        Column("optimum", ("error", "/ opt."), "times", "lower"),
        Column("decompose", ("time", "s"), "seconds", "lower"),
        Column("rank", ("rank", ""), "text", detail=True),
        Column("optimal_error", ("error", "optimal"), "error", detail=True),
        Column(
            "calibrate",
            ("calibrate", "s"),
            "seconds",
            detail=not any(entry.row.calibrate_seconds for entry in everything),
        ),
        Column("evaluate", ("evaluate", "s"), "seconds", detail=True),
        *_speed_columns(everything),
        Column("pareto", ("Pareto", "front"), "flag", detail=True),
    ]
    _mark_pareto(entries, score)
    unpaired = sum(
        row.status == "ok" and not run.run.has_samples(row.cell) for run in scored for row in run.rows.values()
    )
    return Leaderboard(columns, _ordered(entries, columns, sort), failures, sort, without_samples=unpaired)


def _run_names(runs: Sequence[RunDirectory]) -> list[str]:
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


# A task of one of these names is called `task:NAME`.
_FIXED = frozenset(
    {
        *("run", "model", "method", "setting", "edited", "seed", "score", "keep", "keep_model", "compression", "error"),
        *("optimum", "decompose", "rank", "optimal_error", "calibrate", "evaluate", "pareto"),
        *("prefill", "decode", "memory"),
        *("status", "reason", "cell", "environment"),
    }
)


def _task_columns(runs: Sequence[ScoredRun]) -> list[Column]:
    metrics: dict[str, dict[str, None]] = {}
    top = set()
    for run in runs:
        for row in run.rows.values():
            for task, scores in row.scores.items():
                if scores:
                    metrics.setdefault(task, {}).update(dict.fromkeys(scores))
                if run.top_level(task):
                    top.add(task)
    place = {task: index for index, task in enumerate(dict.fromkeys(task for run in runs for task in run.order))}
    columns = []
    for task, names in sorted(metrics.items(), key=lambda entry: place.get(entry[0], len(place))):
        metric = primary(names)
        said = (run.higher_is_better(task, metric) for run in runs)
        higher = next((higher for higher in said if higher is not None), not lower_is_better(metric))
        columns.append(
            Column(
                name=f"task:{task}" if task in _FIXED else task,
                heading=(task, metric),
                kind="share" if higher and is_share(metric) else "score",
                better="higher" if higher else "lower",
                task=task,
                metric=metric,
                subtask=task not in top,
            )
        )
    return columns


def _entry(run: ScoredRun, row: Row, tasks: Sequence[Column], overall: Overall) -> Entry:
    measured = run.measure(row)
    top = {task: scores for task, scores in measured.items() if run.top_level(task)}
    weights, documents = run.weights_of(row), {task: run.documents_of(row, task) for task in measured}
    scored_on: dict[str, Hashable] = {
        column.name: (weights, documents[column.task]) for column in tasks if column.task in documents
    }
    scored_on["score"] = (weights, *((task, documents[task]) for task in overall.metrics if task in top))
    baseline, unedited = row.reducer is None, run.baseline_of(row)
    error, optimum = relative_error(row.edits), optimal_error(row.edits)
    values: dict[str, Value] = {
        "run": run.name,
        "model": row.model,
        "method": "unedited" if baseline else row.label or row.reducer,
        "setting": row.setting,
        "edited": describe(row.edits, run.blocks.get(row.model)),
        "seed": str(row.seed),
        **{column.name: measured.get(column.task, {}).get(column.metric) for column in tasks},
        "score": overall.score(top),
        "keep": row.keep_targets if row.keep_targets is not None or not baseline else 1.0,
        "keep_model": row.keep_model if row.keep_model is not None or not baseline else 1.0,
        "compression": row.compression_ratio if row.compression_ratio is not None or not baseline else 1.0,
        "error": error,
        # Below single precision's rounding the optimum is zero, and a ratio to it would be noise.
        "optimum": error / optimum if error is not None and optimum is not None and optimum > 1e-6 else None,
        "decompose": None if baseline else row.decompose_seconds,
        "rank": ranks(row.edits),
        "optimal_error": optimum,
        "calibrate": None if baseline else row.calibrate_seconds,
        "evaluate": row.evaluate_seconds,
        **_speeds(row),
        "pareto": False,
    }
    elsewhere = not baseline and unedited is not None and row.environment != unedited.environment
    return Entry(row, run.name, values, measured, scored_on, elsewhere)


#: Figure of `lrbench.speed.Speed` -> the column of factored over dense.
_SPEEDS = {
    "prefill_tokens_per_second": Column("prefill", ("prefill", "/ dense"), "times", "higher"),
    "decode_tokens_per_second": Column("decode", ("decode", "/ dense"), "times", "higher"),
    "peak_bytes": Column("memory", ("memory", "/ dense"), "times", "lower"),
}


def _speed_columns(entries: Sequence[Entry]) -> list[Column]:
    """Those that some line has: only suites with `measure: inference` do."""
    return [column for column in _SPEEDS.values() if any(e.values[column.name] is not None for e in entries)]


def _speeds(row: Row) -> dict[str, Value]:
    """One prompt at a time; memory at the largest batch."""
    if row.inference is None or not row.inference.batches:
        return {column.name: None for column in _SPEEDS.values()}
    batches = [entry.batch for entry in row.inference.batches]
    return {
        column.name: row.inference.ratio(what, max(batches) if what == "peak_bytes" else min(batches))
        for what, column in _SPEEDS.items()
    }


def _mark_pareto(entries: Sequence[Entry], score: Column) -> None:
    """Marks the lines that none beats: keeps no more and scores no less, and is better in one of the two.

    Lines compete within a model (and, where they are updates, within a base, since their sizes are on top of that), and
    only where the same documents of the same tasks make up their score.
    """
    sign = 1 if score.better == "higher" else -1
    fields: dict[Any, list[tuple[float, float, Entry]]] = {}
    for entry in entries:
        keep, number = as_number(entry.values["keep_model"]), as_number(entry.values["score"])
        if keep is not None and number is not None:
            field_of = entry.row.model, entry.row.delta, entry.scored_on["score"]
            fields.setdefault(field_of, []).append((keep, sign * number, entry))
    for points in fields.values():
        points.sort(key=lambda point: (point[0], -point[1]))
        best: tuple[float, float] | None = None
        for keep, number, entry in points:
            if best is None or number > best[1] or (keep, number) == best:  # equals of a line on the front are on it
                entry.values["pareto"] = True
                best = keep, number


def _ordered(entries: list[Entry], columns: Sequence[Column], sort: str | None) -> list[Entry]:
    models = {model: place for place, model in enumerate(dict.fromkeys(entry.row.model for entry in entries))}
    score = next(column for column in columns if column.name == "score")
    sign = -1 if score.better == "higher" else 1

    def default(entry: Entry) -> tuple[Any, ...]:
        number = as_number(entry.values["score"])
        return (
            models[entry.row.model],
            not entry.baseline,
            _setting_order(entry.row.requested),
            (1, 0.0) if number is None else (0, sign * number),
            str(entry.values["method"]),
        )

    entries = sorted(entries, key=default)
    if sort is None:
        return entries
    name = sort.removeprefix("-")
    known = [column.name for column in columns]
    # Tables leave out what all task names begin with.
    short = [column for column in known if column.endswith(f"_{name}")]
    if name not in known and len(short) == 1:
        name = short[0]
    if name not in known:
        raise InputError(f"--sort: unknown column {name!r} (there are {', '.join(known)}){did_you_mean(name, known)}")
    missing = [entry for entry in entries if _sort_key(entry, name) is None]
    there = [entry for entry in entries if _sort_key(entry, name) is not None]
    there.sort(key=lambda entry: _sort_key(entry, name), reverse=sort.startswith("-"))
    return sorted([*there, *missing], key=lambda entry: not entry.baseline)


_SETTINGS = ("keep", "fraction", "rank", "energy", "error")


def _setting_order(requested: Mapping[str, float]) -> tuple[Any, ...]:
    """What keeps most comes first: the largest keep, rank or energy, the smallest error."""
    return tuple(
        (_SETTINGS.index(kind) if kind in _SETTINGS else len(_SETTINGS), kind, value if kind == "error" else -value)
        for kind, value in requested.items()
    )


def _sort_key(entry: Entry, name: str) -> Any:
    value = entry.values[name]
    if name == "setting":
        return tuple((kind, number) for kind, number in entry.row.requested.items()) or None
    if isinstance(value, str):
        return entry.row.seed if name == "seed" else value.casefold() or None
    return as_number(value)


def as_number(value: Value) -> float | None:
    """The number to compare a value by; None where there is none, or it is not a number."""
    if isinstance(value, Measured):
        value = value.value
    if isinstance(value, bool):
        return float(value)
    return value if isinstance(value, int | float) and not math.isnan(value) else None
