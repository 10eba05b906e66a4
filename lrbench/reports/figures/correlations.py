"""Rank correlations with their intervals: a panel for each outcome and figure, a line for each role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrbench.analysis.damage import SCOPES, DamagePrediction
from lrbench.reports.figures import altair
from lrbench.reports.render import damage as words
from lrbench.reports.render.number_format import clean

#: The width of a panel, with its axis.
PANEL = 280
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Bar:
    """One correlation.

    Attributes:
        figure, outcome: a panel each pair.
        role: of the cells, a line each.
        scope: which cells are compared with one another; a colour each.
        rho: the correlation.
        low, high: the ends of its interval; None where it has none.
        cells, weights: how many cells, and of how many different sets of edited weights.
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
    """The correlations of the outcomes that are shown, for a chart."""
    found = []
    for outcome in words.main(prediction):
        for predictor in prediction.predictors:
            what = clean(outcome.title) + (f" ({words.name(prediction)})" if with_model else "")
            for role in prediction.roles:
                for scope in SCOPES:
                    one = prediction.correlation(outcome.column.name, scope, role, predictor.name)
                    if one.rho is not None:
                        low, high = one.interval or (None, None)
                        of = (predictor.heading, what, clean(role), words.SCOPE_WORDS[scope])
                        found.append(Bar(*of, one.rho, low, high, one.cells, one.subjects))
    return found


def chart(bars: Sequence[Bar]) -> Any:
    """The chart, outcomes down and figures across where these fit beside one another.

    Args:
        bars: not empty.

    Raises:
        InputError: Altair is not installed.
    """
    alt = altair()
    values = [
        {**asdict(bar), "panel": f"{bar.figure} → {bar.outcome}", "interval": _interval(bar.low, bar.high)}
        for bar in bars
    ]
    figures, panels, roles, scopes = (
        list(dict.fromkeys(value[name] for value in values)) for name in ("figure", "panel", "role", "scope")
    )
    columns = len(figures) if len(figures) <= _MOST_COLUMNS else (len(figures) + 1) // 2
    # Every layer says the same of its axes: where they differ, Vega-Lite mixes them.
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
    once = base.transform_aggregate(count="count()")  # else a line is drawn for every record
    layers = alt.layer(
        once.mark_rule(style="reference").encode(x=alt.XDatum(0, **along)),
        base.transform_filter("datum.low !== null")
        .mark_rule(style="whisker")
        .encode(x=alt.X("low:Q", **along), x2="high:Q", y=up, yOffset=beside, color=colour),
        base.mark_point(filled=True, size=42, opacity=1).encode(
            x=alt.X("rho:Q", **along), y=up, yOffset=beside, color=colour, shape=shape, tooltip=tooltip
        ),
    ).properties(width=PANEL - 90, height={"step": 26, "for": "position"})  # fmt: skip
    facet = alt.Facet("panel:N", sort=panels, title=None)
    faceted = layers.facet(facet=facet, columns=columns, data=alt.InlineData(values=values))
    return faceted.resolve_axis(x="independent", y="independent")


def _interval(low: float | None, high: float | None) -> str:
    return "too few sets of weights" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
