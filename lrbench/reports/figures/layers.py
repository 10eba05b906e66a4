"""A figure of the singular values by layer, for trained and random matrices: one panel per role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrbench.reports.figures import altair, facets

PANEL = 290


@dataclass(frozen=True)
class LayerPoint:
    """One weight's figure.

    Attributes:
        role: one panel each.
        layer: the decoder block.
        trained, random: fractions, of the weight and of a Gaussian matrix of the same shape.
        weight: the parameter's name.
    """

    role: str
    layer: int
    trained: float
    random: float
    weight: str


def chart(weights: Sequence[LayerPoint], title: str) -> Any:
    """The chart of at least one weight; `title` is that of the axis."""
    alt = altair()
    whole = alt.Axis(format="d", tickMinStep=1)
    across = alt.X("layer:Q", title="layer", axis=whole, scale=alt.Scale(nice=False, padding=8))
    percent = alt.Axis(format=".0%")
    tooltip = [
        alt.Tooltip("weight:N"), alt.Tooltip("layer:O"), alt.Tooltip("trained:Q", format=".1%"),
        alt.Tooltip("random:Q", format=".1%"),
    ]  # fmt: skip
    base = alt.Chart()
    up = alt.Y("trained:Q", title=title, axis=percent, scale=alt.Scale(domain=[0, 1]))
    chance = alt.Y("random:Q", title=title, axis=percent, scale=alt.Scale(domain=[0, 1]))
    layers = alt.layer(
        base.mark_line(style="chance").encode(x=across, y=chance),
        base.mark_line(style="trained").encode(x=across, y=up),
        base.mark_point(style="trained", filled=True, size=34).encode(x=across, y=up, tooltip=tooltip),
    ).properties(width=PANEL, height=150)
    faceted = facets(layers, "role", [asdict(weight) for weight in weights], columns=3)
    return faceted.resolve_axis(x="independent", y="independent")
