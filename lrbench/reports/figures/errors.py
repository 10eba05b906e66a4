"""Relative errors of reduced weights against keep, and their ratio to the optimum of the same rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrbench.reports.figures import altair, by_method

PANEL = 450
_PANELS = ("relative error ‖W − Ŵ‖ / ‖W‖", "error over the least of its rank")


@dataclass(frozen=True)
class CellError:
    """One cell's errors.

    Attributes:
        method, setting: cells that agree in both are one point.
        keep: stored over dense parameters of the edited weights.
        error: ‖W − Ŵ‖ / ‖W‖.
        ratio: the error over the least error of any matrix of the same rank; None if that is zero.
    """

    method: str
    setting: str
    keep: float
    error: float
    ratio: float | None


def records(cells: Sequence[CellError]) -> list[dict[str, Any]]:
    """Mean, minimum and maximum of error and ratio over the cells of each method and setting."""
    groups: dict[tuple[str, str], list[CellError]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.setting), []).append(cell)
    result = []
    for (method, setting), members in groups.items():
        keep = sum(cell.keep for cell in members) / len(members)
        for panel, values in zip(
            _PANELS, ([m.error for m in members], [m.ratio for m in members if m.ratio is not None]), strict=True
        ):
            if values:
                summary = {"value": sum(values) / len(values), "low": min(values), "high": max(values)}
                about = {"method": method, "setting": setting, "cells": len(values)}
                result.append({"panel": panel, **about, "keep": keep, **summary})
    return result


def chart(cells: Sequence[CellError]) -> Any:
    """The chart: error and ratio to the optimum against keep; a whisker spans the cells of a point."""
    alt = altair()
    points = records(cells)
    methods = list(dict.fromkeys(cell.method for cell in cells))
    panels = [panel for panel in _PANELS if any(point["panel"] == panel for point in points)]
    across = alt.X(
        "keep:Q",
        title="keep: stored over dense parameters, edited weights",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(tickCount=6),
    )
    up = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=8))
    chosen, look = by_method(methods)
    colour, seen = look["color"], look["opacity"]
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("panel", "method", "setting")), alt.Tooltip("cells:Q"),
        alt.Tooltip("keep:Q", format=".4f"), alt.Tooltip("value:Q", format=".4g", title="mean"),
        alt.Tooltip("low:Q", format=".4g", title="least"), alt.Tooltip("high:Q", format=".4g", title="greatest"),
    ]  # fmt: skip
    base = alt.Chart()
    layers = alt.layer(
        base.mark_line(strokeWidth=1.6).encode(x=across, y=up, color=colour, opacity=seen),
        base.transform_filter("datum.cells > 1")
        .mark_rule(style="whisker")
        .encode(x=across, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour, opacity=seen),
        base.mark_point(filled=True, size=58)
        .encode(x=across, y=up, tooltip=tooltip, **look)
        .add_params(chosen),
    ).properties(width=PANEL, height=290)  # fmt: skip
    facet = alt.Facet("panel:N", sort=panels, title=None)
    faceted = layers.facet(facet=facet, columns=len(panels), data=alt.InlineData(values=points))
    return faceted.resolve_scale(y="independent").resolve_axis(x="independent")
