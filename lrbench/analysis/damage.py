"""Correlates the damage of cells with predictors from the singular values of their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lrbench.analysis.edit_summary import describe, optimal_error
from lrbench.analysis.score import Measurement
from lrbench.analysis.scored_run import Split
from lrbench.analysis.spectrum_file import SlotRecord, SpectrumRecord
from lrbench.analysis.table import Column, Entry, Leaderboard, by_model_and_split
from lrbench.results.directory import RunDirectory
from lrbench.results.manifest import parse
from lrbench.results.rows import Edit, Row
from lrbench.stats import RankCorrelation, spearman
from lrbench.suite.roles import role_order

EVERY_ROLE = "all cells"
#: Cells are compared across all methods and settings, or only within one method and setting.
Scope = Literal["all settings", "one setting"]
SCOPES: tuple[Scope, ...] = ("all settings", "one setting")


@dataclass(frozen=True)
class Predictor:
    """A figure that may predict the damage of an edit.

    Attributes:
        name: for JSON and CSV.
        heading: of a table's column.
        meaning: the definition.
    """

    name: str
    heading: str
    meaning: str


PREDICTORS = (
    Predictor("relative_error", "relative error", "‖W − Ŵ‖ / ‖W‖, after rounding"),
    Predictor("output_error", "output error", "‖(W − Ŵ) H^½‖ / ‖W H^½‖, H = E[x xᵀ] of the calibration text"),
    Predictor(
        "energy_kept", "energy kept",
        "the fraction of Σσ² in the first k singular values, k the edit's rank: 1 minus the squared optimal error",
    ),
    Predictor("stable_rank", "stable rank", "‖W‖² / σ₁² of the original weight, of min(m, n)"),
    Predictor("effective_rank", "effective rank", "exp of the entropy of σ / Σσ of the original weight, of min(m, n)"),
)  # fmt: skip


@dataclass(frozen=True)
class OutcomeColumn:
    """A column of scores that an edit can damage.

    Attributes:
        column: of the leaderboard.
        title: the displayed name.
        main: whether it is shown by default: the overall score, and perplexities.
    """

    column: Column
    title: str
    main: bool

    @property
    def unit(self) -> str:
        """The unit of the damage: percentage points, or the change of the value."""
        if self.column.kind == "share":
            return "points lost"
        return "rise" if self.column.better == "lower" else "fall"


@dataclass(frozen=True)
class CellDamage:
    """One cell with its predictors and its damage.

    Attributes:
        entry: the cell's leaderboard entry.
        role: of the edited weights, or a description such as `mlp` or `attn, mlp`.
        weights: the edited weights; cells with the same weights are not independent.
        figures: by the names of `PREDICTORS`; None if unknown.
        damage: by the names of outcome columns; positive values are worse than the baseline.
    """

    entry: Entry
    role: str
    weights: tuple[str, ...]
    figures: Mapping[str, float | None]
    damage: Mapping[str, float]

    @property
    def method(self) -> str:
        """As in the leaderboard."""
        return str(self.entry.values["method"])

    @property
    def setting(self) -> str:
        """As in the leaderboard."""
        return str(self.entry.values["setting"])


@dataclass(frozen=True)
class Correlation:
    """The rank correlation of a predictor with the damage over the cells of a role."""

    outcome: str
    scope: Scope
    role: str
    predictor: str
    result: RankCorrelation


@dataclass(frozen=True)
class DamagePrediction:
    """The correlations of predictors and damage over one model's cells.

    Attributes:
        model: its label.
        split: the documents' split, in a run that selects.
        outcomes: the measured columns.
        cells: cells with a known difference from the baseline.
        correlations: ordered by outcome, scope, role and predictor.
        unpaired: the number of scored cells without a baseline.
        measured: whether a spectrum of the same weights is available.
    """

    model: str
    split: Split
    outcomes: Sequence[OutcomeColumn]
    cells: Sequence[CellDamage]
    correlations: Sequence[Correlation] = field(default_factory=tuple)
    unpaired: int = 0
    measured: bool = False

    @property
    def roles(self) -> list[str]:
        """The cells' roles in their usual order; `EVERY_ROLE` last if there are several."""
        roles = sorted({cell.role for cell in self.cells}, key=role_order)
        return [*roles, EVERY_ROLE] if len(roles) > 1 else roles

    @property
    def predictors(self) -> list[Predictor]:
        """The predictors known for at least one cell."""
        return [p for p in PREDICTORS if any(cell.figures[p.name] is not None for cell in self.cells)]

    def members(self, role: str) -> list[CellDamage]:
        """The cells of a role."""
        return [cell for cell in self.cells if role in (EVERY_ROLE, cell.role)]

    def correlation(self, outcome: str, scope: Scope, role: str, predictor: str) -> RankCorrelation:
        """The correlation of one outcome, scope, role and predictor."""
        wanted = (outcome, scope, role, predictor)
        return next(c.result for c in self.correlations if (c.outcome, c.scope, c.role, c.predictor) == wanted)


def predictions(
    board: Leaderboard,
    titles: Mapping[str, str],
    spectra: Iterable[SpectrumRecord] = (),
    hashes: Mapping[str, str | None] | None = None,
) -> list[DamagePrediction]:
    """One prediction for each model with edited cells and each split of its documents.

    Args:
        board: the scores of the cells and their differences from the baselines.
        titles: column -> displayed name.
        spectra: sources of stable and effective ranks, joined by the hash of the weights.
        hashes: cell -> hash of the original weights, see `weight_hashes`.
    """
    known = {spectrum.weight_hash: {slot.weight: slot for slot in spectrum.slots} for spectrum in spectra}
    hashes = hashes or {}
    edited = [entry for entry in board.entries if not entry.baseline and entry.row.edits]
    result = []
    for (model, split), entries in by_model_and_split(edited).items():
        outcomes = _outcomes(board, entries, titles)
        slots = [known.get(hashes.get(entry.row.cell) or "", {}) for entry in entries]
        cells = [_cell(entry, outcomes, of_model) for entry, of_model in zip(entries, slots, strict=True)]
        with_damage = [cell for cell in cells if cell.damage]
        prediction = DamagePrediction(
            model, split, outcomes, with_damage, unpaired=len(cells) - len(with_damage), measured=any(map(bool, slots))
        )
        result.append(_correlated(prediction))
    return result


def weight_hashes(runs: Iterable[RunDirectory]) -> dict[str, str | None]:
    """Cell -> hash of the original weights; None if the manifest does not contain it.

    Raises:
        InputError: a file of a run cannot be read.
    """
    hashes: dict[str, str | None] = {}
    for run in runs:
        models = parse(run.manifest()).models if run.manifest_file.is_file() else []
        of_model = {model.label: model.weight_hash for model in models}
        hashes |= {cell: of_model.get(row.model) for cell, row in run.rows().items()}
    return hashes


def _outcomes(board: Leaderboard, entries: Sequence[Entry], titles: Mapping[str, str]) -> list[OutcomeColumn]:
    score = [column for column in board.columns if column.name == "score" and not column.detail]
    tasks = [column for column in board.columns if column.task and not column.subtask]
    outcomes = []
    for column in (*score, *tasks):
        covered = column.kind == "share" and any(overall.kind == "share" for overall in score)
        main = column.name == "score" or not covered
        if any(_damage(entry, column) is not None for entry in entries):
            outcomes.append(OutcomeColumn(column, titles.get(column.name, column.name), main))
    return outcomes


def _damage(entry: Entry, column: Column) -> float | None:
    value = entry.values[column.name]
    if not isinstance(value, Measurement) or value.delta is None or not math.isfinite(value.delta):
        return None
    # Rounding makes equal accuracies tie; no damage is 0.0, not -0.0.
    delta = round(value.delta, 12)
    return delta if column.better == "lower" or not delta else -delta


def _cell(entry: Entry, outcomes: Sequence[OutcomeColumn], slots: Mapping[str, SlotRecord]) -> CellDamage:
    rows = (entry.row, *entry.repeats)
    damage = {outcome.column.name: _damage(entry, outcome.column) for outcome in outcomes}
    figures = {
        "relative_error": _known(entry.values["error"]),
        "output_error": _mean([_output_error(row.edits) for row in rows]),
        "energy_kept": _mean([_energy_kept(row.edits) for row in rows]),
        # The model's spectrum does not describe a reduced update.
        "stable_rank": None if entry.row.delta else _of_full_rank(entry.row, slots, "stable_rank"),
        "effective_rank": None if entry.row.delta else _of_full_rank(entry.row, slots, "effective_rank"),
    }
    return CellDamage(
        entry=entry,
        role=_role(entry.row.edits),
        weights=tuple(sorted(edit.weight for edit in entry.row.edits)),
        figures=figures,
        damage={name: value for name, value in damage.items() if value is not None},
    )


def _role(edits: Sequence[Edit]) -> str:
    roles = {edit.role or "other": edit for edit in edits}
    if len(roles) == 1:
        return next(iter(roles))
    one_layer = [edit.model_copy(update={"layer": 0}) for role, edit in roles.items() if role != "other"]
    words = describe(one_layer).removesuffix(f" ({len(one_layer)})").removeprefix("L0 ")
    return f"{words}, other" if "other" in roles else words


def _output_error(edits: Sequence[Edit]) -> float | None:
    """The root mean square over the edits, weighted by parameters; None unless all edits have an output error."""
    errors = [(edit.output_error, math.prod(edit.shape)) for edit in edits]
    mean = _weighted([(None if error is None else error**2, size) for error, size in errors])
    return None if mean is None else math.sqrt(mean)


def _energy_kept(edits: Sequence[Edit]) -> float | None:
    error = optimal_error(edits)
    return None if error is None or not math.isfinite(error) else 1 - error**2


def _of_full_rank(row: Row, slots: Mapping[str, SlotRecord], figure: str) -> float | None:
    """A rank over min(m, n), as the mean over a row's edits; None unless all weights have the figure."""
    if any(edit.weight not in slots for edit in row.edits):
        return None
    measured = [(edit, slots[edit.weight]) for edit in row.edits]
    ranks = [(slot.values.get(figure), min(slot.shape), math.prod(edit.shape)) for edit, slot in measured]
    return _weighted([(None if rank is None else rank / full, size) for rank, full, size in ranks])


def _weighted(values: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, size) for value, size in values if value is not None and math.isfinite(value)]
    total = sum(size for _, size in known)
    if len(known) < len(values) or not total:
        return None
    return math.fsum(value * size for value, size in known) / total


def _mean(values: Sequence[float | None]) -> float | None:
    return _weighted([(value, 1) for value in values])


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _correlated(prediction: DamagePrediction) -> DamagePrediction:
    correlations = [
        Correlation(outcome.column.name, scope, role, predictor.name, _correlation(members, outcome, scope, predictor))
        for outcome in prediction.outcomes
        for scope in SCOPES
        for role in prediction.roles
        for members in [prediction.members(role)]
        for predictor in PREDICTORS
    ]
    return DamagePrediction(**{**vars(prediction), "correlations": tuple(correlations)})


def _correlation(
    cells: Sequence[CellDamage], outcome: OutcomeColumn, scope: Scope, predictor: Predictor
) -> RankCorrelation:
    name = outcome.column.name
    both = [
        (figure, cell.damage[name], cell)
        for cell in cells
        if name in cell.damage and (figure := cell.figures[predictor.name]) is not None
    ]
    strata = [(cell.entry.row.mode, cell.method, cell.setting) if scope == "one setting" else () for *_, cell in both]
    return spearman(
        [figure for figure, *_ in both], [damage for _, damage, _ in both], [cell.weights for *_, cell in both], strata
    )
