"""A leaderboard in the terminal, fitted to its width."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lrbench.analysis.leaderboard import Column, Entry, Leaderboard
from lrbench.reports.render.number_format import (
    FRONT,
    PARETO,
    SIGNIFICANT,
    STYLES,
    TIE,
    clean,
    direction,
    headings,
    marks,
    pieces,
    plain,
    remarks,
    shared_prefix,
    units,
)

# The order in which parts are hidden in a narrow terminal; after them tasks, from the right.
_SUBTASKS, _ERRORS, _DELTAS = "subtasks", "standard errors", "differences"
_EXPENDABLE = (
    *(
        _SUBTASKS,
        "compression",
        "keep",
        "score",
        "optimum",
        _ERRORS,
        "error",
        "decompose",
        "predicted_loss",
        _DELTAS,
        "keep_model",
    ),
    *("among", "seed", "run"),
)
# Prefixes of constant columns, which are shown once above the table.
_PREFIXES = {"edited": "edited: ", "seed": "seed ", "chosen_for": "chosen for ", "among": "among "}
_DELTA_STYLES = {"": "dim", "better": "green", "worse": "red"}
_GAP = 2  # spaces between columns: one from the box, one of padding


def show(board: Leaderboard, console: Console | None = None) -> None:
    """Prints the table to a console, by default standard output; nothing is hidden in a pipe."""
    console = console or Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.file.write(render(board))
        return
    console.print(_Page(board).renderable(console.width, styled=console.color_system is not None))


def render(board: Leaderboard, width: int | None = None) -> str:
    """The table as plain text without escape sequences; by default nothing is hidden."""
    page, out = _Page(board), io.StringIO()
    width = width or page.natural_width
    console = Console(file=out, width=width, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(page.renderable(width, styled=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


@dataclass(frozen=True)
class _TableLayout:
    """The shown columns, and whether scores show errors and differences."""

    columns: tuple[Column, ...]
    errors: bool = True
    deltas: bool = True

    def without(self, name: str) -> _TableLayout:
        if name == _ERRORS:
            return replace(self, errors=False)
        if name == _DELTAS:
            return replace(self, deltas=False)
        kept = [c for c in self.columns if (not c.subtask if name == _SUBTASKS else c.name != name)]
        return replace(self, columns=tuple(kept))


class _Page:
    """Lays out one leaderboard."""

    def __init__(self, board: Leaderboard) -> None:
        self.board = board
        self.titles = headings(board)
        self.constant = _constant(board)
        self.cells = {
            column.name: _aligned(
                [pieces(column, entry.values[column.name]) for entry in board.entries],
                {line for line, name in board.ties if name == column.name},
            )
            for column in board.columns
        }
        self.full = _TableLayout(
            tuple(column for column in board.columns if not column.detail and column.name not in self.constant)
        )

    @property
    def natural_width(self) -> int:
        """The width of all columns, at least 100 for the notes below."""
        return max(100, self._width(self.full))

    def renderable(self, width: int, styled: bool = True) -> Group:
        """Title, table, notes and failures."""
        layout = self._fitting(width)
        parts = [self._title(), Text()]
        if self.board.entries:
            parts += [self._table(layout), Text(), *self._notes(layout, styled)]  # type: ignore[list-item]
        else:
            parts += [Text(remark, style="italic") for remark in remarks(self.board)]
        if self.board.failures:
            parts += [Text(), *self._failures()]  # type: ignore[list-item]
        return Group(*parts)

    def _fitting(self, width: int) -> _TableLayout:
        """The largest layout that fits: hides parts in order, then restores those that fit after all."""
        layout = self.full
        hidden: list[str] = []
        tasks = [column.name for column in layout.columns if column.task and not column.subtask]
        for name in (*_EXPENDABLE, *tasks[:0:-1]):
            if self._width(layout) <= width:
                break
            hidden.append(name)
            layout = layout.without(name)
        for name in hidden[-2::-1]:
            kept = [other for other in hidden if other != name]
            wider = self.full
            for other in kept:
                wider = wider.without(other)
            if self._width(wider) <= width:
                layout, hidden = wider, kept
        return layout

    def _width(self, layout: _TableLayout) -> int:
        widths = [self._column_width(column, layout) for column in layout.columns]
        return 1 + sum(width + _GAP for width in widths)

    def _column_width(self, column: Column, layout: _TableLayout) -> int:
        heading = max(cell_len(line) for line in self.titles[column.name])
        return max(heading, sum(self._part_widths(column, layout)))

    def _part_widths(self, column: Column, layout: _TableLayout) -> tuple[int, int, int]:
        """The widths of a score's number, error and difference, the latter two with a leading space."""
        cells = self.cells[column.name]
        number, error, delta = (max((cell_len(cell[part]) for cell in cells), default=0) for part in range(3))
        return number, (error + 1) * (error > 0 and layout.errors), (delta + 1) * (delta > 0 and layout.deltas)

    def _title(self) -> Text:
        entries = self.board.entries
        text = Text(
            ", ".join(dict.fromkeys(clean(entry.row.model) for entry in entries)) or "leaderboard", style="bold"
        )
        edited = sum(not entry.baseline for entry in entries)
        for name, value in self.constant.items():
            if name != "model" and value:
                text.append(f" · {_PREFIXES.get(name, '')}{value}", "not bold")
        text.append(f" · {edited} edited model{'' if edited == 1 else 's'}", "not bold")
        if self.board.sort:
            text.append(f" · sorted by {self.board.sort}", "not bold")
        return text

    def _table(self, layout: _TableLayout) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style=""
        )
        table.add_column("", width=1, no_wrap=True)
        for column in layout.columns:
            first, second = self.titles[column.name]
            heading = Text.assemble((first, "bold"), "\n", (second, "dim"))
            left = column.kind == "text"
            table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
        for line, entry in enumerate(self.board.entries):
            if self.board.opens_section(line):
                table.add_section()
            mark = Text(PARETO if entry.pareto else "", style="yellow")
            table.add_row(
                mark,
                *(self._cell(line, entry, column, layout) for column in layout.columns),
                style="bold" if entry.baseline else "",
            )
        return table

    def _cell(self, line: int, entry: Entry, column: Column, layout: _TableLayout) -> Text:
        number, error, delta = self.cells[column.name][line]
        style = "bold" if (line, column.name) in self.board.best else ""
        if not column.is_score:
            return Text(number, style=style)
        number_width, error_width, delta_width = self._part_widths(column, layout)
        text = Text(" " * (number_width - cell_len(number))).append(number, style)
        if error_width:
            text.append(f" {error}".ljust(error_width), "dim")
        if delta_width:
            text.append(delta.rjust(delta_width), _DELTA_STYLES[direction(column, entry.values[column.name])])
        return text

    def _notes(self, layout: _TableLayout, styled: bool) -> Iterator[Text]:
        shown = {column.name for column in layout.columns}
        styles = STYLES if styled else ""
        yield Text(
            " ".join(part for part in (units(layout.columns), marks(self.board, bold=styled), styles, FRONT) if part),
            style="dim",
        )
        prefix = shared_prefix(self.board)
        if prefix:
            yield Text(f"Task names are shown without {clean(prefix)}.", style="dim")
        hidden = [clean(column.name) for column in self.full.columns if column.name not in shown]
        hidden += [] if layout.errors else [_ERRORS]
        hidden += [] if layout.deltas else [_DELTAS]
        if hidden:
            note = "Hidden in this width: {}; use --format markdown or csv to see all."
            yield Text(note.format(", ".join(hidden)), style="italic")
        for remark in remarks(self.board):
            yield Text(remark, style="italic")

    def _failures(self) -> Iterator[Text | Table]:
        yield Text(f"Not scored ({len(self.board.failures)})", style="bold")
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for entry in self.board.failures:
            names = ("model", "method", "setting", "edited")
            words = [
                clean(str(entry.values[name] or ""))
                for name in names
                if name != "model" or "model" not in self.constant
            ]
            table.add_row(
                Text(entry.row.status, style="red" if entry.row.status == "failed" else "yellow"),
                Text(" ".join(word for word in words if word)),
                Text(clean(entry.row.reason or "no reason was given"), overflow="fold"),
            )
        yield table


def _aligned(cells: list[tuple[str, str, str]], ties: set[int]) -> list[tuple[str, str, str]]:
    """Adds the marks of ties, and spaces in lines without marks if other lines of the column have them."""
    starred = any(delta.endswith(SIGNIFICANT) for _, _, delta in cells)
    aligned = []
    for line, (number, error, delta) in enumerate(cells):
        if ties:
            number += TIE if line in ties else " "
        if starred and delta and not delta.endswith(SIGNIFICANT):
            delta += " "
        aligned.append((number, error, delta))
    return aligned


def _constant(board: Leaderboard) -> dict[str, str]:
    """Text columns with equal values on all lines, which are shown once above the table."""
    constant = {}
    edited = [entry for entry in board.entries if not entry.baseline]
    for column in board.columns:
        if column.kind == "text" and not column.detail and column.name != "method":
            of_all = column.name in ("model", "run")
            values = {plain(column, entry.values[column.name]) for entry in (board.entries if of_all else edited)}
            if len(values) < 2 and not (column.name == "run" and board.failures):
                constant[column.name] = "".join(values)
    return constant
