"""A leaderboard as a GitHub table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lrbench.analysis.leaderboard import Column, Entry, Leaderboard
from lrbench.analysis.score import Measurement
from lrbench.reports.render.number_format import (
    FRONT,
    PARETO,
    TIE,
    clean,
    headings,
    marks,
    pieces,
    plain,
    remarks,
    units,
)


def render(board: Leaderboard) -> str:
    """All columns without `detail`, including subtasks; best values in bold, then a legend and the failures."""
    columns = [column for column in board.columns if not column.detail]
    titles = headings(board)
    lines = [
        line(["", *("<br>".join(escape(part) for part in titles[column.name] if part) for column in columns)]),
        line([":-:", *(":--" if column.kind == "text" else "--:" for column in columns)]),
    ]
    for index, entry in enumerate(board.entries):
        cells = []
        for column in columns:
            text = _cell(column, entry, TIE if (index, column.name) in board.ties else "")
            strong = text and ((entry.baseline and column.name == "method") or (index, column.name) in board.best)
            cells.append(f"**{text}**" if strong else text)
        lines.append(line([PARETO if entry.pareto else "", *cells]))
    lines += ["", f"{escape(units(columns))} {escape(marks(board))} {escape(FRONT)}"]
    for remark in remarks(board):
        lines += ["", escape(remark)]
    if board.failures:
        lines += ["", f"Not scored ({len(board.failures)}):", ""]
        lines += [line(["model", "method", "setting", "edited", "status", "reason"]), line([":--"] * 6)]
        for entry in board.failures:
            words = [str(entry.values[name] or "") for name in ("model", "method", "setting", "edited")]
            lines.append(line([escape(word) for word in (*words, entry.row.status, entry.row.reason or "")]))
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Escapes text for a Markdown table cell: `|`, emphasis, links and HTML have no effect."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]~#!$])", r"\\\1", text)


def _cell(column: Column, entry: Entry, tie: str) -> str:
    value = entry.values[column.name]
    if not isinstance(value, Measurement):
        return escape(plain(column, value))
    number, error, delta = pieces(column, value)
    return " ".join(part for part in (number + tie, error, f"({escape(delta)})" if delta else "") if part)


def line(cells: Sequence[str]) -> str:
    """A line of a table; the cells must be escaped."""
    return f"| {' | '.join(cells)} |"
