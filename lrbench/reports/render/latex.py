"""A leaderboard as a LaTeX booktabs table; names of models and tasks are escaped."""

from __future__ import annotations

from typing import Any

from lrbench.analysis.leaderboard import Column, Leaderboard
from lrbench.reports.render.number_format import FRONT, PARETO, TIE, failure, headings, marks, pieces, remarks, units
from lrbench.reports.render.templating import TeX, latex


def render(board: Leaderboard) -> str:
    """All columns without `detail`, except subtasks; standard errors, differences, the best in bold, ties marked.

    A second table lists failed and skipped cells.
    """
    columns = [column for column in board.columns if not column.detail and not column.subtask]
    columns = [column for column in columns if column.kind != "text" or _varies(board, column)]
    titles = headings(board)
    sections: list[list[list[dict[str, Any]]]] = []
    for line, entry in enumerate(board.entries):
        cells = [{**_EMPTY, "number": PARETO if entry.pareto else ""}]
        for column in columns:
            number, error, delta = pieces(column, entry.values[column.name])
            mark = TIE if (line, column.name) in board.ties else ""
            strong = (line, column.name) in board.best or (entry.baseline and column.name == "method")
            cells.append({"number": number, "error": error, "delta": delta, "best": strong, "tie": mark})
        if not line or board.opens_section(line):
            sections.append([])
        sections[-1].append(cells)
    caption = " ".join([_title(board, columns), units(columns), marks(board), FRONT, *remarks(board)])
    return latex().get_template("leaderboard.tex").render(
        specification=TeX("c" + "".join("l" if column.kind == "text" else "r" for column in columns)),
        header=[["", *(titles[column.name][part] for column in columns)] for part in (0, 1)],
        sections=sections,
        caption=caption,
        failures=[failure(entry) for entry in board.failures],
    )  # fmt: skip


_EMPTY: dict[str, Any] = {"number": "", "error": "", "delta": "", "best": False, "tie": ""}


def _varies(board: Leaderboard, column: Column) -> bool:
    """Whether a column's values differ; constant ones are in the caption."""
    values = {
        entry.values[column.name] for entry in board.entries if not entry.baseline or column.name in ("model", "run")
    }
    return column.name == "method" or len(values) > 1


def _title(board: Leaderboard, columns: list[Column]) -> str:
    shown = {column.name for column in columns}
    parts = []
    for name, prefix in (("model", ""), ("setting", ""), ("edited", "edited: "), ("seed", "seed ")):
        values = [entry.values.get(name) for entry in board.entries if name == "model" or not entry.baseline]
        if name not in shown and values and values[0] and len(set(values)) == 1:
            parts.append(f"{prefix}{values[0]}")
    return ", ".join(parts) + "." if parts else ""
