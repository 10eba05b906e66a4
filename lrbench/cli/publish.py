"""`lrbench publish RUN... --to DIR`: publishes runs as a static site."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrbench.cli.output import say


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "publish", help="publish runs as a static site: tables, figures, provenance, downloads",
        description="Writes pages that need no server and no network: the leaderboard, figures, spectra, every row's "
        "provenance, downloads. The site opens from disk and can be served by GitHub Pages, for example.",
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True,
        help="a new or empty directory, or an earlier site, which is replaced",
    )  # fmt: skip
    parser.add_argument("--title", metavar="TEXT", help="the site's title (default: the names of the suites)")
    parser.add_argument(
        "--spectrum", metavar="FILE", action="append", default=[], type=Path,
        help="a file of `lrbench spectrum MODEL --format json` (repeatable; a RUN's spectrum.json is included "
        "automatically)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the site and prints its path."""
    from rich.console import Console

    from lrbench.reports.publish import publish
    from lrbench.results.directory import open_run

    console = Console(stderr=True)
    runs = [open_run(path) for path in args.runs]
    with console.status("publishing") as status:
        done = publish(
            runs, args.to, title=args.title, spectra=args.spectrum, progress=lambda stage: status.update(stage)
        )
    say(f"{done.index} ({done.rows} rows, {done.figures} figures, {done.files} files)")
    return 0
