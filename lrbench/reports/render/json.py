"""A leaderboard as JSON: all values in full precision, null for missing ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from lrbench.analysis.leaderboard import Entry, Leaderboard
from lrbench.analysis.score import Measurement
from lrbench.stats import COVERAGE, LEVEL


def render(board: Leaderboard) -> str:
    """`{"columns": [...], "tests": {...}, "rows": [...]}`; failed and skipped rows come last.

    A row has one value per column name (scores as objects), and `scores` with all metrics of all tasks. Infinities and
    NaN are null.
    """
    document = {
        "columns": [asdict(column) for column in board.columns],
        "tests": {"level": LEVEL, "correction": "Holm", "comparisons": dict(board.family), "interval": COVERAGE},
        "rows": [_row(entry) for entry in (*board.entries, *board.failures)],
    }
    return json.dumps(finite(document), indent=2, allow_nan=False) + "\n"


def _row(entry: Entry) -> dict[str, Any]:
    row = entry.row
    return {
        "cell": row.cell,
        "seeds": {str(repeat.seed): repeat.cell for repeat in (row, *entry.repeats)},
        "status": row.status,
        "reason": row.reason,
        "suite": row.suite,
        "environment": row.environment,
        "reducer": row.reducer,
        "params": row.params,
        "requested": row.requested,
        **{name: _plain(value) for name, value in entry.values.items()},
        "scores": {
            task: {metric: _plain(value) for metric, value in metrics.items()}
            for task, metrics in entry.metrics.items()
        },
    }


def _plain(value: Any) -> Any:
    return value.record() if isinstance(value, Measurement) else value


def finite(value: Any) -> Any:
    """Plain data with None for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
