"""What the page about spectra and damage shows; no markup here."""

from __future__ import annotations

from dataclasses import dataclass

from lrbench.analysis.damage import SCOPES, DamagePrediction, OutcomeColumn, Scope
from lrbench.reports.render import damage as words
from lrbench.reports.render.number_format import clean


@dataclass(frozen=True)
class Found:
    """A correlation in words: `+0.71`, `+0.40 to +0.89`. `clear` where its interval lies on one side of zero."""

    rho: str
    interval: str
    clear: bool


@dataclass(frozen=True)
class Line:
    """A role, how many cells it has of how many different sets of weights, and a correlation for each figure."""

    role: str
    cells: int
    weights: int
    found: list[Found]


@dataclass(frozen=True)
class Table:
    """The correlations of one outcome."""

    heading: str
    heads: list[str]
    lines: list[Line]


@dataclass(frozen=True)
class Section:
    """One model, and one part of the documents where a run selects."""

    name: str
    cells: int
    answers: list[str]
    tables: list[Table]
    remarks: list[str]


def section(prediction: DamagePrediction) -> Section:
    """A prediction as the page shows it."""
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


def _table(prediction: DamagePrediction, outcome: OutcomeColumn, scope: Scope) -> Table:
    lines = []
    for role in prediction.roles:
        found = [
            prediction.correlation(outcome.column.name, scope, role, one.name) for one in prediction.predictors
        ]  # fmt: skip
        if any(one.rho is not None for one in found):
            split = [words.correlation(one).partition(" ") for one in found]
            shown = [Found(rho, rest, bool(one.sign)) for (rho, _, rest), one in zip(split, found, strict=True)]
            lines.append(
                Line(clean(role), max(one.cells for one in found), max(one.subjects for one in found), shown)
            )  # fmt: skip
    return Table(words.heading(outcome, scope), [one.heading for one in prediction.predictors], lines)
