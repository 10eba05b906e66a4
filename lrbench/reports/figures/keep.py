"""Scores against model size: every cell with its standard error, curves of methods, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lrbench.analysis.table import pareto_front
from lrbench.reports.figures import altair, by_method, facets
from lrbench.reports.figures.ticks import LABEL, logarithmic

#: Lower-is-better values, such as perplexities, use a logarithmic axis if max / min exceeds this.
SPAN = 8
#: With more curves than this, only points are drawn.
MOST_CURVES = 12
#: The width of a panel.
PANEL = 450


@dataclass(frozen=True)
class Point:
    """One cell's score of one kind.

    Attributes:
        panel: the score; one panel each.
        method, setting, edited: as in the leaderboard. The baseline has an empty setting.
        keep: stored over dense parameters of the whole model.
        value, low, high: the score, and one standard error below and above (None: unknown).
        better: `higher` or `lower`.
        field: points of one field were scored on the same documents and compete.
    """

    panel: str
    method: str
    setting: str
    edited: str
    keep: float
    value: float
    low: float | None
    high: float | None
    better: str = "higher"
    field: str = ""
    baseline: bool = False


def front(points: Sequence[Point]) -> set[int]:
    """Indices of the Pareto-optimal points of each panel and field."""
    optimal: set[int] = set()
    fields: dict[tuple[str, str], list[int]] = {}
    for index, point in enumerate(points):
        fields.setdefault((point.panel, point.field), []).append(index)
    for members in fields.values():
        sign = 1 if points[members[0]].better == "higher" else -1
        merits = [(points[index].keep, sign * points[index].value) for index in members]
        optimal |= {members[place] for place in pareto_front(merits)}
    return optimal


def records(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One record per point, with `front`, and `curve`, which connects the points of a method on the same weights."""
    on_front = front(points)
    curves: dict[tuple[str, str], set[float]] = {}
    for point in points:
        curves.setdefault((point.method, point.edited), set()).add(point.keep)
    joined = [curve for curve, keeps in curves.items() if len(keeps) > 1]
    known = {curve: place for place, curve in enumerate(joined)} if len(joined) <= MOST_CURVES else {}
    return [
        {**asdict(point), "front": index in on_front, "curve": known.get((point.method, point.edited))}
        for index, point in enumerate(points)
    ]


def is_logarithmic(points: Sequence[Point]) -> bool:
    """Whether a chart of these points has a logarithmic axis, so that one broken model does not flatten the others."""
    values = [point.value for point in points]
    return all(p.better == "lower" for p in points) and min(values) > 0 and max(values) > SPAN * min(values)


def chart(points: Sequence[Point]) -> Any:
    """The chart: one panel per score.

    Args:
        points: not empty; all with the same kind of axis. On a logarithmic axis, the error is that of the logarithm.
    """
    alt = altair()
    scale_of_values, axis_of_values = alt.Scale(zero=False, padding=8), alt.Axis()
    if is_logarithmic(points):
        points = [_of_logarithm(point) for point in points]
        ends = min(point.low or point.value for point in points), max(point.high or point.value for point in points)
        scale_of_values = alt.Scale(type="log", nice=False, padding=8)
        axis_of_values = alt.Axis(values=logarithmic(*ends), labelExpr=LABEL)
    methods = list(dict.fromkeys(point.method for point in points if not point.baseline))
    across = alt.X(
        "keep:Q",
        title="keep: stored over dense parameters, whole model",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(tickCount=6),
    )
    upward: dict[str, Any] = {"title": None, "scale": scale_of_values, "axis": axis_of_values}
    up = alt.Y("value:Q", **upward)
    chosen, look = by_method(methods)
    colour, seen = look["color"], look["opacity"]
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("panel", "method", "setting", "edited")),
        alt.Tooltip("keep:Q", format=".4f"), alt.Tooltip("value:Q", format=".4g"),
        alt.Tooltip("low:Q", format=".4g", title="less 1 s.e."),
        alt.Tooltip("high:Q", format=".4g", title="plus 1 s.e."),
    ]  # fmt: skip
    base = alt.Chart()
    edited = base.transform_filter("!datum.baseline")
    layers = alt.layer(
        base.transform_filter("datum.baseline").mark_rule(style="reference").encode(y=up),
        base.transform_filter("datum.front")
        .mark_line(style="front", interpolate="step-after")
        .encode(x=across, y=up, detail="field:N"),
        edited.transform_filter("datum.curve !== null")
        .mark_line(strokeWidth=1.2, opacity=0.55)
        .encode(x=across, y=up, color=colour, detail="curve:N", opacity=seen),
        edited.transform_filter("datum.low !== null")
        .mark_rule(style="whisker")
        .encode(x=across, y=alt.Y("low:Q", **upward), y2="high:Q", color=colour, opacity=seen),
        edited.mark_point(filled=True, size=62).encode(x=across, y=up, tooltip=tooltip, **look).add_params(chosen),
        base.transform_filter("datum.baseline")
        .mark_point(style="mark", filled=True, size=70, shape="diamond")
        .encode(x=across, y=up, tooltip=tooltip),
    ).properties(width=PANEL, height=290)
    faceted = facets(layers, "panel", records(points), columns=2)
    return faceted.resolve_scale(y="independent").resolve_axis(x="independent")


def _of_logarithm(point: Point) -> Point:
    if point.high is None:
        return point
    factor = math.exp((point.high - point.value) / point.value)
    return replace(point, low=point.value / factor, high=point.value * factor)
