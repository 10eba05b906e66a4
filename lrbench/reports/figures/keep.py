"""Scores against model size: every cell with its standard error, curves of methods, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lrbench.reports.figures import altair
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
        sign = {index: 1 if points[index].better == "higher" else -1 for index in members}
        members.sort(key=lambda index: (points[index].keep, -sign[index] * points[index].value))
        best: tuple[float, float] | None = None
        for index in members:
            number = sign[index] * points[index].value
            if best is None or number > best[1] or (points[index].keep, number) == best:
                optimal.add(index)
                best = points[index].keep, number
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

    Raises:
        InputError: Altair is not installed.
    """
    alt = altair()
    scale_of_values, axis_of_values = alt.Scale(zero=False, padding=8), alt.Axis()
    if is_logarithmic(points):
        points = [_of_logarithm(point) for point in points]
        ends = min(point.low or point.value for point in points), max(point.high or point.value for point in points)
        scale_of_values = alt.Scale(type="log", nice=False, padding=8)
        axis_of_values = alt.Axis(values=logarithmic(*ends), labelExpr=LABEL)
    panels = list(dict.fromkeys(point.panel for point in points))
    methods = list(dict.fromkeys(point.method for point in points if not point.baseline))
    across = alt.X(
        "keep:Q",
        title="keep: stored over dense parameters, whole model",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(tickCount=6),
    )
    upward: dict[str, Any] = {"title": None, "scale": scale_of_values, "axis": axis_of_values}
    up = alt.Y("value:Q", **upward)
    chosen = alt.selection_point(name="method", fields=["method"], bind="legend")
    scale = alt.Scale(domain=methods)
    legend = alt.Legend(orient="top", title=None, columns=6)
    colour = alt.Color("method:N", scale=scale, legend=legend)
    shape = alt.Shape("method:N", scale=scale, legend=legend)
    seen = alt.condition(chosen, alt.value(1.0), alt.value(0.12))
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
        edited.mark_point(filled=True, size=62)
        .encode(x=across, y=up, color=colour, shape=shape, opacity=seen, tooltip=tooltip)
        .add_params(chosen),
        base.transform_filter("datum.baseline")
        .mark_point(style="mark", filled=True, size=70, shape="diamond")
        .encode(x=across, y=up, tooltip=tooltip),
    ).properties(width=PANEL, height=290)
    facet = alt.Facet("panel:N", sort=panels, title=None)
    faceted = layers.facet(facet=facet, columns=min(2, len(panels)), data=alt.InlineData(values=records(points)))
    return faceted.resolve_scale(y="independent").resolve_axis(x="independent")


def _of_logarithm(point: Point) -> Point:
    if point.high is None:
        return point
    factor = math.exp((point.high - point.value) / point.value)
    return replace(point, low=point.value / factor, high=point.value * factor)
