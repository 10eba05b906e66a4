"""`lrbench leaderboard RUN...`: the table of one or several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrbench.cli.options import count
from lrbench.cli.output import write

# A copy of lrbench.reports.render.FORMATS, so that --help stays fast; a test compares them.
_FORMATS = ("terminal", "markdown", "latex", "html", "csv", "json")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the verb to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "leaderboard",
        help="show the table of one or several runs",
        description="The rows of one or several runs as a table: scores, differences from the baseline, sizes, "
        "errors, times. Failed and skipped cells are listed with their reason.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument("--format", choices=_FORMATS, default="terminal", help="default: %(default)s")
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help="a column's name (method, keep_model, a task, ...), with a leading - descending",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to a file instead of the screen")
    parser.add_argument(
        "--top", metavar="N", type=count, help="the first N rows of each setting; with --sort, of the table"
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="for suites with `select`: show all cells on the validation documents instead of the chosen ones",
    )
    parser.set_defaults(run=run)

    # argparse would parse `--sort -keep` as an option `-keep`, so it is joined to `--sort=-keep`.
    parse = parser.parse_known_args

    def parse_known_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        return parse(_joined(sys.argv[1:] if args is None else args), namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]
    return parser


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


def _joined(args: Sequence[str]) -> list[str]:
    joined: list[str] = []
    for arg in args:
        if joined and joined[-1] == "--sort" and arg.startswith("-") and not arg.startswith("--"):
            joined[-1] = f"--sort={arg}"
        else:
            joined.append(arg)
    return joined
