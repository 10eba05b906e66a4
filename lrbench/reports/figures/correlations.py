"""Rank correlations with intervals: one panel per outcome and predictor, one line per role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrbench.analysis.damage import SCOPES, DamagePrediction
from lrbench.reports.figures import altair, facets
from lrbench.reports.render import damage as words
from lrbench.reports.render.number_format import clean

#: The width of a panel, with its axis.
PANEL = 280
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Bar:
    """One correlation: a panel per figure and outcome, a line per role, a colour per scope.

    Attributes:
        low, high: the ends of the interval, or None.
        cells, weights: the numbers of cells and of different sets of edited weights.
    """

    figure: str
    outcome: str
    role: str
    scope: str
    rho: float
    low: float | None
    high: float | None
    cells: int
    weights: int


def bars(prediction: DamagePrediction, *, with_model: bool = False) -> list[Bar]:
    """The correlations of the main outcomes, for a chart."""
    result = []
    for outcome in words.main(prediction):
        for predictor in prediction.predictors:
            title = clean(outcome.title) + (f" ({words.name(prediction)})" if with_model else "")
            for role in prediction.roles:
                for scope in SCOPES:
                    correlation = prediction.correlation(outcome.column.name, scope, role, predictor.name)
                    if correlation.rho is not None:
                        low, high = correlation.interval or (None, None)
                        labels = (predictor.heading, title, clean(role), words.SCOPE_WORDS[scope])
                        result.append(Bar(*labels, correlation.rho, low, high, correlation.cells, correlation.subjects))
    return result


def chart(bars: Sequence[Bar]) -> Any:
    """The chart of at least one bar, with outcomes down and predictors across if they fit."""
    alt = altair()
    values = [
        {**asdict(bar), "panel": f"{bar.figure} → {bar.outcome}", "interval": _interval(bar.low, bar.high)}
        for bar in bars
    ]
    figures, roles, scopes = (
        list(dict.fromkeys(value[name] for value in values)) for name in ("figure", "role", "scope")
    )
    columns = len(figures) if len(figures) <= _MOST_COLUMNS else (len(figures) + 1) // 2
    # All layers declare the same axes, because Vega-Lite merges different ones.
    along: dict[str, Any] = {
        "title": "Spearman’s ρ with the damage", "scale": alt.Scale(domain=[-1, 1], nice=False),
        "axis": alt.Axis(values=[-1, -0.5, 0, 0.5, 1], labelExpr="datum.value ? format(datum.value, '+.1~f') : '0'"),
    }  # fmt: skip
    up = alt.Y("role:N", title=None, scale=alt.Scale(domain=roles, paddingInner=0.15), axis=alt.Axis(ticks=False))
    beside = alt.YOffset("scope:N", scale=alt.Scale(domain=scopes, paddingOuter=0.25))
    scale = alt.Scale(domain=scopes)
    legend = alt.Legend(orient="top", title=None, columns=2, labelLimit=270)
    colour, shape = alt.Color("scope:N", scale=scale, legend=legend), alt.Shape("scope:N", scale=scale, legend=legend)
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("figure", "outcome", "role", "scope")),
        alt.Tooltip("rho:Q", format="+.3f"),
        alt.Tooltip("interval:N"), alt.Tooltip("cells:Q"),
        alt.Tooltip("weights:Q", title="sets of weights"),
    ]  # fmt: skip
    base = alt.Chart()
    once = base.transform_aggregate(count="count()")  # draws the line once instead of once per record
    layers = alt.layer(
        once.mark_rule(style="reference").encode(x=alt.XDatum(0, **along)),
        base.transform_filter("datum.low !== null")
        .mark_rule(style="whisker")
        .encode(x=alt.X("low:Q", **along), x2="high:Q", y=up, yOffset=beside, color=colour),
        base.mark_point(filled=True, size=42, opacity=1).encode(
            x=alt.X("rho:Q", **along), y=up, yOffset=beside, color=colour, shape=shape, tooltip=tooltip
        ),
    ).properties(width=PANEL - 90, height={"step": 26, "for": "position"})  # fmt: skip
    faceted = facets(layers, "panel", values, columns)
    return faceted.resolve_axis(x="independent", y="independent")


def _interval(low: float | None, high: float | None) -> str:
    return "too few sets of weights" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
