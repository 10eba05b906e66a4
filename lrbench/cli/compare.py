"""`lrbench compare RUN RUN`: differences of scores with tests, and all other differences."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lrbench.cli.output import FORMATS, write
from lrbench.errors import InputError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the verb to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "compare",
        help="compare two runs or two rows",
        description="Lists the cells of two runs whose scores differ, with differences and tests paired by document, "
        "and the differences of hardware, versions, suite, data and reducers. The exit code does not depend on them.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="two run directories; with --rows, one or two"
    )
    parser.add_argument(
        "--rows", nargs=2, metavar=("A", "B"), help="compare two rows, each given by a prefix of its cell's hash: A of "
        "the first run, B of the last",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to a file instead of the screen")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints or writes the comparison.

    Raises:
        InputError: a RUN is no run directory, their number is wrong, no row has the hash, or FILE cannot be written.
    """
    from lrbench.analysis.comparison import compare_rows, compare_runs
    from lrbench.reports.render import comparison as pages
    from lrbench.results.directory import open_run

    if len(args.runs) > 2 or (len(args.runs) < 2 and not args.rows):
        count = len(args.runs)
        raise InputError(f"compare: {count} run{'' if count == 1 else 's'} given; give two, or one with --rows A B")
    first, second = open_run(args.runs[0]), open_run(args.runs[-1])
    comparison = compare_rows(first, second, tuple(args.rows)) if args.rows else compare_runs(first, second)
    if args.output is not None:
        write(args.output, pages.render(comparison, args.format))
    elif args.format == "terminal":
        pages.show(comparison)
    else:
        sys.stdout.write(pages.render(comparison, args.format))
    sys.stdout.flush()
    return 0
