"""A screening's predictions against measured changes: one panel per choice, one mark per cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrbench.analysis.screening_accuracy import ScreenedCell
from lrbench.reports.figures import altair, by_method, facets
from lrbench.reports.render.number_format import clean

PANEL = 380


def chart(cells: Sequence[ScreenedCell]) -> Any:
    """The chart of at least one cell; predictions on the dotted line are exact."""
    alt = altair()
    methods = list(dict.fromkeys(clean(cell.method) for cell in cells))
    chosen, look = by_method(methods, opacity=(0.75, 0.08))
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("method", "setting", "edited")),
        *(alt.Tooltip(f"{name}:Q", format="+.4g") for name in ("predicted", "measured")),
    ]
    axis = alt.Axis(tickCount=5, format="~g")
    scale = alt.Scale(zero=True, padding=8)
    across = alt.X("predicted:Q", title="predicted change of log-loss, nats a document", scale=scale, axis=axis)
    up = alt.Y("measured:Q", title="measured", scale=scale, axis=axis)
    values = [
        {
            **{name: clean(getattr(cell, name)) for name in ("choice", "method", "setting", "edited")},
            "predicted": cell.predicted,
            "measured": cell.measured,
        }
        for cell in cells
    ]
    base = alt.Chart()
    layers = alt.layer(
        base.transform_aggregate(low="min(predicted)", high="max(predicted)")
        .mark_rule(style="reference")
        .encode(x=alt.X("low:Q", title=None), y=alt.Y("low:Q", title=None), x2="high:Q", y2="high:Q"),
        base.mark_point(filled=True, size=34)
        .encode(x=across, y=up, tooltip=tooltip, **look)
        .add_params(chosen),
    ).properties(width=PANEL - 80, height=240)  # fmt: skip
    faceted = facets(layers, "choice", values, columns=2)
    return faceted.resolve_scale(x="independent", y="independent").resolve_axis(x="independent", y="independent")
