"""A leaderboard as one self-contained HTML file, sortable by a click on a heading; names are escaped."""

from __future__ import annotations

import math
from typing import Any

from lrbench.analysis.leaderboard import Column, Entry, Leaderboard, Value, as_number
from lrbench.reports.render.number_format import (
    FRONT,
    PARETO,
    TIE,
    direction,
    failure,
    headings,
    interval,
    marks,
    pieces,
    remarks,
    units,
)
from lrbench.reports.render.templating import html


def render(board: Leaderboard) -> str:
    """All columns without `detail`, including subtasks; intervals of differences as hints; then the failures."""
    return html().get_template("leaderboard.html").render(page=True, **_content(board))


def fragment(board: Leaderboard) -> str:
    """The page's table, notes and failures, to stand in another page."""
    return html().get_template("leaderboard_table.html").render(page=False, **_content(board))


def _content(board: Leaderboard) -> dict[str, Any]:
    columns = [column for column in board.columns if not column.detail]
    titles = headings(board)
    lines = [
        {
            "baseline": entry.baseline,
            "pareto": entry.pareto,
            "cells": [
                {
                    **_cell(column, entry),
                    "best": (line, column.name) in board.best,
                    "tie": TIE if (line, column.name) in board.ties else "",
                }
                for column in columns
            ],
        }
        for line, entry in enumerate(board.entries)
    ]
    models = ", ".join(dict.fromkeys(entry.row.model for entry in [*board.entries, *board.failures]))
    notes = [units(columns), marks(board), FRONT, *remarks(board)]
    return {
        "title": f"{models} · leaderboard" if models else "leaderboard",
        "columns": [{"first": titles[c.name][0], "second": titles[c.name][1], **_classes(c)} for c in columns],
        "lines": lines,
        "notes": notes,
        "pareto": PARETO,
        "failures": [failure(entry) for entry in board.failures],
    }


def _cell(column: Column, entry: Entry) -> dict[str, Any]:
    value = entry.values[column.name]
    number, error, delta = pieces(column, value)
    return {
        **_classes(column), "number": number, "error": error, "delta": delta,
        "direction": direction(column, value), "hint": interval(column, value), "sort": _sort(value),
    }  # fmt: skip


def _classes(column: Column) -> dict[str, str]:
    return {
        "kind": "text" if column.kind == "text" else "number", "role": "method" if column.name == "method" else "",
    }  # fmt: skip


def _sort(value: Value) -> str:
    if isinstance(value, str):
        return value
    number = as_number(value)
    return "" if number is None else "Infinity" if number == math.inf else repr(number)
