"""Heat maps of the change of a score by layer and role: one panel per method and setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrbench.reports.figures import altair, facets

#: The colour scale ends at this quantile of the absolute changes, so that one broken cell does not dominate it.
QUANTILE = 0.98
#: The total width of adjacent panels.
WIDTH = 1100


@dataclass(frozen=True)
class Change:
    """The change caused by editing one kind of weight in one layer.

    Attributes:
        method, setting: the panel.
        layer: the decoder block, from 0.
        weights: the roles, as text.
        delta: edited minus baseline, in the score's unit.
        significant: whether the change is significant; None if unknown.
    """

    method: str
    setting: str
    layer: int
    weights: str
    delta: float
    significant: bool | None = None


def limit(changes: Sequence[Change]) -> float:
    """The absolute change at which the colour scale ends; positive."""
    sizes = sorted(abs(change.delta) for change in changes)
    return sizes[min(len(sizes) - 1, math.ceil(QUANTILE * len(sizes)) - 1)] or sizes[-1] or 1.0


def width(changes: Sequence[Change]) -> int:
    """The width of a panel in points, without its axes."""
    layers = max(change.layer for change in changes) + 1
    return layers * _step(layers)


def _step(layers: int) -> int:
    return max(9, min(36, 430 // layers))


def chart(changes: Sequence[Change], unit: str, better: str = "higher") -> Any:
    """The chart of at least one change.

    Args:
        unit: the score and its unit, for the legend.
        better: `higher` or `lower`; worse values are orange.
    """
    alt = altair()
    most = limit(changes)
    values = [
        {**asdict(change), "panel": ", ".join(filter(None, (change.method, change.setting)))} for change in changes
    ]
    roles = list(dict.fromkeys(change.weights for change in changes))
    layers = list(range(max(change.layer for change in changes) + 1))
    colour = alt.Color(
        "delta:Q",
        title=unit,
        scale=alt.Scale(
            domain=[-most, most], domainMid=0, clamp=True, interpolate="rgb", range="diverging",
            reverse=better == "lower", nice=False,
        ),
        legend=alt.Legend(
            orient="top", gradientLength=220, gradientThickness=12, titleLimit=500,
            labelExpr="datum.value ? format(datum.value, '+.3~g') : '0'",
        ),
    )  # fmt: skip
    step = _step(len(layers))
    every = max(1, len(layers) // 16)
    across = alt.X(
        "layer:O", title="layer", scale=alt.Scale(domain=layers),
        axis=alt.Axis(labelAngle=0, values=layers[::every], ticks=False),
    )  # fmt: skip
    up = alt.Y("weights:N", title=None, scale=alt.Scale(domain=roles), axis=alt.Axis(ticks=False))
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("method", "setting", "weights")), alt.Tooltip("layer:O"),
        alt.Tooltip("delta:Q", format="+.4g", title="change"), alt.Tooltip("significant:N"),
    ]  # fmt: skip
    base = alt.Chart()
    cells = base.mark_rect(strokeWidth=0).encode(x=across, y=up, color=colour, tooltip=tooltip)
    dots = (
        base.transform_filter("datum.significant === true")
        .mark_point(style="mark", filled=True, size=9, shape="circle")
        .encode(x=across, y=up, tooltip=tooltip)
    )
    layered = alt.layer(cells, dots).properties(width={"step": step}, height={"step": max(16, min(24, step + 4))})
    faceted = facets(layered, "panel", values, columns=max(1, WIDTH // (width(changes) + 110)))
    return faceted.resolve_axis(x="independent", y="independent")
