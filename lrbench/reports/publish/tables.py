"""The data of the leaderboard page: one table per model and split, with formatted values, sort keys and hints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrbench.analysis.leaderboard import Column, Entry, Leaderboard, as_number
from lrbench.analysis.scored_run import Split
from lrbench.analysis.table import by_model_and_split
from lrbench.reports.render.number_format import clean, direction, headings, interval, marks, pieces, remarks, units
from lrbench.suite.roles import role_order

#: Redundant columns, hidden until requested.
_ON_REQUEST = ("compression",)

PageOf = Callable[[str, str], str]  # (run, cell) -> path of the row's page


@dataclass(frozen=True)
class Head:
    """A column.

    Attributes:
        name: for toggling and sorting.
        first, second: the two lines of the heading.
        kind: the leaderboard column's kind; `text` is left-aligned.
        task: whether it is a task's score.
        hidden: whether it is hidden until requested.
        whole: the label in a menu.
    """

    name: str
    first: str
    second: str
    kind: str
    task: bool
    hidden: bool
    whole: str


@dataclass(frozen=True)
class TableCell:
    """A formatted value. `sort` is the sort key, a number or text; empty keys come last."""

    text: str
    kind: str
    hidden: bool
    error: str = ""
    delta: str = ""
    tone: str = ""
    hint: str = ""
    sort: str = ""
    best: bool = False
    tie: bool = False


@dataclass(frozen=True)
class LeaderboardRow:
    """A row of the leaderboard. `opens` marks the first row of a setting."""

    method: str
    page: str
    cells: list[TableCell]
    setting: str
    roles: list[str]
    front: bool
    baseline: bool
    opens: bool
    mode: str


@dataclass(frozen=True)
class Failure:
    """A cell without scores."""

    page: str
    words: tuple[str, str, str]
    roles: list[str]
    status: str
    reason: str
    mode: str


@dataclass(frozen=True)
class LeaderboardTable:
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
    baselines: list[LeaderboardRow]
    lines: list[LeaderboardRow]
    failures: list[Failure]
    edited: str
    notes: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """In order of appearance."""
        return _distinct([*(line.method for line in self.lines), *(failure.words[0] for failure in self.failures)])


@dataclass(frozen=True)
class Page:
    """The leaderboard page: its tables and the options of its menus."""

    tables: list[LeaderboardTable]
    legend: str
    marks: str
    remarks: list[str]

    @property
    def methods(self) -> list[str]:
        """Of all tables."""
        return _distinct(method for table in self.tables for method in table.methods)

    @property
    def models(self) -> list[tuple[str, str]]:
        """Key and name of each model."""
        return list({table.of_model: (table.of_model, table.model) for table in self.tables}.values())

    @property
    def modes(self) -> list[str]:
        """Of all tables."""
        of_lines = [line.mode for table in self.tables for line in table.lines]
        return _distinct(filter(None, [*of_lines, *(f.mode for table in self.tables for f in table.failures)]))

    @property
    def settings(self) -> list[str]:
        """Of all tables."""
        return _distinct(line.setting for table in self.tables for line in table.lines)

    @property
    def roles(self) -> list[str]:
        """Of all tables, in their usual order."""
        roles = _distinct(role for table in self.tables for line in table.lines for role in line.roles)
        return sorted(roles, key=role_order)

    @property
    def tasks(self) -> list[Head]:
        """Columns of tasks, of all tables."""
        return list({head.name: head for table in self.tables for head in table.heads if head.task}.values())

    @property
    def columns(self) -> list[Head]:
        """The other columns."""
        return list({head.name: head for table in self.tables for head in table.heads if not head.task}.values())


def page(
    board: Leaderboard, page_of: PageOf, key_of: Callable[[str], str], reported: Leaderboard | None = None
) -> Page:
    """The leaderboard's page.

    Args:
        page_of: (run, cell) -> path of the row's page.
        key_of: model's name -> anchor.
        reported: the part of the board that is reported; None: all of it.
    """
    best, ties = board.best, board.ties
    tables: list[LeaderboardTable] = []
    for model, split in by_model_and_split([*board.entries, *board.failures]):
        part = model, split
        entries = [(index, entry) for index, entry in enumerate(board.entries) if entry.model_and_split == part]
        failures = [entry for entry in board.failures if entry.model_and_split == part]
        of_model = key_of(model)
        edited = {clean(str(entry.values["edited"])) for _, entry in entries if not entry.baseline}
        heads = _heads(board, [entry for _, entry in entries], same_edits=len(edited) == 1)
        columns = {column.name: column for column in board.columns}
        lines: list[LeaderboardRow] = []
        for index, entry in entries:
            cells = [
                _cell(columns[head.name], head, entry, (index, head.name) in best, (index, head.name) in ties)
                for head in heads
            ]
            setting = clean(str(entry.values["setting"]))
            opens = bool(lines) and not entry.baseline and lines[-1].setting != setting
            row_page = page_of(entry.run, entry.row.cell)
            method = clean(str(entry.values["method"]))
            lines.append(
                LeaderboardRow(
                    method,
                    row_page,
                    cells,
                    setting,
                    roles_of(entry),
                    entry.pareto,
                    entry.baseline,
                    opens,
                    entry.row.mode or "",
                )
            )
        tables.append(
            LeaderboardTable(
                model=clean(model),
                key=key_of(f"{model}-{split}") if any(table.of_model == of_model for table in tables) else of_model,
                of_model=of_model,
                split=split,
                first=split != "validation" or not any(table.of_model == of_model for table in tables),
                heads=heads,
                baselines=[line for line in lines if line.baseline],
                lines=[line for line in lines if not line.baseline],
                failures=[_failure(entry, page_of) for entry in failures],
                edited=edited.pop() if len(edited) == 1 else "",
            )
        )
    shown = [column for column in board.columns if not column.detail]
    return Page(tables, units(shown), marks(board), remarks(reported or board))


def roles_of(entry: Entry) -> list[str]:
    """The roles of the edited weights, `other` for weights without one."""
    return _distinct(clean(edit.role or "other") for edit in entry.row.edits)


def _heads(board: Leaderboard, entries: Sequence[Entry], *, same_edits: bool) -> list[Head]:
    titles, heads = headings(board), []
    for column in board.columns:
        if column.name in ("model", "method", "pareto") or (column.name == "edited" and same_edits):
            continue
        if column.task and not any(entry.values[column.name] is not None for entry in entries):
            continue
        first, second = titles[column.name]
        heads.append(
            Head(
                column.name,
                first,
                second,
                column.kind,
                bool(column.task),
                column.detail or column.subtask or column.name in _ON_REQUEST,
                f"{first} {second}".strip(),
            )
        )
    return heads


def _cell(column: Column, head: Head, entry: Entry, best: bool, tie: bool) -> TableCell:
    value = entry.values[column.name]
    number, error, delta = pieces(column, value)
    return TableCell(
        text=number,
        kind=column.kind,
        hidden=head.hidden,
        error=error,
        delta=delta,
        tone=direction(column, value),
        hint=interval(column, value),
        sort=_sort(entry, column),
        best=best,
        tie=tie,
    )


def _sort(entry: Entry, column: Column) -> str:
    if column.name == "setting":  # by the number, in the order of its kind
        kind, number = next(iter(entry.row.requested.items()), ("", None))
        return "" if number is None else f"{kind} {float(number):025.12f}"
    value = entry.values[column.name]
    number = as_number(value)
    return repr(float(number)) if number is not None else clean(value).casefold() if isinstance(value, str) else ""


def _failure(entry: Entry, page_of: PageOf) -> Failure:
    method, setting, edited = (clean(str(entry.values[name] or "")) for name in ("method", "setting", "edited"))
    reason = clean(entry.row.reason or "no reason was given")
    row_page = page_of(entry.run, entry.row.cell)
    return Failure(row_page, (method, setting, edited), roles_of(entry), entry.row.status, reason, entry.row.mode or "")


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
