"""What spectra say of damage, as a document, as CSV and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lrbench.analysis.damage import EVERY_ROLE, PREDICTORS, SCOPES, DamagePrediction, OutcomeColumn, Predictor, Scope
from lrbench.analysis.leaderboard import Leaderboard
from lrbench.analysis.scored_run import split_suffix
from lrbench.reports.render.document import Document, Heading, Part, Table, csv_text
from lrbench.reports.render.json import finite
from lrbench.reports.render.number_format import MISSING, clean, headings
from lrbench.stats import COVERAGE, MIN_CELLS, MIN_SUBJECTS, RankCorrelation

FEW = "†"
TITLE = "Does the spectrum predict the damage?"
SCOPE_WORDS: dict[Scope, str] = {
    "all settings": "over all methods and settings",
    "one setting": "among cells of one method and setting",
}


def document(predictions: Sequence[DamagePrediction]) -> Document:
    """Answers, and for each outcome a table of correlations by role; how they are to be read."""
    parts: list[Part] = []
    for prediction in predictions:
        parts.append(Heading(name(prediction)))
        for outcome in main(prediction):
            parts.append(answer(prediction, outcome))
            for scope in SCOPES:
                if known(prediction, outcome, scope):
                    parts += [f"{heading(outcome, scope)}:", table(prediction, outcome, scope)]
        parts += remarks(prediction)
    if not predictions:
        parts.append("No cell has both edited weights and a score beside the baseline's.")
    return Document(TITLE, [*parts, legend()])


def csv(predictions: Sequence[DamagePrediction]) -> str:
    """A line a correlation, of all outcomes; fields without a value are empty."""
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
    """`{"coverage", "predictors", "models"}`: each model with its `cells` and `correlations`, all outcomes of them."""
    data = {
        "coverage": COVERAGE,
        "predictors": [vars(one) for one in PREDICTORS],
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


# The parts, which the page of a site takes too.


def titles(board: Leaderboard) -> dict[str, str]:
    """What a leaderboard's columns are called, by their names: `facts (acc)`."""
    found = {}
    for column, (first, second) in headings(board).items():
        metric = second.removesuffix(" %").removesuffix(" ↓")
        found[column] = f"{first} ({metric})" if metric else first
    return found


def name(prediction: DamagePrediction) -> str:
    """The model, and the part of the documents."""
    return clean(prediction.model) + split_suffix(prediction.split)


def main(prediction: DamagePrediction) -> list[OutcomeColumn]:
    """The outcomes that are shown; the others stand in CSV and JSON."""
    return [outcome for outcome in prediction.outcomes if outcome.main]


def known(prediction: DamagePrediction, outcome: OutcomeColumn, scope: Scope) -> bool:
    """Whether any correlation is there to be shown."""
    return any(
        prediction.correlation(outcome.column.name, scope, role, one.name).rho is not None
        for role in prediction.roles
        for one in prediction.predictors
    )


def heading(outcome: OutcomeColumn, scope: Scope) -> str:
    """Of a table."""
    return f"Damage to {clean(outcome.title)}, {SCOPE_WORDS[scope]}"


def table(prediction: DamagePrediction, outcome: OutcomeColumn, scope: Scope) -> Table:
    """Roles down, predictors across."""
    predictors = prediction.predictors
    rows = []
    for role in prediction.roles:
        found = [prediction.correlation(outcome.column.name, scope, role, one.name) for one in predictors]
        cells, subjects = max((one.cells, one.subjects) for one in found)
        if any(one.rho is not None for one in found):
            rows.append([role, str(cells), str(subjects), *map(correlation, found)])
    headings = ["role", "cells", "sets of\nweights", *(one.heading.replace(" ", "\n", 1) for one in predictors)]
    return Table(headings, rows)


def correlation(found: RankCorrelation) -> str:
    """`+0.71 [+0.40, +0.89]`; `†` where there are too few sets of weights for an interval."""
    if found.rho is None:
        return MISSING
    if found.interval is None:
        return f"{_signed(found.rho)} {FEW if found.subjects < MIN_SUBJECTS else MISSING}"
    return f"{_signed(found.rho)} [{_signed(found.interval[0])}, {_signed(found.interval[1])}]"


def answer(prediction: DamagePrediction, outcome: OutcomeColumn) -> str:
    """In one sentence: of which roles the relative error tells which matrix hurts, at one method and setting."""
    roles = [role for role in prediction.roles if role in {cell.role for cell in prediction.cells}]
    scope: Scope = "one setting"
    found = {
        role: prediction.correlation(outcome.column.name, scope, role, "relative_error")
        for role in roles
    }  # fmt: skip
    told = {role: one for role, one in found.items() if one.interval is not None}
    what = clean(outcome.title)
    if not told:
        return (
            f"{what}: cannot be told. That takes cells of one method and setting with at least {MIN_SUBJECTS} "
            "different sets of edited weights in one role, as `mode: each` gives."
        )
    more = [role for role, one in told.items() if one.sign > 0]
    less = [role for role, one in told.items() if one.sign < 0]
    sentence = (
        f"{what}: at one method and setting, the matrices with the larger relative error are those whose edit hurts "
        f"more in {_of(more, len(told))}"
    )
    if less:
        sentence += f", those whose edit hurts less in {', '.join(map(clean, less))}"
    rest = len(told) - len(more) - len(less)
    sentence += f"; in {rest} the interval holds zero" if rest else ""
    if len(roles) > 1:
        whole = prediction.correlation(outcome.column.name, scope, EVERY_ROLE, "relative_error")
        sentence += f". Of all matrices together ρ is {correlation(whole)}"
    return f"{sentence}."


def remarks(prediction: DamagePrediction) -> list[str]:
    """What the numbers of this model lack, and why."""
    found = []
    cells = prediction.cells
    several = sum(len(cell.weights) > 1 for cell in cells)
    if several:
        found.append(
            f"{several} of {len(cells)} cells edit several matrices: of these, squared errors, energies and ranks are "
            "means weighted by the numbers in each matrix."
        )
    lacking = [one for one in PREDICTORS if one not in prediction.predictors]
    if any(one.name == "output_error" for one in lacking):
        found.append("No output error: no method was given statistics of activations.")
    if any(one.name == "stable_rank" for one in lacking):
        found.append(
            "No stable and effective ranks: the spectrum given does not hold these weights."
            if prediction.measured
            else "No stable and effective ranks: they take the spectrum of these very weights, `--spectrum FILE`."
        )
    found += [
        f"{one.heading.capitalize()}: known of {count} of {len(cells)} cells."
        for one in prediction.predictors
        if (count := sum(cell.figures[one.name] is not None for cell in cells)) < len(cells)
    ]
    if prediction.unpaired:
        found.append(f"{prediction.unpaired} cells have no baseline to be compared with and are left out.")
    return found


def legend(predictors: Sequence[Predictor] = PREDICTORS) -> str:
    """How the numbers are to be read."""
    meanings = "; ".join(f"{one.heading}: {one.meaning}" for one in predictors)
    return (
        "Damage: what a score lost, what a perplexity rose by, from the baseline; more is worse. Numbers: "
        f"Spearman's ρ over cells, with its {100 * COVERAGE:.0f} % interval over sets of edited weights, each for "
        "itself; "
        f"above zero, more of the figure goes with more damage. {FEW}: fewer than {MIN_SUBJECTS} different sets of "
        f"weights, which is too few for an interval; {MISSING}: fewer than {MIN_CELLS} cells, or all alike. "
        f"{meanings[0].upper()}{meanings[1:]}. What a method itself keeps, 1 − (relative error)² where Ŵ is an "
        "orthogonal projection of W, orders cells as the relative error does, the other way round, and is not listed."
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
