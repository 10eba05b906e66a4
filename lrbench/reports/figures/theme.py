"""The charts' theme: colours, fonts and grid for light and dark backgrounds.

Charts define no colours: they use `range.category` for methods, `range.diverging` for signed values, and the mark
styles below. `dressed` applies the light theme to a chart that goes to a file; a page applies its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Mark styles: reference line, Pareto front, error bar, chance level, trained weights, other marks.
STYLES = ("reference", "front", "whisker", "chance", "trained", "mark")

# Okabe and Ito's colours, with their yellow and sky blue changed for contrast on white (3:1 at least, WCAG 1.4.11).
_LIGHT = ("#0072B2", "#C44E00", "#00805D", "#A8478A", "#6B5B95", "#8A6D00", "#2F8FBF", "#8C3B2E", "#3D6B35", "#5F5F5F")
_DARK = ("#5DB7F0", "#F28E4B", "#3FC79A", "#E39AC8", "#B3A5E0", "#E5C04B", "#9AD5F5", "#E58B7B", "#9CCB8F", "#BDBDBD")
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")


def config(*, dark: bool = False, font: str = "Helvetica, Arial, sans-serif", ground: str = "white") -> dict[str, Any]:
    """The theme as Vega-Lite's `config`."""
    ink, soft, grid, edge = (
        ("#E8E6E1", "#A9A6A0", "#2B2E32", "#4A4E55") if dark else ("#222222", "#5C5C5C", "#EDECE8", "#C9C9C4")
    )
    first, second = (_DARK if dark else _LIGHT)[:2]
    # Orange is worse, blue is better; the middle has the shade of the background.
    diverging = ["#F5A266", "#9A5A2B", "#2A2D31", "#2F6C94", "#7CC4F2"] if dark else [
        "#B34700", "#F0B48A", "#F4F3F0", "#8FC1E0", "#005F96"
    ]  # fmt: skip
    return {
        "font": font,
        "background": ground,
        "padding": 4,
        "view": {"stroke": edge},
        "range": {
            "category": list(_DARK if dark else _LIGHT),
            "symbol": list(_SYMBOLS),
            "diverging": diverging,
        },
        "axis": {
            "labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": edge, "tickColor": edge,
            "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8,
            "labelLimit": 170, "titleLimit": 420,
        },
        "legend": {
            "labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12,
            "titleFontWeight": "normal", "labelLimit": 220, "symbolSize": 90, "symbolStrokeWidth": 2,
            "columnPadding": 20,  # a reader's font may be wider than the one that a file was laid out with
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "labelFontWeight": "bold",
                   "labelLimit": 300, "labelAnchor": "start"},
        "title": {"color": ink, "subtitleColor": soft, "fontSize": 16, "subtitleFontSize": 12, "anchor": "start",
                  "offset": 14},
        "style": {
            "reference": {"color": soft, "strokeDash": [2, 3], "strokeWidth": 1.2},
            "front": {"color": ink, "strokeWidth": 1, "strokeDash": [5, 2], "opacity": 0.75},
            "whisker": {"strokeWidth": 1.4},
            "chance": {"color": second, "strokeDash": [5, 3], "strokeWidth": 1.8},
            "trained": {"color": first, "strokeWidth": 2.2, "opacity": 1},
            "mark": {"color": ink, "opacity": 1},
        },
    }  # fmt: skip


def dressed(specification: Mapping[str, Any], title: str, subtitle: str = "") -> dict[str, Any]:
    """A chart's specification with the light theme and a title, for a file."""
    heading = {"text": title, **({"subtitle": [subtitle]} if subtitle else {})}
    return {**specification, "config": config(), "padding": 14, "title": heading}
