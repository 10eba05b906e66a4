"""The figures of a leaderboard, a spectrum and a damage prediction, with titles and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lrbench.analysis.damage import DamagePrediction
from lrbench.analysis.edit_summary import describe
from lrbench.analysis.leaderboard import Column, Entry, Leaderboard
from lrbench.analysis.score import Measurement
from lrbench.analysis.scored_run import split_suffix
from lrbench.analysis.screening_accuracy import ScreenedCell
from lrbench.analysis.spectrum_file import SpectrumRecord
from lrbench.analysis.table import by_model_and_split
from lrbench.reports.figures import correlations, damage, errors, heat, keep, layers, screening, theme, times, vector
from lrbench.reports.publish.names import Names
from lrbench.reports.render import damage as words
from lrbench.reports.render.number_format import clean, headings
from lrbench.results.rows import Row
from lrbench.stats import COVERAGE, spearman
from lrbench.suite.roles import role_order


@dataclass(frozen=True, repr=False)
class Figure:
    """One figure.

    Attributes:
        key: the anchor, and the name of the files.
        model: the model's name.
        title: on the page and in the files.
        caption: the description; also the text alternative.
        panel: the width of one panel in points, with its axis, for the page's layout.
    """

    key: str
    model: str
    title: str
    caption: str
    chart: Any
    panel: int

    @cached_property
    def specification(self) -> dict[str, Any]:
        """The Vega-Lite specification without a theme."""
        whole: dict[str, Any] = self.chart.to_dict()
        return {name: part for name, part in whole.items() if name != "config"}

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The figure with its title, as `svg` and `pdf`."""
        return vector(theme.dressed(self.specification, self.title, self.model))

    def _repr_svg_(self) -> str:
        return self.files["svg"].decode()

    def __repr__(self) -> str:
        return f"Figure({self.title!r}, {self.model!r})"


def of_board(board: Leaderboard, names: Names) -> list[Figure]:
    """All figures with data of a leaderboard, by model and split."""
    drawn: list[Figure] = []
    for (label, split), entries in by_model_and_split(board.entries).items():
        model = label + split_suffix(split)
        drawn += _keep(board, entries, model, names)
        drawn += _heat(board, entries, model, names)
        drawn += _errors(entries, model, names)
        drawn += _times(entries, model, names)
    return drawn


def of_screening(cells: Sequence[ScreenedCell], names: Names) -> list[Figure]:
    """Predicted against measured changes, by model."""
    drawn = []
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model]
        if len(of_model) < 2:
            continue
        correlations = []
        for choice in dict.fromkeys(cell.choice for cell in of_model):
            of_choice = [cell for cell in of_model if cell.choice == choice]
            rank = spearman(
                [cell.predicted for cell in of_choice], [cell.measured for cell in of_choice],
                [cell.weights for cell in of_choice],
            )  # fmt: skip
            if rank.rho is not None:
                span = f" ({rank.interval[0]:+.2f} to {rank.interval[1]:+.2f})" if rank.interval else ""
                correlations.append(f"{clean(choice)} {rank.rho:+.2f}{span}")
        caption = (
            "Each mark is an edited model that was screened and then scored on validation documents; on the dotted "
            f"line the prediction is exact. Spearman’s ρ: {', '.join(correlations) or 'not defined'}. Cells that were "
            "screened out were not scored and are missing here."
        )
        title = "Screening: predicted against measured"
        key, chart = names(f"screening-{model}"), screening.chart(of_model)
        drawn.append(Figure(key, clean(model), title, caption, chart, screening.PANEL))
    return drawn


def of_prediction(prediction: DamagePrediction, names: Names) -> list[Figure]:
    """Correlations by role, and the damage against the relative error for each main outcome."""
    model, drawn = words.name(prediction), []
    bars = correlations.bars(prediction)
    if bars:
        caption = (
            f"Spearman’s ρ over the cells of a role. Whiskers: {100 * COVERAGE:.0f} % intervals over sets of edited "
            "weights, each for itself; none where they are too few. Right of the dotted line, more of the figure goes "
            "with more damage."
        )
        key = names(f"correlations-{model}")
        title = "Rank correlation with the damage"
        drawn.append(Figure(key, model, title, caption, correlations.chart(bars), correlations.PANEL))
    for outcome in words.main(prediction):
        scale = 100.0 if outcome.column.kind == "share" else 1.0
        cells = [
            damage.DamagePoint(
                clean(cell.role), clean(cell.method), clean(cell.setting), _word(cell.entry, "edited"),
                error, scale * cell.damage[outcome.column.name],
            )
            for cell in sorted(prediction.cells, key=lambda cell: role_order(cell.role))
            if (error := cell.figures["relative_error"]) is not None and outcome.column.name in cell.damage
        ]  # fmt: skip
        if len(cells) < 2:
            continue
        title = f"Damage against error: {clean(outcome.title)}"
        caption = "Each mark is an edited model; above the dotted line it is worse than the baseline."
        chart = damage.chart(cells, "relative error ‖W − Ŵ‖ / ‖W‖", outcome.unit)
        key = names(f"damage-{outcome.column.name}-{model}")
        drawn.append(Figure(key, model, title, caption, chart, damage.PANEL))
    return drawn


def of_spectrum(spectrum: SpectrumRecord, names: Names) -> list[Figure]:
    """Effective rank and energy by layer."""
    drawn = []
    for key, title, axis in (
        ("effective_rank_share", "Effective rank by layer", "of full rank"),
        ("energy_20", "Energy in the first 20 % of the singular values", "of the energy"),
    ):
        weights = [
            layers.LayerPoint(clean(slot.role or "other"), slot.layer, trained, random, clean(slot.weight))
            for slot in spectrum.slots
            if slot.layer is not None
            and (trained := slot.values.get(key)) is not None
            and (random := slot.random.get(key)) is not None
        ]  # fmt: skip
        if weights:
            weights.sort(key=lambda weight: role_order(weight.role))
            drawn.append(
                Figure(
                    names(f"{key.replace('_', '-')}-{spectrum.model}"),
                    clean(spectrum.model),
                    title,
                    "Solid: the trained weights. Dashed: a random Gaussian matrix of the same shape.",
                    layers.chart(weights, axis),
                    layers.PANEL + 75,
                )
            )
    return drawn


def measures(board: Leaderboard) -> list[tuple[Column, str]]:
    """The drawn scores with their titles: the overall score, then the tasks'."""
    titles = headings(board)
    score = [column for column in board.columns if column.name == "score" and not column.detail]
    tasks = [column for column in board.columns if column.task and not column.subtask]
    return [(column, " · ".join(part for part in titles[column.name] if part)) for column in (*score, *tasks)]


def _keep(board: Leaderboard, entries: Sequence[Entry], model: str, names: Names) -> list[Figure]:
    points = []
    fields: dict[Any, str] = {}
    for column, title in measures(board):
        scale = 100.0 if column.kind == "share" else 1.0
        for entry in entries:
            value, kept = entry.values[column.name], entry.values["keep_model"]
            if not isinstance(value, Measurement) or not isinstance(kept, float) or not _finite(value.value):
                continue
            error = value.stderr * scale if value.stderr is not None and _finite(value.stderr) else None
            number = value.value * scale
            points.append(
                keep.Point(
                    panel=title,
                    method=_word(entry, "method"),
                    setting=_word(entry, "setting"),
                    edited=_word(entry, "edited"),
                    keep=kept,
                    value=number,
                    low=None if error is None else number - error,
                    high=None if error is None else number + error,
                    better=column.better or "higher",
                    field=fields.setdefault((column.name, entry.scored_on.get(column.name)), f"f{len(fields)}"),
                    baseline=entry.baseline,
                )
            )
    drawn = []
    for better, name in (
        ("higher", "Accuracy"),
        ("lower", "Perplexity"),
    ):
        of_kind = [point for point in points if point.better == better]
        if all(point.baseline for point in of_kind):
            continue
        title = f"{name} against stored parameters"
        caption = (
            "Each point is an edited model, with one standard error to either side"
            f"{' (of the logarithm)' if keep.is_logarithmic(of_kind) else ''}. The stepped line joins the "
            "Pareto-optimal points: no other is at least as small and as good, and better in one. The dotted line is "
            "the baseline."
        )
        key = names(f"keep-{model}" if better == "higher" else f"keep-{name.lower()}-{model}")
        drawn.append(Figure(key, clean(model), title, caption, keep.chart(of_kind), keep.PANEL + 70))
    return drawn


def _heat(board: Leaderboard, entries: Sequence[Entry], model: str, names: Names) -> list[Figure]:
    drawn = []
    for column, title in measures(board):
        changes = []
        scale = 100.0 if column.kind == "share" else 1.0
        for entry in entries:
            value, place = entry.values[column.name], _one_layer(entry.row)
            if place is None or not isinstance(value, Measurement) or value.delta is None or not _finite(value.delta):
                continue
            changes.append(
                heat.Change(
                    _word(entry, "method"), _word(entry, "setting"), *place, value.delta * scale, value.significant
                )
            )
        if len({change.layer for change in changes}) < 2:
            continue
        changes.sort(key=lambda change: role_order(change.weights))
        unit = f"{title}: change from the baseline"
        caption = (
            "Each square is one layer's weights edited alone. Orange is worse than the baseline, blue better; "
            "a dot marks differences of which chance is an unlikely cause. The colours end at the 98th percentile."
        )
        chart = heat.chart(changes, unit, column.better or "higher")
        key = names(f"heat-{column.name}-{model}")
        drawn.append(
            Figure(key, clean(model), f"Change by layer and role: {title}", caption, chart, heat.width(changes) + 110)
        )
    return drawn


def _errors(entries: Sequence[Entry], model: str, names: Names) -> list[Figure]:
    cells = []
    for entry in entries:
        kept, error, ratio = (entry.values[name] for name in ("keep", "error", "optimum"))
        if not entry.baseline and isinstance(kept, float) and isinstance(error, float) and _finite(error):
            best = ratio if isinstance(ratio, float) and _finite(ratio) else None
            cells.append(errors.CellError(_word(entry, "method"), _word(entry, "setting"), kept, error, best))
    if not cells:
        return []
    caption = (
        "Left, how far the reduced weights are from the originals, after rounding; right, that over the least error "
        "that any matrix of the same rank has, so that 1 is the truncated SVD. Whiskers span the cells of a point."
    )
    key = names(f"error-{model}")
    return [Figure(key, clean(model), "Error of the weights", caption, errors.chart(cells), errors.PANEL + 70)]


def _times(entries: Sequence[Entry], model: str, names: Names) -> list[Figure]:
    cells = []
    for entry in entries:
        seconds = entry.values["decompose"]
        if not entry.baseline and isinstance(seconds, float) and 0 < seconds < float("inf"):
            cells.append(
                times.CellTime(_word(entry, "method"), _word(entry, "setting"), _word(entry, "edited"), seconds)
            )
    if not cells:
        return []
    caption = "A tick for each edited model, a diamond at the method's median. Calibration and evaluation are apart."
    key = names(f"time-{model}")
    return [Figure(key, clean(model), "Decomposition time", caption, times.chart(cells), times.PANEL + 130)]


def _one_layer(row: Row) -> tuple[int, str] | None:
    """The single layer that a row edited, and the roles; None for several layers, none, or a composition of edits."""
    if row.mode == "greedy":
        return None
    edited = {edit.layer for edit in row.edits}
    if len(edited) != 1:
        return None
    layer = next(iter(edited))
    words = describe(row.edits).removesuffix(f" ({len(row.edits)})")
    return None if layer is None else (layer, clean(words.removeprefix(f"L{layer} ")))


def _word(entry: Entry, name: str) -> str:
    return clean(str(entry.values[name]))


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
