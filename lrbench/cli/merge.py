"""`lrbench merge RUN... --out DIR`: shards of one suite become one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrbench.cli.output import say


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the verb to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "merge",
        help="make one run of the shards of a suite",
        description="Puts the rows, samples and environments of several runs of one suite into one run directory, "
        "which `lrbench leaderboard` and `lrbench run --out` take. Two rows of a cell with other scores are an error.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the run directory to make")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Merges, and says what there is now.

    Raises:
        InputError: the runs cannot be one run; nothing is written then.
    """
    from lrbench.results.merge import merge

    say(merge(args.runs, args.out).summary())
    return 0
