"""The data of the leaderboard page: one table per model and split, with formatted values, sort keys and hints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrbench.analysis.leaderboard import Column, Entry, Leaderboard, as_number
from lrbench.analysis.scored_run import Split
from lrbench.analysis.table import by_model_and_split
from lrbench.reports.render.number_format import clean, direction, headings, interval, marks, pieces, remarks
from lrbench.suite.roles import role_order

#: Redundant columns, hidden until requested.
_ON_REQUEST = ("compression",)

PageOf = Callable[[str, str], str]  # (run, cell) -> path of the row's page


@dataclass(frozen=True)
class Head:
    """A column.

    Attributes:
        column: of the leaderboard; its `kind` is `text` for left-aligned columns.
        first, second: the two lines of the heading.
        hidden: whether it is hidden until requested.
    """

    column: Column
    first: str
    second: str
    hidden: bool

    @property
    def whole(self) -> str:
        """The label in a menu."""
        return f"{self.first} {self.second}".strip()


@dataclass(frozen=True)
class TableRow:
    """A row of the page.

    Attributes:
        entry: of the leaderboard.
        page: the path of the row's own page.
        cells: a formatted value per column; empty for a cell without scores.
        opens: whether this is the first row of a setting.
    """

    entry: Entry
    page: str
    cells: Sequence[Mapping[str, Any]] = ()
    opens: bool = False

    def text(self, name: str) -> str:
        """A value as text."""
        return clean(str(self.entry.values[name] or ""))

    @property
    def roles(self) -> list[str]:
        """The roles of the edited weights, `other` for weights without one."""
        return _distinct(clean(edit.role or "other") for edit in self.entry.row.edits)


@dataclass(frozen=True)
class SplitTable:
    """All rows of one model on one split of the documents.

    Attributes:
        of_model: the key of the model's first table, used in the menu of models.
        split: the documents' split, if the run selects.
        first: whether it is the model's reported table, not one of validation documents.
        edited: the edited weights, if all rows share them; then they have no column.
    """

    model: str
    key: str
    of_model: str
    split: Split
    first: bool
    heads: list[Head]
    baselines: list[TableRow]
    lines: list[TableRow]
    failures: list[TableRow]
    edited: str


@dataclass(frozen=True)
class Page:
    """The leaderboard page: its tables and the options of its menus."""

    tables: list[SplitTable]
    marks: str
    remarks: list[str]

    @property
    def models(self) -> list[tuple[str, str, bool]]:
        """The options of the models' menu."""
        return [(key, name, False) for key, name in {table.of_model: table.model for table in self.tables}.items()]

    @property
    def methods(self) -> list[str]:
        """In order of appearance."""
        return _distinct(line.text("method") for table in self.tables for line in (*table.lines, *table.failures))

    @property
    def modes(self) -> list[str]:
        """In order of appearance."""
        rows = (line.entry.row for table in self.tables for line in (*table.lines, *table.failures))
        return _distinct(row.mode for row in rows if row.mode)

    @property
    def settings(self) -> list[str]:
        """In order of appearance."""
        return _distinct(line.text("setting") for table in self.tables for line in table.lines)

    @property
    def roles(self) -> list[str]:
        """In their usual order."""
        roles = _distinct(role for table in self.tables for line in table.lines for role in line.roles)
        return sorted(roles, key=role_order)

    @property
    def heads(self) -> list[Head]:
        """The columns of all tables."""
        return list({head.column.name: head for table in self.tables for head in table.heads}.values())


def page(
    board: Leaderboard, page_of: PageOf, key_of: Callable[[str], str], reported: Leaderboard | None = None
) -> Page:
    """The leaderboard's page.

    Args:
        page_of: (run, cell) -> path of the row's page.
        key_of: model's name -> anchor.
        reported: the part of the board that is reported; None: all of it.
    """
    tables: list[SplitTable] = []
    for model, split in by_model_and_split([*board.entries, *board.failures]):
        part = model, split
        entries = [(index, entry) for index, entry in enumerate(board.entries) if entry.model_and_split == part]
        failures = [entry for entry in board.failures if entry.model_and_split == part]
        of_model = key_of(model)
        others = any(table.of_model == of_model for table in tables)
        edited = {clean(str(entry.values["edited"])) for _, entry in entries if not entry.baseline}
        heads = _heads(board, [entry for _, entry in entries], same_edits=len(edited) == 1)
        lines: list[TableRow] = []
        for index, entry in entries:
            cells = [_cell(board, index, head) for head in heads]
            setting = entry.values["setting"]
            opens = bool(lines) and not entry.baseline and lines[-1].entry.values["setting"] != setting
            lines.append(TableRow(entry, page_of(entry.run, entry.row.cell), cells, opens))
        tables.append(
            SplitTable(
                model=clean(model),
                key=key_of(f"{model}-{split}") if others else of_model,
                of_model=of_model,
                split=split,
                first=split != "validation" or not others,
                heads=heads,
                baselines=[line for line in lines if line.entry.baseline],
                lines=[line for line in lines if not line.entry.baseline],
                failures=[TableRow(entry, page_of(entry.run, entry.row.cell)) for entry in failures],
                edited=edited.pop() if len(edited) == 1 else "",
            )
        )
    return Page(tables, marks(board), remarks(reported or board))


def _heads(board: Leaderboard, entries: Sequence[Entry], *, same_edits: bool) -> list[Head]:
    titles, heads = headings(board), []
    for column in board.columns:
        if column.name in ("model", "method", "pareto") or (column.name == "edited" and same_edits):
            continue
        if column.task and not any(entry.values[column.name] is not None for entry in entries):
            continue
        hidden = column.detail or column.subtask or column.name in _ON_REQUEST
        heads.append(Head(column, *titles[column.name], hidden))
    return heads


def _cell(board: Leaderboard, index: int, head: Head) -> dict[str, Any]:
    """A formatted value; `sort` is its sort key, a number or text, and comes last if empty."""
    column, entry = head.column, board.entries[index]
    value, place = entry.values[column.name], (index, column.name)
    number, error, delta = pieces(column, value)
    return {
        "text": number, "kind": column.kind, "hidden": head.hidden, "error": error, "delta": delta,
        "tone": direction(column, value), "hint": interval(column, value), "sort": _sort(entry, column),
        "best": place in board.best, "tie": place in board.ties,
    }  # fmt: skip


def _sort(entry: Entry, column: Column) -> str:
    if column.name == "setting":  # by the number, in the order of its kind
        kind, number = next(iter(entry.row.requested.items()), ("", None))
        return "" if number is None else f"{kind} {float(number):025.12f}"
    value = entry.values[column.name]
    number = as_number(value)
    return repr(float(number)) if number is not None else clean(value).casefold() if isinstance(value, str) else ""


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
