"""Damage predictions as a document, as CSV and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lrbench.analysis.damage import EVERY_ROLE, PREDICTORS, SCOPES, DamagePrediction, OutcomeColumn, Predictor, Scope
from lrbench.analysis.leaderboard import Leaderboard
from lrbench.analysis.scored_run import split_suffix
from lrbench.reports.render.document import Heading, Part, Table, TextReport, csv_text
from lrbench.reports.render.json import finite
from lrbench.reports.render.number_format import MISSING, clean, headings
from lrbench.stats import COVERAGE, MIN_CELLS, MIN_SUBJECTS, RankCorrelation

FEW = "†"
TITLE = "Does the spectrum predict the damage?"
SCOPE_WORDS: dict[Scope, str] = {
    "all settings": "over all methods and settings",
    "one setting": "among cells of one method and setting",
}


def document(predictions: Sequence[DamagePrediction]) -> TextReport:
    """Answers, a table of correlations by role for each outcome, and a legend."""
    parts: list[Part] = []
    for prediction in predictions:
        parts.append(Heading(name(prediction)))
        for outcome in main(prediction):
            parts.append(answer(prediction, outcome))
            for scope in SCOPES:
                if lines := results(prediction, outcome, scope):
                    parts += [f"{heading(outcome, scope)}:", _table(prediction, lines)]
        parts += remarks(prediction)
    if not predictions:
        parts.append("No cell has edited weights, a score and a baseline to compare with.")
    return TextReport(TITLE, [*parts, legend()])


def csv(predictions: Sequence[DamagePrediction]) -> str:
    """One line per correlation of all outcomes; missing values are empty."""
    header = ["model", "split", "outcome", "scope", "role", "predictor", "rho", "low", "high", "cells", "subjects"]
    return csv_text(
        header,
        (
            [
                p.model, p.split, c.outcome, c.scope, c.role, c.predictor, c.result.rho,
                *(c.result.interval or (None, None)), c.result.cells, c.result.subjects,
            ]
            for p in predictions for c in p.correlations
        ),
    )  # fmt: skip


def as_json(predictions: Sequence[DamagePrediction]) -> str:
    """`{"coverage", "predictors", "models"}`; each model has its `outcomes`, `cells` and `correlations`."""
    data = {
        "coverage": COVERAGE,
        "predictors": [vars(predictor) for predictor in PREDICTORS],
        "models": [
            {
                "model": p.model, "split": p.split,
                "outcomes": [
                    {"name": o.column.name, "title": o.title, "better": o.column.better, "main": o.main}
                    for o in p.outcomes
                ],
                "correlations": [
                    {"outcome": c.outcome, "scope": c.scope, "role": c.role, "predictor": c.predictor, **vars(c.result)}
                    for c in p.correlations
                ],
                "cells": [
                    {"cell": c.entry.row.cell, "run": c.entry.run, "method": c.method, "setting": c.setting,
                     "mode": c.entry.row.mode, "role": c.role, "weights": list(c.weights), **c.figures,
                     "damage": c.damage}
                    for c in p.cells
                ],
            }
            for p in predictions
        ],
    }  # fmt: skip
    return json.dumps(finite(data), indent=2, allow_nan=False, ensure_ascii=True) + "\n"


# Parts shared with the site's page.


def titles(board: Leaderboard) -> dict[str, str]:
    """Column -> displayed title: `facts (acc)`."""
    result = {}
    for column, (first, second) in headings(board).items():
        metric = second.removesuffix(" %").removesuffix(" ↓")
        result[column] = f"{first} ({metric})" if metric else first
    return result


def name(prediction: DamagePrediction) -> str:
    """The model's name, with the documents' split."""
    return clean(prediction.model) + split_suffix(prediction.split)


def main(prediction: DamagePrediction) -> list[OutcomeColumn]:
    """The displayed outcomes; CSV and JSON contain all."""
    return [outcome for outcome in prediction.outcomes if outcome.main]


def heading(outcome: OutcomeColumn, scope: Scope) -> str:
    """The heading of a table."""
    return f"Damage to {clean(outcome.title)}, {SCOPE_WORDS[scope]}"


def results(
    prediction: DamagePrediction, outcome: OutcomeColumn, scope: Scope
) -> list[tuple[str, int, int, list[RankCorrelation]]]:
    """(role, cells, sets of weights, a correlation per predictor) of the roles with a defined correlation."""
    lines = []
    for role in prediction.roles:
        correlations = [prediction.correlation(outcome.column.name, scope, role, p.name) for p in prediction.predictors]
        if any(result.rho is not None for result in correlations):
            lines.append(
                (role, max(r.cells for r in correlations), max(r.subjects for r in correlations), correlations)
            )
    return lines


def _table(prediction: DamagePrediction, lines: Sequence[tuple[str, int, int, list[RankCorrelation]]]) -> Table:
    """Roles down, predictors across."""
    rows = [[role, str(cells), str(subjects), *map(correlation, of_role)] for role, cells, subjects, of_role in lines]
    predictors = [predictor.heading.replace(" ", "\n", 1) for predictor in prediction.predictors]
    return Table(["role", "cells", "sets of\nweights", *predictors], rows)


def correlation(result: RankCorrelation) -> str:
    """`+0.71 [+0.40, +0.89]`; `†` with too few sets of weights for an interval."""
    if result.rho is None:
        return MISSING
    if result.interval is None:
        return f"{_signed(result.rho)} {FEW if result.subjects < MIN_SUBJECTS else MISSING}"
    return f"{_signed(result.rho)} [{_signed(result.interval[0])}, {_signed(result.interval[1])}]"


def answer(prediction: DamagePrediction, outcome: OutcomeColumn) -> str:
    """One sentence: the roles in which the relative error predicts the damage at one method and setting."""
    roles = [role for role in prediction.roles if role in {cell.role for cell in prediction.cells}]
    scope: Scope = "one setting"
    results = {
        role: prediction.correlation(outcome.column.name, scope, role, "relative_error")
        for role in roles
    }  # fmt: skip
    with_interval = {role: result for role, result in results.items() if result.interval is not None}
    title = clean(outcome.title)
    if not with_interval:
        return (
            f"{title}: undecided. This requires cells of one method and setting with at least {MIN_SUBJECTS} "
            "different sets of edited weights in one role, as `mode: each` gives."
        )
    more = [role for role, result in with_interval.items() if result.sign > 0]
    less = [role for role, result in with_interval.items() if result.sign < 0]
    sentence = (
        f"{title}: at one method and setting, matrices with larger relative errors cause more damage in "
        f"{_of(more, len(with_interval))}"
    )
    if less:
        sentence += f", and less damage in {', '.join(map(clean, less))}"
    rest = len(with_interval) - len(more) - len(less)
    sentence += f"; in {rest} the interval contains zero" if rest else ""
    if len(roles) > 1:
        whole = prediction.correlation(outcome.column.name, scope, EVERY_ROLE, "relative_error")
        sentence += f". Over all matrices ρ is {correlation(whole)}"
    return f"{sentence}."


def remarks(prediction: DamagePrediction) -> list[str]:
    """Limitations of this model's correlations."""
    notes = []
    cells = prediction.cells
    several = sum(len(cell.weights) > 1 for cell in cells)
    if several:
        notes.append(
            f"{several} of {len(cells)} cells edit several matrices: their squared errors, energies and ranks are "
            "means weighted by parameters."
        )
    missing = [predictor for predictor in PREDICTORS if predictor not in prediction.predictors]
    if any(predictor.name == "output_error" for predictor in missing):
        notes.append("No output error: no method used statistics of activations.")
    if any(predictor.name == "stable_rank" for predictor in missing):
        notes.append(
            "No stable and effective ranks: the given spectrum does not contain these weights."
            if prediction.measured
            else "No stable and effective ranks: they require the spectrum of these weights, `--spectrum FILE`."
        )
    notes += [
        f"{predictor.heading.capitalize()}: known for {count} of {len(cells)} cells."
        for predictor in prediction.predictors
        if (count := sum(cell.figures[predictor.name] is not None for cell in cells)) < len(cells)
    ]
    if prediction.unpaired:
        notes.append(f"{prediction.unpaired} cells have no baseline to compare with and are left out.")
    return notes


def legend(predictors: Sequence[Predictor] = PREDICTORS) -> str:
    """The legend of the tables."""
    meanings = "; ".join(f"{predictor.heading}: {predictor.meaning}" for predictor in predictors)
    return (
        "Damage: the loss of a score or the rise of a perplexity relative to the baseline; more is worse. Values: "
        f"Spearman's ρ over cells, with its {100 * COVERAGE:.0f} % interval over sets of edited weights, uncorrected; "
        f"positive: larger figures go with more damage. {FEW}: fewer than {MIN_SUBJECTS} different sets of weights, "
        f"too few for an interval; {MISSING}: fewer than {MIN_CELLS} cells, or all equal. "
        f"{meanings[0].upper()}{meanings[1:]}. The energy that a method keeps, 1 − (relative error)² for orthogonal "
        "projections, orders cells like the relative error, reversed, and is not listed."
    )


def _signed(value: float) -> str:
    text = f"{abs(value):.2f}"
    return "0.00" if text == "0.00" else f"{'+' if value > 0 else '−'}{text}"


def _of(roles: Sequence[str], count: int) -> str:
    if not roles:
        return f"none of {count} roles" if count > 1 else "not one role"
    if len(roles) == count and count > 1:
        return f"all {count} roles"
    return f"{len(roles)} of {count} {'role' if count == 1 else 'roles'} ({', '.join(map(clean, roles))})"
