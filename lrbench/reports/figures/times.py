"""Seconds of decomposition by method: one tick per cell, and the median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrbench.reports.figures import altair
from lrbench.reports.figures.ticks import LABEL, logarithmic

PANEL = 760


@dataclass(frozen=True)
class CellTime:
    """One cell's seconds of decomposition; positive."""

    method: str
    setting: str
    edited: str
    seconds: float


def chart(cells: Sequence[CellTime]) -> Any:
    """The chart of at least one cell, on a logarithmic axis."""
    alt = altair()
    by_method: dict[str, list[float]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, []).append(cell.seconds)
    methods = sorted(by_method, key=lambda method: sorted(by_method[method])[len(by_method[method]) // 2])
    ticks = logarithmic(min(cell.seconds for cell in cells), max(cell.seconds for cell in cells))
    across = alt.X(
        "seconds:Q", title="seconds of decomposition (logarithmic)",
        scale=alt.Scale(type="log", padding=14, nice=False),
        axis=alt.Axis(values=ticks, labelExpr=LABEL),
    )  # fmt: skip
    up = alt.Y("method:N", title=None, scale=alt.Scale(domain=methods))
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("method", "setting", "edited")), alt.Tooltip("seconds:Q", format=".4g")
    ]  # fmt: skip
    base = alt.Chart()
    middle = base.transform_aggregate(seconds="median(seconds)", cells="count()", groupby=["method"])
    return alt.layer(
        base.mark_tick(style="trained", size=16, thickness=2, opacity=0.8).encode(x=across, y=up, tooltip=tooltip),
        middle.mark_point(style="mark", filled=True, size=56, shape="diamond").encode(
            x=alt.X("seconds:Q"), y=up,
            tooltip=[alt.Tooltip("method:N"), alt.Tooltip("cells:Q"),
                     alt.Tooltip("seconds:Q", format=".4g", title="median")],
        ),
        data=alt.InlineData(values=[asdict(cell) for cell in cells]),
    ).properties(width=PANEL, height={"step": 30})  # fmt: skip
