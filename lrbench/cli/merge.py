"""`lrbench merge RUN... --out DIR`: merges shards of one suite into one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrbench.cli.output import say


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "merge", help="merge the shards of a suite into one run",
        description="Merges the rows, samples and environments of several runs of one suite into one run directory "
        "for `lrbench leaderboard` and `lrbench run --out`. Different scores of the same cell are an error.",
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the run directory to create")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merges the runs and prints a summary."""
    from lrbench.results.merge import merge

    say(merge(args.runs, args.out).summary())
    return 0
