"""`lrbench leaderboard RUN...`: the table of one or several runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lrbench.cli.options import count
from lrbench.cli.output import write
from lrbench.reports.render import FORMATS


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "leaderboard", help="show the table of one or several runs",
        description="The rows of one or several runs as a table: scores, differences from the baseline, sizes, "
        "errors, times. Failed and skipped cells are listed with their reason.",
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="default: %(default)s")
    parser.add_argument(
        "--sort", metavar="COLUMN",
        help="a column's name (method, keep_model, a task, ...), with a leading - descending",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to a file instead of the screen")
    parser.add_argument(
        "--top", metavar="N", type=count, help="the first N rows of each setting; with --sort, of the table"
    )
    parser.add_argument(
        "--validation", action="store_true",
        help="for suites with `select`: show all cells on the validation documents instead of the chosen ones",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints or writes the table."""
    from lrbench.analysis.leaderboard import build
    from lrbench.reports.render import renderer, terminal
    from lrbench.results.directory import open_run

    paths = {path.resolve(): path for path in reversed(args.runs)}
    board = build([open_run(path) for path in reversed(paths.values())], args.sort, validation=args.validation)
    if args.top is not None:
        board = board.top(args.top)
    if args.output is not None:
        write(args.output, renderer(args.format)(board))
        return 0
    if args.format == "terminal":
        terminal.show(board)
    else:
        sys.stdout.write(renderer(args.format)(board))
    sys.stdout.flush()  # raises BrokenPipeError here, where `main` handles it
    return 0
