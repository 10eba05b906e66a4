"""Does the spectrum predict the damage? What cells lost, beside what the singular values of their weights would say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lrbench.analysis.edit_summary import describe, optimal_error
from lrbench.analysis.score import Measured
from lrbench.analysis.scored_run import Split, first_class, split_of
from lrbench.analysis.table import Column, Entry, Leaderboard
from lrbench.results.directory import RunDirectory
from lrbench.results.manifest import parse
from lrbench.results.rows import Edit, Row
from lrbench.stats import RankCorrelation, spearman
from lrbench.suite.roles import ROLES

EVERY_ROLE = "all cells"
#: Cells are compared over all methods and settings, or only with those of their own.
Scope = Literal["all settings", "one setting"]
SCOPES: tuple[Scope, ...] = ("all settings", "one setting")


@dataclass(frozen=True)
class Predictor:
    """A figure that may say how much an edit hurts.

    Attributes:
        name: for JSON and CSV.
        heading: over a column.
        meaning: what it is, in a sentence.
    """

    name: str
    heading: str
    meaning: str


PREDICTORS = (
    Predictor("relative_error", "relative error", "‖W − Ŵ‖ / ‖W‖, after rounding"),
    Predictor("output_error", "output error", "‖(W − Ŵ) H^½‖ / ‖W H^½‖, H = E[x xᵀ] of the calibration text"),
    Predictor(
        "energy_kept", "energy kept",
        "the share of Σσ² in the first k singular values, k the edit's rank: one less the square of the least error",
    ),
    Predictor("stable_rank", "stable rank", "‖W‖² / σ₁² of the original weight, of min(m, n)"),
    Predictor("effective_rank", "effective rank", "exp of the entropy of σ / Σσ of the original weight, of min(m, n)"),
)  # fmt: skip


class Slot(Protocol):
    """A weight of a spectrum that was written to a file."""

    @property
    def weight(self) -> str:
        """Its parameter's name."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def values(self) -> Mapping[str, float | None]:
        """Figures of its singular values by name, `stable_rank` and `effective_rank` among them."""


class OfModel(Protocol):
    """A spectrum that was written to a file."""

    @property
    def weight_hash(self) -> str:
        """Of the model that was measured."""

    @property
    def slots(self) -> Sequence[Any]:
        """`Slot`s."""


@dataclass(frozen=True)
class Outcome:
    """What an edit can damage.

    Attributes:
        column: of the leaderboard.
        title: in words.
        main: whether it stands for others too: the one score of a row, and perplexities.
    """

    column: Column
    title: str
    main: bool

    @property
    def unit(self) -> str:
        """Of the damage: points of percent lost, or what the value rose by."""
        if self.column.kind == "share":
            return "points lost"
        return "rise" if self.column.better == "lower" else "fall"


@dataclass(frozen=True)
class Cell:
    """One cell with its figures and its damage.

    Attributes:
        entry: its line of the leaderboard.
        role: of the edited weights; several in words, `mlp`, `attn, mlp`.
        weights: the edited ones: cells with the same ones are not independent of one another.
        figures: by the names of `PREDICTORS`; None where one is not known.
        damage: by the names of outcomes' columns: how much worse than the baseline. Above zero is damage.
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
    """How well a figure orders the cells of a role by their damage."""

    outcome: str
    scope: Scope
    role: str
    predictor: str
    found: RankCorrelation


@dataclass(frozen=True)
class Prediction:
    """One model's cells, and what their spectra say of their damage.

    Attributes:
        model: its label.
        split: the part of the documents, where a run selects.
        outcomes: what was measured.
        cells: those that have any damage.
        correlations: in the order of outcomes, scopes, roles and predictors.
        unpaired: scored cells without a baseline to compare them with.
        measured: whether a spectrum of these very weights was given.
    """

    model: str
    split: Split
    outcomes: Sequence[Outcome]
    cells: Sequence[Cell]
    correlations: Sequence[Correlation] = field(default_factory=tuple)
    unpaired: int = 0
    measured: bool = False

    @property
    def roles(self) -> list[str]:
        """With cells, in their usual order; `EVERY_ROLE` last where they are several."""
        found = sorted({cell.role for cell in self.cells}, key=_place)
        return [*found, EVERY_ROLE] if len(found) > 1 else found

    @property
    def predictors(self) -> list[Predictor]:
        """Those that some cell has."""
        return [one for one in PREDICTORS if any(cell.figures[one.name] is not None for cell in self.cells)]

    def members(self, role: str) -> list[Cell]:
        """The cells of a role."""
        return [cell for cell in self.cells if role in (EVERY_ROLE, cell.role)]

    def correlation(self, outcome: str, scope: Scope, role: str, predictor: str) -> RankCorrelation:
        """One of them."""
        wanted = (outcome, scope, role, predictor)
        return next(c.found for c in self.correlations if (c.outcome, c.scope, c.role, c.predictor) == wanted)


def predictions(
    board: Leaderboard,
    titles: Mapping[str, str],
    spectra: Iterable[OfModel] = (),
    hashes: Mapping[str, str | None] | None = None,
) -> list[Prediction]:
    """A prediction for each model of a leaderboard that has edited cells, and each part of its documents.

    Args:
        board: with the scores of the cells, and their differences from the baselines.
        titles: what its columns are called.
        spectra: of the models, to know stable and effective ranks from. They are joined by the hash of the weights.
        hashes: cell -> hash of the original weights, see `weight_hashes`.
    """
    known = {spectrum.weight_hash: {slot.weight: slot for slot in spectrum.slots} for spectrum in spectra}
    hashes = hashes or {}
    groups: dict[tuple[str, Split], list[Entry]] = {}
    for entry in board.entries:
        if not entry.baseline and entry.row.edits:
            groups.setdefault((entry.row.model, split_of(entry.row)), []).append(entry)
    models = list(dict.fromkeys(model for model, _ in groups))
    ordered = sorted(groups.items(), key=lambda part: (models.index(part[0][0]), not first_class(part[1][0].row)))
    found = []
    for (model, split), entries in ordered:
        outcomes = _outcomes(board, entries, titles)
        slots = [known.get(hashes.get(entry.row.cell) or "", {}) for entry in entries]
        cells = [_cell(entry, outcomes, of_model) for entry, of_model in zip(entries, slots, strict=True)]
        whole = [cell for cell in cells if cell.damage]
        prediction = Prediction(
            model, split, outcomes, whole, unpaired=len(cells) - len(whole), measured=any(map(bool, slots))
        )
        found.append(_correlated(prediction))
    return found


def weight_hashes(runs: Iterable[RunDirectory]) -> dict[str, str | None]:
    """Cell -> the hash of its original weights; None where the manifest does not tell.

    Raises:
        InputError: a file of a run cannot be read.
    """
    found: dict[str, str | None] = {}
    for run in runs:
        models = parse(run.manifest()).models if run.manifest_file.is_file() else []
        of_model = {model.label: model.weight_hash for model in models}
        found |= {cell: of_model.get(row.model) for cell, row in run.rows().items()}
    return found


def _outcomes(board: Leaderboard, entries: Sequence[Entry], titles: Mapping[str, str]) -> list[Outcome]:
    score = [column for column in board.columns if column.name == "score" and not column.detail]
    tasks = [column for column in board.columns if column.task and not column.subtask]
    found = []
    for column in (*score, *tasks):
        stands_in = column.kind == "share" and any(one.kind == "share" for one in score)
        main = column.name == "score" or not stands_in
        if any(_damage(entry, column) is not None for entry in entries):
            found.append(Outcome(column, titles.get(column.name, column.name), main))
    return found


def _damage(entry: Entry, column: Column) -> float | None:
    value = entry.values[column.name]
    if not isinstance(value, Measured) or value.delta is None or not math.isfinite(value.delta):
        return None
    # Equal numbers of right answers are a tie, whatever the last digits of their means; no loss is 0.0, not -0.0.
    delta = round(value.delta, 12)
    return delta if column.better == "lower" or not delta else -delta


def _cell(entry: Entry, outcomes: Sequence[Outcome], slots: Mapping[str, Slot]) -> Cell:
    rows = (entry.row, *entry.repeats)
    damage = {one.column.name: _damage(entry, one.column) for one in outcomes}
    figures = {
        "relative_error": _known(entry.values["error"]),
        "output_error": _mean([_output_error(row.edits) for row in rows]),
        "energy_kept": _mean([_energy_kept(row.edits) for row in rows]),
        # What is reduced is then an update, which the spectrum of the model says nothing of.
        "stable_rank": None if entry.row.delta else _of_slots(entry.row, slots, _stable),
        "effective_rank": None if entry.row.delta else _of_slots(entry.row, slots, _effective),
    }
    return Cell(
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
    alike = [edit.model_copy(update={"layer": 0}) for role, edit in roles.items() if role != "other"]
    words = describe(alike).removesuffix(f" ({len(alike)})").removeprefix("L0 ")
    return f"{words}, other" if "other" in roles else words


def _output_error(edits: Sequence[Edit]) -> float | None:
    """The root mean square over the edits, weighted by the numbers in each; None unless all have one."""
    errors = [(edit.output_error, math.prod(edit.shape)) for edit in edits]
    return _weighted([(None if error is None else error**2, size) for error, size in errors], math.sqrt)


def _energy_kept(edits: Sequence[Edit]) -> float | None:
    error = optimal_error(edits)
    return None if error is None or not math.isfinite(error) else 1 - error**2


def _stable(slot: Slot) -> float | None:
    rank = slot.values.get("stable_rank")
    return None if rank is None else rank / min(slot.shape)


def _effective(slot: Slot) -> float | None:
    rank = slot.values.get("effective_rank")
    return None if rank is None else rank / min(slot.shape)


def _of_slots(row: Row, slots: Mapping[str, Slot], figure: Callable[[Slot], float | None]) -> float | None:
    """The mean over a row's edits, weighted by the numbers in each; None unless all have the figure."""
    if any(edit.weight not in slots for edit in row.edits):
        return None
    return _weighted([(figure(slots[edit.weight]), math.prod(edit.shape)) for edit in row.edits])


def _weighted(
    values: Sequence[tuple[float | None, int]], then: Callable[[float], float] = lambda mean: mean
) -> float | None:
    known = [(value, size) for value, size in values if value is not None and math.isfinite(value)]
    total = sum(size for _, size in known)
    if len(known) < len(values) or not total:
        return None
    return then(math.fsum(value * size for value, size in known) / total)


def _mean(values: Sequence[float | None]) -> float | None:
    return _weighted([(value, 1) for value in values])


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _correlated(prediction: Prediction) -> Prediction:
    found = [
        Correlation(outcome.column.name, scope, role, predictor.name, _correlation(members, outcome, scope, predictor))
        for outcome in prediction.outcomes
        for scope in SCOPES
        for role in prediction.roles
        for members in [prediction.members(role)]
        for predictor in PREDICTORS
    ]
    return Prediction(**{**vars(prediction), "correlations": tuple(found)})


def _correlation(cells: Sequence[Cell], outcome: Outcome, scope: Scope, predictor: Predictor) -> RankCorrelation:
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


def _place(role: str) -> tuple[int, str]:
    return (ROLES.index(role) if role in ROLES else len(ROLES), role)
