"""`lrbench compare RUN RUN`: differences of scores with tests, and all other differences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrbench.cli import output
from lrbench.errors import InputError


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "compare", help="compare two runs or two rows",
        description="Lists the cells of two runs whose scores differ, with differences and tests paired by document, "
        "and the differences of hardware, versions, suite, data and reducers. The exit code does not depend on them.",
    )  # fmt: skip
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="two run directories; with --rows, one or two"
    )
    parser.add_argument(
        "--rows", nargs=2, metavar=("A", "B"), help="compare two rows, each given by a prefix of its cell's hash: A of "
        "the first run, B of the last",
    )  # fmt: skip
    output.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints or writes the comparison."""
    from lrbench.analysis.comparison import compare_rows, compare_runs
    from lrbench.reports.render import comparison as render
    from lrbench.results.directory import open_run

    output.check(args.output)
    if len(args.runs) > 2 or (len(args.runs) < 2 and not args.rows):
        count = len(args.runs)
        raise InputError(f"compare: {count} run{'' if count == 1 else 's'} given; give two, or one with --rows A B")
    first, second = open_run(args.runs[0]), open_run(args.runs[-1])
    comparison = compare_rows(first, second, tuple(args.rows)) if args.rows else compare_runs(first, second)
    output.emit(
        args,
        lambda: render.document(comparison),
        {"csv": lambda: render.csv(comparison), "json": lambda: render.as_json(comparison)},
    )
    return 0
