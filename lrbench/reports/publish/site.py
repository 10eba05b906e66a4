"""Builds the site's files and writes them with `publish`."""

from __future__ import annotations

import functools
import importlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench._version import __version__
from lrbench.analysis.damage import predictions, weight_hashes
from lrbench.analysis.leaderboard import Entry, Leaderboard, build, run_names
from lrbench.analysis.score import Measurement
from lrbench.analysis.screening_accuracy import screened_cells
from lrbench.analysis.spectrum_file import SpectrumRecord, read_all
from lrbench.errors import InputError
from lrbench.reports import figures
from lrbench.reports.figures import theme
from lrbench.reports.publish import charts, files, pages, provenance, tables
from lrbench.reports.publish.names import Names
from lrbench.reports.render import FORMATS, renderer
from lrbench.reports.render import damage as damage_words
from lrbench.reports.render.number_format import clean
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row, Score
from lrbench.system.environment import in_words

#: Format -> suffix of its file, where they differ.
_SUFFIXES = {"markdown": "md", "latex": "tex"}
_SYSTEM_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Published:
    """The published site: its index and its counts."""

    index: Path
    rows: int
    figures: int
    files: int


def publish(
    runs: Sequence[RunDirectory],
    to: Path,
    *,
    title: str | None = None,
    spectra: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Published:
    """Writes a site.

    The same runs give the same bytes, except for PDFs. A `spectrum.json` in a run's directory is included.

    Args:
        runs: at least one.
        to: a new or empty directory, or a site written by this function.
        title: the site's title; default: the names of the suites.
        spectra: files written by `lrbench spectrum --format json`.
        progress: called with the name of each stage.

    Raises:
        InputError: a file of a run or a spectrum cannot be read, Altair is missing, or `to` cannot be used.
    """
    figures.altair()
    files.check(to)
    all_spectra = read_all(spectra, runs)
    progress("leaderboard")
    reported = build(runs)
    choosing = build(runs, validation=True) if reported.waiting else None
    site = _Site(runs, reported, choosing, all_spectra, title, progress, len(spectra))
    files.put(site.files, to)
    return Published(to / "index.html", site.rows, len(site.figures), len(site.files))


class _Site:
    def __init__(
        self,
        runs: Sequence[RunDirectory],
        reported: Leaderboard,
        choosing: Leaderboard | None,
        spectra: Sequence[SpectrumRecord],
        title: str | None,
        progress: Callable[[str], None],
        options: int,
    ) -> None:
        self.files: dict[str, bytes] = {".nojekyll": b""}
        self.figures: list[charts.Figure] = []
        self._reported, self._choosing = reported, choosing
        board = self._board = reported if choosing is None else reported.joined(choosing)
        self._screened_cells = screened_cells(runs)
        keys = Names()
        named = dict(zip(runs, _run_names(runs), strict=True))
        self._runs = [provenance.Run.of(run, name, keys(name)) for run, name in named.items()]
        self._rows = Names()
        self.rows = sum(len(run.rows) for run in self._runs)
        command = ["lrbench publish", *(shlex.quote(clean(run.name)) for run in self._runs), "--to DIR"]
        command += [f"--title {shlex.quote(clean(title))}"] if title else []
        command += ["--spectrum FILE"] * options
        progress("damage")
        all_predictions = predictions(board, damage_words.titles(board), spectra, weight_hashes(runs))
        self._predictions = [prediction for prediction in all_predictions if prediction.outcomes]
        self._common = {
            "title": clean(title) if title else ", ".join(_suites(self._runs)),
            "version": __version__,
            "command": " ".join(command),
            "has_spectra": bool(spectra),
            "has_damage": bool(self._predictions),
        }
        for name in pages.ASSETS:
            self.files[f"assets/{name}"] = pages.asset(name)
        self._downloads: dict[str, list[tuple[str, str, str]]] = {}
        self._tables()
        self._run_files()
        progress("figures")
        self._index()
        self._figure_pages(spectra)
        progress("rows")
        self._row_pages()
        self._page("runs.html", "runs.html", runs=self._runs, provenance=provenance, row_page=self._row_page)
        self._page("downloads.html", "downloads.html", groups=self._downloads.items())

    def _page(self, name: str, template: str, **values: Any) -> None:
        self.files[name] = pages.render(template, name.count("/"), page=name, **self._common, **values)

    def _offer(self, heading: str, name: str, description: str, content: bytes) -> None:
        """A file to download, listed under a heading."""
        self.files[f"downloads/{name}"] = content
        self._downloads.setdefault(heading, []).append((f"downloads/{name}", description, _size(len(content))))

    def _tables(self) -> None:
        descriptions = {
            "csv": "every metric in full precision, one line a row (CSV)",
            "json": "every metric in full precision (JSON)",
            "markdown": "the table for people (Markdown)",
            "latex": "a booktabs table (LaTeX)",
            "html": "a single self-contained table (HTML)",
        }
        for form in filter(descriptions.get, FORMATS):
            text = renderer(form)(self._reported)
            name = f"leaderboard.{_SUFFIXES.get(form, form)}"
            self._offer("Leaderboard", name, descriptions[form], text.encode("utf-8", "replace"))
        if self._choosing is None:
            return
        for form in ("csv", "json"):
            text = renderer(form)(self._choosing)
            description = f"all cells on the documents that they were chosen on ({form.upper()})"
            self._offer("Leaderboard", f"validation.{form}", description, text.encode("utf-8", "replace"))

    def _run_files(self) -> None:
        for run in self._runs:
            heading = f"Run {clean(run.name)}"
            if run.suite:
                description = "the suite with all defaults written out: lrbench run takes it"
                self._offer(heading, f"suite-{run.key}.yaml", description, run.suite.encode("utf-8", "replace"))
            lines = (json.loads(row.model_dump_json(by_alias=True)) for row in run.rows.values())
            rows = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)  # all of it ASCII
            self._offer(heading, f"rows-{run.key}.jsonl", "the rows, a line each", rows.encode("utf-8", "replace"))
            if run.manifest:
                text = json.dumps(run.manifest, indent=2, ensure_ascii=True) + "\n"
                self._offer(heading, f"manifest-{run.key}.json", "hashes, engine, tasks", text.encode())

    def _index(self) -> None:
        models = Names()
        page = tables.page(self._board, self._row_page, lambda model: models(f"model-{model}"), self._reported)
        environments = {
            key: _words(entry) for run in self._runs for key, entry in run.environments.items() if _used(run, key)
        }
        counts = {status: sum(run.counts[status] for run in self._runs) for status in ("ok", "failed", "skipped")}
        self._page("index.html", "index.html", board=page, environments=environments, counts=counts, runs=self._runs)

    def _figure_pages(self, spectra: Sequence[SpectrumRecord]) -> None:
        names = Names()
        of_board = [*charts.of_board(self._board, names), *charts.of_screening(self._screened_cells, names)]
        of_damage = [(prediction, charts.of_prediction(prediction, names)) for prediction in self._predictions]
        of_spectra = [(spectrum, charts.of_spectrum(spectrum, names)) for spectrum in spectra]
        others = [figure for _, drawn in (*of_damage, *of_spectra) for figure in drawn]
        self.figures = [*of_board, *others]
        if self.figures:
            self.files["assets/vega.js"] = _vega()
        for figure in self.figures:
            for form, content in figure.files.items():
                description = f"{figure.title}, {figure.model} ({form.upper()})"
                self._offer("Figures", f"figures/{figure.key}.{form}", description, content)
        themes = {
            name: theme.config(dark=name == "dark", font=_SYSTEM_FONT, ground="transparent")
            for name in ("light", "dark")
        }
        self._page("figures.html", "figures.html", figures=[_shown(figure) for figure in of_board], looks=themes)
        if of_damage:
            damaged = [(prediction, [_shown(figure) for figure in drawn]) for prediction, drawn in of_damage]
            self._page("damage.html", "damage.html", sections=damaged, looks=themes, words=damage_words)
            for form, description, text in (
                ("csv", "every correlation, a line each (CSV)", damage_words.csv(self._predictions)),
                (
                    "json",
                    "the same with every cell's figures and damage (JSON)",
                    damage_words.as_json(self._predictions),
                ),
            ):
                self._offer("Spectra and damage", f"damage.{form}", description, text.encode("utf-8", "replace"))
        if spectra:
            sections = [(spectrum, [_shown(figure) for figure in drawn]) for spectrum, drawn in of_spectra]
            keys = Names()
            for spectrum in spectra:
                name = f"spectrum-{keys(spectrum.model, spectrum.model, spectrum.weight_hash)}.json"
                self._offer("Spectra and damage", name, f"spectrum of {clean(spectrum.model)}", spectrum.text.encode())
            self._page("spectrum.html", "spectrum.html", sections=sections, looks=themes, words=_words)

    def _row_page(self, run: str, cell: str) -> str:
        return f"rows/{self._rows(cell, run, cell)}.html"

    def _row_pages(self) -> None:
        entries = {(entry.run, entry.row.cell): entry for entry in self._board.entries if not entry.repeats}
        seeds = {
            (entry.run, row.cell): (entry.row, *entry.repeats)
            for entry in self._board.entries
            for row in (entry.row, *entry.repeats)
        }
        for run in self._runs:
            for row in run.rows.values():
                entry = entries.get((run.name, row.cell))
                others = [other for other in seeds.get((run.name, row.cell), ()) if other.cell != row.cell]
                environment, model = run.environments.get(row.environment, {}), run.model(row.model)
                self._page(
                    self._row_page(run.name, row.cell), "row.html", run=run, row=row, scores=_scores(row, entry),
                    facts=provenance.row_facts(row), params=provenance.facts(row.params),
                    reducer=provenance.facts(run.reducer(row)), environment=provenance.facts(environment),
                    model=provenance.model_facts(model), tasks=provenance.task_facts(model),
                    source=provenance.as_json(row),
                    seeds=[(str(other.seed), self._row_page(run.name, other.cell)) for other in others],
                )  # fmt: skip


def _shown(figure: charts.Figure) -> dict[str, Any]:
    """A figure for a template, without a theme, which the page applies."""
    return {
        **{name: getattr(figure, name) for name in ("key", "model", "title", "caption")},
        "specification": {**figure.specification, "usermeta": {"panel": figure.panel}},
    }


def _scores(row: Row, entry: Entry | None) -> list[tuple[str, str, Score, Measurement | None]]:
    """(task, metric, score, its difference from the baseline where known) of a row."""
    measured = entry.metrics if entry is not None and row.reducer is not None else {}
    return [
        (task, metric, score, measured.get(task, {}).get(metric))
        for task, metrics in row.scores.items()
        for metric, score in metrics.items()
    ]


@functools.cache
def _vega() -> bytes:
    """Vega, Vega-Lite and vega-embed as one script, in the charts' version."""
    snippet = "window.vegaEmbed = vegaEmbed;"
    text: str = importlib.import_module("vl_convert").javascript_bundle(snippet, vl_version=figures.version())
    return text.encode()


def _words(entry: Mapping[str, Any]) -> str:
    try:
        return clean(in_words(dict(entry)))
    except (KeyError, TypeError):
        return "an environment that this version of lrbench cannot read"


def _used(run: provenance.Run, environment: str) -> bool:
    return any(row.environment == environment for row in run.rows.values())


def _suites(runs: Sequence[provenance.Run]) -> list[str]:
    return list(dict.fromkeys(clean(row.suite) for run in runs for row in run.rows.values())) or ["an empty run"]


def _run_names(runs: Sequence[RunDirectory]) -> list[str]:
    """The runs' names as in the leaderboard. Raises InputError if a run is given twice."""
    paths = [run.path.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path} is given twice")
    return run_names(runs)


def _size(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1000:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
