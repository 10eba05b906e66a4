"""The data of the page about spectra and damage."""

from __future__ import annotations

from dataclasses import dataclass

from lrbench.analysis.damage import SCOPES, DamagePrediction, OutcomeColumn, Scope
from lrbench.reports.render import damage as words
from lrbench.reports.render.number_format import clean


@dataclass(frozen=True)
class CorrelationText:
    """A formatted correlation: `+0.71`, `+0.40 to +0.89`. `clear` if its interval excludes zero."""

    rho: str
    interval: str
    clear: bool


@dataclass(frozen=True)
class DamageRow:
    """A role, its numbers of cells and of different sets of weights, and one correlation per predictor."""

    role: str
    cells: int
    weights: int
    correlations: list[CorrelationText]


@dataclass(frozen=True)
class DamageTable:
    """The correlations of one outcome."""

    heading: str
    heads: list[str]
    lines: list[DamageRow]


@dataclass(frozen=True)
class Section:
    """One model, and one split of its documents."""

    name: str
    cells: int
    answers: list[str]
    tables: list[DamageTable]
    remarks: list[str]


def section(prediction: DamagePrediction) -> Section:
    """The page's section for a prediction."""
    outcomes = words.main(prediction)
    return Section(
        name=words.name(prediction),
        cells=len(prediction.cells),
        answers=[words.answer(prediction, outcome) for outcome in outcomes],
        tables=[
            _table(prediction, outcome, scope)
            for outcome in outcomes
            for scope in reversed(SCOPES)
            if words.known(prediction, outcome, scope)
        ],
        remarks=words.remarks(prediction),
    )


def _table(prediction: DamagePrediction, outcome: OutcomeColumn, scope: Scope) -> DamageTable:
    lines = []
    for role in prediction.roles:
        results = [
            prediction.correlation(outcome.column.name, scope, role, predictor.name)
            for predictor in prediction.predictors
        ]
        if any(result.rho is not None for result in results):
            parts = [words.correlation(result).partition(" ") for result in results]
            texts = [
                CorrelationText(rho, rest, bool(result.sign))
                for (rho, _, rest), result in zip(parts, results, strict=True)
            ]
            cells, weights = max(result.cells for result in results), max(result.subjects for result in results)
            lines.append(DamageRow(clean(role), cells, weights, texts))
    heads = [predictor.heading for predictor in prediction.predictors]
    return DamageTable(words.heading(outcome, scope), heads, lines)
