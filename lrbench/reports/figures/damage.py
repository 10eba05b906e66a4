"""Damage against a predictor: one panel per role, one mark per cell."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrbench.reports.figures import altair, by_method, facets
from lrbench.reports.figures.ticks import LABEL, about_zero

#: The width of a panel, with its axis.
PANEL = 290
#: Damage that spans more than this many times its median is drawn on a symmetric logarithmic scale.
_SPAN = 40


@dataclass(frozen=True)
class DamagePoint:
    """One cell.

    Attributes:
        role: of the edited weights, one panel each.
        method, setting, edited: as in the leaderboard.
        figure: the predictor.
        damage: positive values are worse than the baseline.
    """

    role: str
    method: str
    setting: str
    edited: str
    figure: float
    damage: float


def chart(cells: Sequence[DamagePoint], figure: str, damage: str) -> Any:
    """The chart of at least one cell; `figure` and `damage` are the titles of the axes."""
    alt = altair()
    methods = list(dict.fromkeys(cell.method for cell in cells))
    sizes = sorted(abs(cell.damage) for cell in cells if cell.damage)
    scale, axis = alt.Scale(zero=True, padding=6), alt.Axis(tickCount=5, format="~g")
    if sizes and sizes[-1] > _SPAN * (middle := statistics.median(sizes)):
        low, high = min(cell.damage for cell in cells), max(cell.damage for cell in cells)
        ends = 1.4 * min(low, -middle), 1.4 * max(high, middle)
        scale = alt.Scale(type="symlog", constant=middle, domain=list(ends), nice=False)
        axis = alt.Axis(values=about_zero(*ends, middle), labelExpr=LABEL)
    across = alt.X(
        "figure:Q", title=figure, scale=alt.Scale(zero=False, padding=10), axis=alt.Axis(tickCount=5, format="~g")
    )
    upward: dict[str, Any] = {"title": damage, "scale": scale, "axis": axis}
    chosen, look = by_method(methods, opacity=(0.75, 0.08))
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("method", "setting", "edited")),
        alt.Tooltip("figure:Q", format=".4g", title=figure), alt.Tooltip("damage:Q", format="+.4g"),
    ]  # fmt: skip
    base = alt.Chart()
    once = base.transform_aggregate(count="count()")
    layers = alt.layer(
        once.mark_rule(style="reference").encode(y=alt.YDatum(0, **upward)),
        base.mark_point(filled=True, size=34)
        .encode(x=across, y=alt.Y("damage:Q", **upward), tooltip=tooltip, **look)
        .add_params(chosen),
    ).properties(width=PANEL - 80, height=170)  # fmt: skip
    faceted = facets(layers, "role", [asdict(cell) for cell in cells], columns=4)
    return faceted.resolve_axis(x="independent", y="independent")
