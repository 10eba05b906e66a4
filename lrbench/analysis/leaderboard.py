"""Builds the leaderboard: one entry per cell, with differences from the baseline, the Pareto front and an order."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

from lrbench.analysis.derived import derive
from lrbench.analysis.edit_summary import describe, optimal_error, ranks, relative_error
from lrbench.analysis.score import Measurement, Overall, unpaired
from lrbench.analysis.scored_run import ScoredLine, ScoredRun, lines_of
from lrbench.analysis.table import Column, Entry, Kind, Leaderboard, Value, as_number, pareto_front
from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row
from lrbench.stats import holm
from lrbench.stats.metric_names import is_fraction, lower_is_better, primary
from lrbench.system.text import did_you_mean

__all__ = ["Column", "Entry", "Kind", "Leaderboard", "Value", "as_number", "build"]


def build(runs: Sequence[RunDirectory], sort: str | None = None, *, validation: bool = False) -> Leaderboard:
    """The leaderboard of one or several runs.

    The default order is by model, then by setting (the largest keep first), then by score; baselines come first. For
    suites with `select`, the entries are the chosen cells, scored on test documents and grouped by choice.

    Args:
        runs: run directories; several get a `run` column.
        sort: a column's name, with a leading `-` for descending. Entries without a value come last.
        validation: for suites with `select`, show all cells on the validation documents instead.

    Raises:
        InputError: no such column, or a run's files cannot be read.
    """
    names, split = run_names(runs), "validation" if validation else "test"
    scored = [ScoredRun(run, name, split) for run, name in zip(runs, names, strict=True)]  # type: ignore[arg-type]
    tasks = _task_columns(scored)
    top = [column for column in tasks if not column.subtask]
    overall = Overall.of(
        {column.task: column.metric for column in top}, {column.task for column in top if column.better == "lower"}
    )
    lines = [(run, line) for run in scored for line in lines_of(r for r in run.rows.values() if r.status == "ok")]
    measured, family = _corrected(
        [metrics for run in scored for metrics in run.measure([x for r, x in lines if r is run])]
    )
    entries = [_entry(run, line, scores, tasks, overall) for (run, line), scores in zip(lines, measured, strict=True)]
    derived = _derived(entries, lines, measured)
    failures = [
        _entry(run, ScoredLine((row,)), unpaired(row), tasks, overall)
        for run in scored
        for row in run.rows.values()
        if row.status != "ok" and not _screened_out(row)
    ]
    screened_out = sum(_screened_out(row) for run in scored for row in run.rows.values())
    family_of = {column.name: family.get((column.task, column.metric), 0) for column in tasks}
    entries, family_of["score"] = _scores_corrected(entries)
    all_entries = [*entries, *failures]
    for column in derived:
        for entry in all_entries:
            entry.values.setdefault(column.name, None)
    choices = dict.fromkeys(entry.chosen_for for entry in entries if entry.chosen_for is not None)
    score = Column(
        name="score",
        heading=("score", "mean" if overall.higher_is_better else "geomean"),
        kind="share" if overall.higher_is_better else "score",
        better="higher" if overall.higher_is_better else "lower",
        detail=len(overall.metrics) < 2 or len(choices) > 1,  # cells chosen for one task are scored on it alone
    )
    columns = [
        *([Column("run", ("run", ""), "text")] if len(runs) > 1 else []),
        Column("model", ("model", ""), "text"),
        *(_SELECTION if choices else []),
        Column("method", ("method", ""), "text"),
        Column("setting", ("setting", ""), "text"),
        Column("edited", ("edited", ""), "text"),
        *([Column("seed", ("seed", ""), "text")] if len({entry.values["seed"] for entry in all_entries}) > 1 else []),
        *tasks,
        *derived,
        score,
        *([_DOCUMENTS] if any(entry.values["documents"] != "" for entry in entries) else []),
        Column("keep", ("keep", "targets"), "ratio", "lower"),
        Column("keep_model", ("keep", "model"), "ratio", "lower"),
        Column("compression", ("size", "smaller"), "times", "higher"),
        Column("error", ("error", "rel."), "error", "lower"),
        Column("optimum", ("error", "/ opt."), "times", "lower"),
        *([_PREDICTED] if any(entry.values["predicted_loss"] is not None for entry in all_entries) else []),
        Column("decompose", ("time", "s"), "seconds", "lower"),
        Column("rank", ("rank", ""), "text", detail=True),
        Column("optimal_error", ("error", "optimal"), "error", detail=True),
        Column(
            "calibrate",
            ("calibrate", "s"),
            "seconds",
            detail=not any(entry.row.calibrate_seconds for entry in all_entries),
        ),
        Column("evaluate", ("evaluate", "s"), "seconds", detail=True),
        *_speed_columns(all_entries),
        Column("pareto", ("Pareto", "front"), "flag", detail=True),
    ]
    _mark_pareto(entries, score)
    without_samples = sum(
        row.status == "ok" and not run.run.has_samples(row.cell) for run in scored for row in run.rows.values()
    )
    return Leaderboard(
        columns,
        _ordered(entries, columns, sort),
        failures,
        sort,
        without_samples=without_samples,
        family=family_of,
        below_chance=_below_chance(scored),
        screened_out=screened_out,
        waiting=sum(run.waiting for run in scored),
    )


def _screened_out(row: Row) -> bool:
    return row.status == "skipped" and row.selection is not None and bool(row.selection.predicted)


def run_names(runs: Sequence[RunDirectory]) -> list[str]:
    """The names of the runs' folders; their paths if two folders have the same name."""
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


# Tasks with one of these names get the column `task:NAME`.
_FIXED = frozenset(
    {
        *("run", "model", "method", "setting", "edited", "seed", "score", "keep", "keep_model", "compression", "error"),
        *("optimum", "predicted_loss", "decompose", "rank", "optimal_error", "calibrate", "evaluate", "pareto"),
        *("prefill", "decode", "memory", "chosen_for", "among", "validated_on", "documents"),
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
        declared = (run.higher_is_better(task, metric) for run in runs)
        higher = next((higher for higher in declared if higher is not None), not lower_is_better(metric))
        columns.append(
            Column(
                name=f"task:{task}" if task in _FIXED else task,
                heading=(task, metric),
                kind="share" if higher and is_fraction(metric) else "score",
                better="higher" if higher else "lower",
                task=task,
                metric=metric,
                subtask=task not in top,
            )
        )
    return columns


def _derived(
    entries: Sequence[Entry],
    lines: Sequence[tuple[ScoredRun, ScoredLine]],
    measured: Sequence[Mapping[str, Mapping[str, Measurement]]],
) -> list[Column]:
    """The suites' derived columns with at least one value; adds the values to the entries."""
    of_row = {(id(run), line.row.cell): table for (run, line), table in zip(lines, measured, strict=True)}
    columns: dict[str, Column] = {}
    for entry, (run, line), ours in zip(entries, lines, measured, strict=True):
        baseline = run.baseline_of(line.row)
        of_baseline = of_row.get((id(run), baseline.cell)) if baseline is not None and line.row.reducer else None

        def lower(task: str, metric: str, run: ScoredRun = run) -> bool:
            higher = run.higher_is_better(task, metric)
            return lower_is_better(metric) if higher is None else not higher

        for name, value in derive(run.derived, ours, of_baseline, lower).items():
            (column,) = [column for column in run.derived if column.name == name]
            retention = column.kind == "retention"
            better: Literal["higher", "lower"] = "higher"
            in_percent = retention
            if not retention:
                terms = [(t.name, t.metric or primary(ours[t.name])) for t in column.terms if ours.get(t.name)]
                better = "lower" if terms and all(lower(*term) for term in terms) else "higher"
                in_percent = better == "higher" and all(is_fraction(metric) for _, metric in terms)
            key = f"derived:{name}" if name in _FIXED else name
            heading = (name, "retained" if retention else "mean")
            columns.setdefault(key, Column(key, heading, "share" if in_percent else "score", better, derived=True))
            entry.values[key] = value
            entry.scored_on[key] = entry.scored_on["score"]
    return list(columns.values())


def _corrected(
    lines: Sequence[Mapping[str, Mapping[str, Measurement]]],
) -> tuple[list[dict[str, dict[str, Measurement]]], dict[tuple[str, str], int]]:
    """All metrics with Holm's correction over the lines of each metric, and the number of its comparisons."""
    columns = dict.fromkeys((task, metric) for line in lines for task, metrics in line.items() for metric in metrics)
    corrected: list[dict[str, dict[str, Measurement]]] = [{} for _ in lines]
    family = {}
    for task, metric in columns:
        values = [line.get(task, {}).get(metric) for line in lines]
        p_values = [value.p_value if value is not None else None for value in values]
        family[task, metric] = sum(p is not None for p in p_values)
        for of_line, value, p in zip(corrected, values, holm(p_values), strict=True):
            if value is not None:
                of_line.setdefault(task, {})[metric] = value.with_p_holm(p)
    return corrected, family


def _scores_corrected(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """The same for the overall score of each entry."""
    scores = [entry.values["score"] for entry in entries]
    p_values = [score.p_value if isinstance(score, Measurement) else None for score in scores]
    for entry, score, p in zip(entries, scores, holm(p_values), strict=True):
        if isinstance(score, Measurement):
            entry.values["score"] = score.with_p_holm(p)
    return list(entries), sum(p is not None for p in p_values)


def _below_chance(runs: Sequence[ScoredRun]) -> tuple[tuple[str, str, float, float], ...]:
    """Baselines whose accuracy is below chance, where an improvement may be a mere return to chance."""
    below = []
    for run in runs:
        for row in run.rows.values():
            for task, scores in row.scores.items() if row.reducer is None else ():
                chance = run.chance.get((row.model, task))
                if chance is not None and "acc" in scores and scores["acc"].value < chance:
                    below.append((row.model, task, scores["acc"].value, chance))
    return tuple(dict.fromkeys(below))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _seeds(rows: Sequence[Row]) -> str:
    """`0`, `0–4`, `1, 7`."""
    seeds = sorted(row.seed for row in rows)
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _entry(
    run: ScoredRun,
    line: ScoredLine,
    measured: dict[str, dict[str, Measurement]],
    tasks: Sequence[Column],
    overall: Overall,
) -> Entry:
    row, rows = line.row, line.rows
    top = {task: scores for task, scores in measured.items() if run.top_level(task)}
    weights, documents = run.weights_of(row), {task: run.documents_of(row, task) for task in measured}
    scored_on: dict[str, Hashable] = {
        column.name: (weights, documents[column.task]) for column in tasks if column.task in documents
    }
    scored_on["score"] = (weights, *((task, documents[task]) for task in overall.metrics if task in top))
    is_baseline, baseline = row.reducer is None, run.baseline_of(row)
    error, optimum = _mean(relative_error(r.edits) for r in rows), _mean(optimal_error(r.edits) for r in rows)
    # Below float32 rounding the optimum is zero, and a ratio to it is noise. Rounding is relative to W, and an update
    # is far smaller than W.
    rounding = 1e-6 if row.delta is None else 1e-4
    keep, keep_model, smaller = (
        _mean(getattr(r, name) for r in rows) for name in ("keep_targets", "keep_model", "compression_ratio")
    )
    values: dict[str, Value] = {
        "run": run.name,
        "model": row.model,
        **_chosen(row),
        "documents": _scored_on(rows),
        "method": "baseline" if is_baseline else row.method,
        "setting": row.setting,
        "edited": describe(row.edits, run.blocks.get(row.model)),
        "seed": _seeds(rows),
        **{column.name: measured.get(column.task, {}).get(column.metric) for column in tasks},
        "score": overall.score(top),
        "keep": keep if keep is not None or not is_baseline else 1.0,
        "keep_model": keep_model if keep_model is not None or not is_baseline else 1.0,
        "compression": smaller if smaller is not None or not is_baseline else 1.0,
        "error": error,
        "optimum": error / optimum if error is not None and optimum is not None and optimum > rounding else None,
        "predicted_loss": _mean(r.predicted_loss for r in rows),
        "decompose": None if is_baseline else _mean(r.decompose_seconds for r in rows),
        "rank": ranks([edit for r in rows for edit in r.edits]),
        "optimal_error": optimum,
        "calibrate": None
        if is_baseline or not any(r.calibrate_seconds for r in rows)
        else _mean(r.calibrate_seconds for r in rows),
        "evaluate": _mean(r.evaluate_seconds for r in rows),
        **_speeds(row),
        "pareto": False,
    }
    differs = not is_baseline and baseline is not None and any(r.environment != baseline.environment for r in rows)
    return Entry(row, run.name, values, measured, scored_on, differs, tuple(rows[1:]))


#: Columns of selections: the choice, the number of candidates, and of validation documents.
_SELECTION = (
    Column("chosen_for", ("chosen", "for"), "text"),
    Column("among", ("chosen", "among"), "text"),
    Column("validated_on", ("chosen", "on"), "text", detail=True),
)


#: Column of runs with calibration text: the loss that the edits are predicted to add, in nats per token.
_PREDICTED = Column("predicted_loss", ("loss", "predicted"), "loss", "lower")


#: Column of races: the number of documents that a cell was scored on.
_DOCUMENTS = Column("documents", ("scored on", "documents"), "text")


def _scored_on(rows: Sequence[Row]) -> str:
    """The number of scored documents; empty if all were scored."""
    counts = sorted({sum(r.selection.documents.values()) for r in rows if r.selection and r.selection.stopped})
    return "–".join(map(str, counts[:: max(1, len(counts) - 1)]))


def _chosen(row: Row) -> dict[str, Value]:
    selection = row.selection
    if selection is None or selection.chosen_for is None:
        return {column.name: "" for column in _SELECTION}
    documents = sum((selection.validated_on or {}).values())
    values = selection.chosen_for, f"{selection.candidates} cells", f"{documents} documents"
    return {column.name: value for column, value in zip(_SELECTION, values, strict=True)}


#: Field of `lrbench.results.rows.Speed` -> column of the ratio of factored to dense.
_SPEEDS = {
    "prefill_tokens_per_second": Column("prefill", ("prefill", "/ dense"), "times", "higher"),
    "decode_tokens_per_second": Column("decode", ("decode", "/ dense"), "times", "higher"),
    "peak_bytes": Column("memory", ("memory", "/ dense"), "times", "lower"),
}


def _speed_columns(entries: Sequence[Entry]) -> list[Column]:
    """The speed columns with at least one value; only suites with `measure: inference` have them."""
    return [column for column in _SPEEDS.values() if any(e.values[column.name] is not None for e in entries)]


def _speeds(row: Row) -> dict[str, Value]:
    """Speeds at the smallest batch, memory at the largest."""
    if row.inference is None or not row.inference.batches:
        return {column.name: None for column in _SPEEDS.values()}
    batches = [entry.batch for entry in row.inference.batches]
    return {
        column.name: row.inference.ratio(figure, max(batches) if figure == "peak_bytes" else min(batches))
        for figure, column in _SPEEDS.items()
    }


def _mark_pareto(entries: Sequence[Entry], score: Column) -> None:
    """Marks the Pareto front of model size and score.

    Entries compete within a model (and within a base, for updates), if their scores come from the same documents.
    """
    sign = 1 if score.better == "higher" else -1
    fields: dict[Any, list[tuple[float, float, Entry]]] = {}
    for entry in entries:
        keep, number = as_number(entry.values["keep_model"]), as_number(entry.values["score"])
        if keep is not None and number is not None:
            field_of = entry.row.model, entry.row.delta, entry.scored_on["score"]
            fields.setdefault(field_of, []).append((keep, sign * number, entry))
    for points in fields.values():
        for index in pareto_front([(keep, merit) for keep, merit, _ in points]):
            points[index][2].values["pareto"] = True


def _ordered(entries: list[Entry], columns: Sequence[Column], sort: str | None) -> list[Entry]:
    models = {model: place for place, model in enumerate(dict.fromkeys(entry.row.model for entry in entries))}
    by_name = {column.task or column.name: column for column in columns}
    choices = {name: place for place, name in enumerate(by_name)}

    def default(entry: Entry) -> tuple[Any, ...]:
        choice = by_name.get(entry.chosen_for or "score", by_name["score"])
        number = as_number(entry.values[choice.name])
        sign = -1 if choice.better == "higher" else 1
        return (
            models[entry.row.model],
            not entry.baseline,
            _setting_order(entry.row.requested)
            if entry.chosen_for is None
            else (choices.get(entry.chosen_for, len(choices)),),
            (1, 0.0) if number is None else (0, sign * number),
            str(entry.values["method"]),
        )

    entries = sorted(entries, key=default)
    if sort is None:
        return entries
    name = sort.removeprefix("-")
    known = [column.name for column in columns]
    # Tables omit the common prefix of task names.
    short = [column for column in known if column.endswith(f"_{name}")]
    if name not in known and len(short) == 1:
        name = short[0]
    if name not in known:
        raise InputError(f"--sort: unknown column {name!r} (known are {', '.join(known)}){did_you_mean(name, known)}")
    missing = [entry for entry in entries if _sort_key(entry, name) is None]
    with_value = [entry for entry in entries if _sort_key(entry, name) is not None]
    with_value.sort(key=lambda entry: _sort_key(entry, name), reverse=sort.startswith("-"))
    return sorted([*with_value, *missing], key=lambda entry: not entry.baseline)


_SETTINGS = ("keep_model", "keep", "fraction", "rank", "energy", "error")


def _setting_order(requested: Mapping[str, float]) -> tuple[Any, ...]:
    """Sorts the largest keep, rank or energy first, and the smallest error."""
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
