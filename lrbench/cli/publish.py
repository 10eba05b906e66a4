"""`lrbench publish RUN... --to DIR`: runs as a static site."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrbench.cli.output import say


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "publish", help="make a static site of runs: tables, figures, provenance, downloads",
        description="A directory of pages that need no server and no network: the leaderboard, figures, spectra, every "
        "row's provenance, downloads. It opens from a disk and can be served as it is, by GitHub Pages for example.",
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True,
        help="a directory that is not there, empty, or an earlier site, which is replaced",
    )  # fmt: skip
    parser.add_argument("--title", metavar="TEXT", help="over the leaderboard (default: the names of the suites)")
    parser.add_argument(
        "--spectrum", metavar="FILE", action="append", default=[], type=Path,
        help="what `lrbench spectrum MODEL --format json` wrote, can be given again (a RUN's spectrum.json is taken "
        "along without it)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the site and says where it is.

    Raises:
        InputError: a RUN or FILE cannot be read, Altair is missing, or DIR cannot be used.
    """
    from rich.console import Console

    from lrbench.reports.publish import publish
    from lrbench.results.directory import open_run

    console = Console(stderr=True)
    runs = [open_run(path) for path in args.runs]
    with console.status("publishing") as status:
        done = publish(
            runs, args.to, title=args.title, spectra=args.spectrum, progress=lambda what: status.update(what)
        )
    say(f"{done.index} ({done.rows} rows, {done.figures} figures, {done.files} files)")
    return 0
