"""A leaderboard as CSV (RFC 4180): all metrics of all tasks in full precision, one line per cell."""

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
    """A header and one line per cell; failed and skipped cells last, with `status` and `reason`.

    Columns of metrics: `TASK:METRIC`, `TASK:METRIC:stderr`, `:n`, `:delta` (from the baseline), `:delta_stderr`
    (paired), `:delta_low` and `:delta_high` (95 % bootstrap interval), `:p_value` (exact, paired), `:p_holm` (after
    Holm's correction over the lines of the table), `:significant` (`p_holm` at most 5 %), `:seeds` and `:spread` (the
    standard deviation over seeds); the same of the score and of derived columns. Fractions are not in percent. Missing
    values are empty. Text that a spreadsheet would interpret as a formula gets a leading apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    for line in lines(board):
        writer.writerow([field(value) for value in line])
    return text.getvalue()


def lines(board: Leaderboard) -> list[list[object]]:
    """The header and the lines of `render`, as values."""
    derived = [column.name for column in board.columns if column.derived]
    fixed = [column.name for column in board.columns if not column.is_score]
    entries = [*board.entries, *board.failures]
    metrics = dict.fromkeys(
        (task, metric) for entry in entries for task, values in entry.metrics.items() for metric in values
    )
    scores = ["score", *derived, *(f"{task}:{metric}" for task, metric in metrics)]
    header: list[object] = ["cell", "status", *fixed]
    header += [name if part == "value" else f"{name}:{part}" for name in scores for part in _PARTS]
    header += ["reason", "environment"]
    return [header, *(_line(entry, fixed, derived, list(metrics)) for entry in entries)]


def _line(entry: Entry, fixed: list[str], derived: list[str], metrics: list[tuple[str, str]]) -> list[object]:
    row = entry.row
    line: list[object] = [row.cell, row.status, *(entry.values.get(name) for name in fixed)]
    summaries = (entry.values.get(name) for name in ("score", *derived))
    for value in (*summaries, *(entry.metrics.get(task, {}).get(metric) for task, metric in metrics)):
        line += _parts(value) if isinstance(value, Measurement) else [None] * len(_PARTS)
    return [*line, row.reason, row.environment]


def _parts(value: Measurement) -> list[object]:
    low, high = value.interval or (None, None)
    known = {**value.record(), "delta_low": low, "delta_high": high}
    return [known[part] for part in _PARTS]


def field(value: object) -> str:
    """Formats a field: numbers in full precision, empty for None and NaN, text escaped against spreadsheet formulas."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    text = clean(value)
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠")) else text
