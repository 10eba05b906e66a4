"""`lrbench fetch SUITE... --to DIR`: puts all that suites need from the hub into a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lrbench.cli.execution import INTERRUPTED
from lrbench.cli.options import add_suite_options, fast_imports, read_suite
from lrbench.cli.output import say


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "fetch", help="put all that suites need from the hub into a folder, for machines without network",
        description="Fetches the models, tokenizers, adapters, data sets and metrics that suites need from the Hugging "
                    "Face hub into a folder. `lrbench run SUITE --offline DIR` then uses no network. What is there "
                    "already is kept; repeat the command to go on after an interruption.",
    )  # fmt: skip
    parser.add_argument("suite", metavar="SUITE", nargs="+", help="a suite file, or the name of a bundled suite")
    parser.add_argument("--to", type=Path, metavar="DIR", required=True, help="the folder; made if it is missing")
    parser.add_argument("--dry-run", action="store_true", help="show what is missing in DIR, and its size, and stop")
    add_suite_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetches; returns 1 if something is still missing at the end."""
    from lrbench.system.offline import filling

    suites = [read_suite(name, args) for name in args.suite]
    folder = args.to.expanduser().absolute()
    with filling(folder), fast_imports():  # the hub's libraries read their settings when they are imported
        from lrbench.run.fetch import fetch

    try:
        complete = fetch(
            suites, folder, _say, bars=sys.stderr.isatty(), dry_run=args.dry_run,
            trust_remote_code=args.trust_remote_code,
        )  # fmt: skip
    except KeyboardInterrupt:
        _say("lrbench: interrupted; repeat the command to go on")
        return INTERRUPTED
    if complete:
        say(f"{args.to} is complete; on the other machine: lrbench run SUITE --offline DIR")
    return int(not complete and not args.dry_run)


def _say(message: str) -> None:
    say(message, sys.stderr)
