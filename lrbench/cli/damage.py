"""`lrbench damage RUN...`: do spectral figures of the edited weights predict the damage of the edits?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.cli import output
from lrbench.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrbench.analysis.spectrum_file import SpectrumRecord
    from lrbench.results.directory import RunDirectory


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "damage", help="correlate the damage of cells with the spectra of their weights",
        description="Spearman correlations, by role, of each cell's spectral figures (relative error, output error, "
        "energy kept, stable and effective rank) with its damage to accuracy and perplexity. Computed from the rows "
        "of any run.",
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory (it holds rows.jsonl)")
    parser.add_argument(
        "--spectrum", metavar="FILE", action="append", default=[], type=Path,
        help="a file of `lrbench spectrum MODEL --format json`, for stable and effective ranks (repeatable; a RUN's "
        "spectrum.json is included automatically)",
    )  # fmt: skip
    output.add_options(parser)
    parser.add_argument(
        "--figure", metavar="FILE", type=Path, help="the correlations, as .svg, .png, .pdf or .html (offline)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints or writes the correlations."""
    from lrbench.analysis.damage import predictions, weight_hashes
    from lrbench.analysis.leaderboard import build
    from lrbench.analysis.spectrum_file import read_all
    from lrbench.reports import figures
    from lrbench.reports.render import damage as render
    from lrbench.results.directory import open_run

    output.check(args.output)
    if args.figure is not None:
        output.check(args.figure, "--figure")
        figures.check(args.figure)
    paths = {path.resolve(): path for path in reversed(args.runs)}
    runs = [open_run(path) for path in reversed(paths.values())]
    hashes = weight_hashes(runs)
    _check_weights(read_all(args.spectrum, ()), runs, set(hashes.values()))
    board = build(runs)
    all_predictions = predictions(board, render.titles(board), read_all(args.spectrum, runs), hashes)
    if args.figure is not None:
        from lrbench.reports.figures import correlations, theme

        bars = [
            bar
            for prediction in all_predictions
            for bar in correlations.bars(prediction, with_model=len(all_predictions) > 1)
        ]
        if not bars:
            raise InputError("--figure: there is no correlation to draw; see the table for the reason")
        subtitle = ", ".join(map(render.name, all_predictions)) if len(all_predictions) == 1 else ""
        dressed = theme.dressed(correlations.chart(bars).to_dict(), render.TITLE, subtitle)
        figures.save(figures.altair().Chart.from_dict(dressed), args.figure)
    output.emit(
        args,
        lambda: render.document(all_predictions),
        {"csv": lambda: render.csv(all_predictions), "json": lambda: render.as_json(all_predictions)},
    )
    return 0


def _check_weights(spectra: Sequence[SpectrumRecord], runs: Sequence[RunDirectory], known: set[str | None]) -> None:
    for spectrum in spectra:
        if spectrum.weight_hash not in known:
            raise InputError(
                f"--spectrum: the file is of {spectrum.model} with the weights {spectrum.weight_hash[:12]}, which "
                f"{'no RUN has' if len(runs) > 1 else f'{runs[0].path} does not have'}; create it again from the "
                "model of the run, in the same dtype"
            )
