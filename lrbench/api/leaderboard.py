"""`lrbench.leaderboard`: the table of one or several runs, for notebooks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.analysis.leaderboard import Leaderboard, build
from lrbench.api.results import Results, import_pandas
from lrbench.errors import InputError
from lrbench.reports.figures import altair
from lrbench.reports.publish import charts
from lrbench.reports.publish.names import Names
from lrbench.reports.render import FORMATS, csv, html, renderer, terminal
from lrbench.results.directory import RunDirectory, open_run

if TYPE_CHECKING:
    import pandas


class LeaderboardTable:
    """A leaderboard that shows itself in a terminal and in a notebook.

    Attributes:
        board: its columns and entries.
    """

    def __init__(self, board: Leaderboard) -> None:
        self.board = board

    def to_pandas(self) -> pandas.DataFrame:
        """The lines and columns of `lrbench leaderboard --format csv`, failed and skipped cells last.

        Raises:
            InputError: pandas is not installed.
        """
        header, *lines = csv.lines(self.board)
        return import_pandas().DataFrame(lines, columns=header)

    def to_text(self, format: str = "markdown") -> str:
        """The table as `lrbench leaderboard --format` writes it. Raises InputError for an unknown format."""
        if format not in FORMATS:
            raise InputError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
        return renderer(format)(self.board)

    def figures(self) -> list[charts.Figure]:
        """The figures of `lrbench publish`, accuracy against size first; a notebook shows each.

        Raises:
            InputError: Altair or vl-convert is not installed.
        """
        altair()
        return charts.of_board(self.board, Names())

    def __repr__(self) -> str:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return terminal.render(self.board, width).rstrip("\n")

    def _repr_html_(self) -> str:
        return html.fragment(self.board)


def leaderboard(
    runs: Results | str | Path | Iterable[Results | str | Path],
    *,
    sort: str | None = None,
    top: int | None = None,
    validation: bool = False,
) -> LeaderboardTable:
    """The leaderboard of one or several runs, as `lrbench leaderboard` shows it.

    Args:
        runs: results of `lrbench.run` or `lrbench.read_results`, a run's directory, or several of them.
        sort: a column's name, with a leading `-` for descending.
        top: the first rows of each setting; with `sort`, of the table.
        validation: for suites with `select`, show all cells on the validation documents instead of the chosen ones.

    Raises:
        InputError: there is no run or no such column, or a run's files cannot be read.
    """
    if top is not None and (type(top) is not int or top < 1):
        raise InputError(f"top={top!r}: must be a whole number above zero")
    if sort is not None and not isinstance(sort, str):
        raise InputError(f"sort={sort!r}: must be a column's name")
    if isinstance(runs, Results | str | Path):
        runs = [runs]
    if not isinstance(runs, Iterable):
        raise InputError(f"runs: must be results or a run's directory, or several, not {type(runs).__name__}")
    directories = {directory.path.resolve(): directory for directory in map(_directory, runs)}
    if not directories:
        raise InputError("runs: empty; give results or a run's directory")
    board = build(list(directories.values()), sort, validation=validation)
    return LeaderboardTable(board if top is None else board.top(top))


def _directory(run: Any) -> RunDirectory:
    path = run.path if isinstance(run, Results) else run
    if not isinstance(path, str | Path):
        raise InputError(
            f"runs: {type(run).__name__} names no run; give results of lrbench.run or lrbench.read_results, or a run's "
            "directory"
        )
    return open_run(Path(path))
