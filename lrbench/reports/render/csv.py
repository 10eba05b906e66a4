"""A leaderboard as CSV (RFC 4180): all metrics of all tasks in full precision, one line a cell."""

from __future__ import annotations

import csv
import io
import math

from lrbench.analysis.leaderboard import Entry, Leaderboard
from lrbench.analysis.score import Measurement
from lrbench.reports.render.number_format import clean

_PARTS = (
    *("value", "stderr", "n", "delta", "delta_stderr", "delta_low", "delta_high", "p_value", "p_holm", "significant"),
    *("seeds", "spread"),
)


def render(board: Leaderboard) -> str:
    """A header and a line a cell; failed and skipped ones last, with `status` and `reason`.

    The metrics of a task stand under `TASK:METRIC`, `TASK:METRIC:stderr`, `:n`, `:delta` (from the baseline),
    `:delta_stderr` (paired), `:delta_low` and `:delta_high` (its 95 % bootstrap interval), `:p_value` (exact, paired),
    `:p_holm` (after Holm's correction over the lines of the table), `:significant` (whether that is at most 5 %),
    `:seeds` and `:spread` (the standard deviation over them); shares are fractions, not percent. Fields without a
    value are empty. Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    fixed = [column.name for column in board.columns if not column.task and column.name != "score"]
    entries = [*board.entries, *board.failures]
    metrics = dict.fromkeys(
        (task, metric) for entry in entries for task, values in entry.metrics.items() for metric in values
    )
    scores = ["score", *(f"{task}:{metric}" for task, metric in metrics)]
    header = ["cell", "status", *fixed]
    header += [name if part == "value" else f"{name}:{part}" for name in scores for part in _PARTS]
    header += ["reason", "environment"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([field(name) for name in header])
    for entry in entries:
        writer.writerow([field(value) for value in _line(entry, fixed, list(metrics))])
    return text.getvalue()


def _line(entry: Entry, fixed: list[str], metrics: list[tuple[str, str]]) -> list[object]:
    row = entry.row
    line: list[object] = [row.cell, row.status, *(entry.values.get(name) for name in fixed)]
    for value in (entry.values["score"], *(entry.metrics.get(task, {}).get(metric) for task, metric in metrics)):
        line += _parts(value) if isinstance(value, Measurement) else [None] * len(_PARTS)
    return [*line, row.reason, row.environment]


def _parts(value: Measurement) -> list[object]:
    low, high = value.interval or (None, None)
    known = {**value.record(), "delta_low": low, "delta_high": high}
    return [known[part] for part in _PARTS]


def field(value: object) -> str:
    """One field: numbers in full precision, nothing for None and NaN, text that no spreadsheet takes for a formula."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    text = clean(value)
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠")) else text
