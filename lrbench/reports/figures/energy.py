"""Energy against the fraction of singular values kept, for trained and random matrices: one panel per role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrbench.analysis.spectra import GRID, SlotSpectrum, by_group
from lrbench.reports.figures import BLUE, GREY, INK, ORANGE, altair
from lrbench.reports.render.number_format import clean

_TRAINED, _RANDOM = "trained weights: mean of the layers, and their range", "random Gaussian matrix of the same shape"
_COLUMNS = 4
_PERCENT = {"labelExpr": "round(100 * datum.value) + ' %'", "labelOverlap": False, "labelFlush": False}


def records(spectra: Sequence[SlotSpectrum]) -> list[dict[str, Any]]:
    """One record per role, kind (trained or random) and point of `GRID`: mean, minimum and maximum over the layers.

    Zero matrices have no curve and are left out.
    """
    result = []
    for group, members in by_group(spectrum for spectrum in spectra if spectrum.curve is not None).items():
        for kind, curves in (
            (_TRAINED, [spectrum.curve or () for spectrum in members]),
            (_RANDOM, [spectrum.random_curve for spectrum in members]),
        ):
            for kept, values in zip(GRID, zip(*curves, strict=True), strict=True):
                held = {"held": sum(values) / len(values), "low": min(values), "high": max(values)}
                result.append({"role": _panel(group, members), "kind": kind, "kept": kept, **held})
    return result


def _panel(group: str, members: Sequence[SlotSpectrum]) -> str:
    """A panel's heading: `attn.q (8 of 192 × 192)`."""
    shapes = {spectrum.shape for spectrum in members}
    shape = " × ".join(map(str, shapes.pop())) if len(shapes) == 1 else "several shapes"
    return f"{clean(group)} ({len(members)} of {shape})"


def chart(spectra: Sequence[SlotSpectrum], model: str) -> Any:
    """The chart of spectra, at least one of them of a non-zero matrix; `model` is for the title."""
    alt = altair()
    points = records(spectra)
    panels = list(dict.fromkeys(point["role"] for point in points))
    # All layers declare the same axes, because Vega-Lite merges different ones.
    across = {
        "title": "singular values kept, of min(m, n)", "scale": alt.Scale(domain=[0, 1], nice=False),
        "axis": alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1], **_PERCENT),
    }  # fmt: skip
    up = {
        "title": "energy held, Σσ²", "scale": alt.Scale(domain=[0, 1], nice=False),
        "axis": alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 0.9, 1], **_PERCENT),
    }  # fmt: skip
    kept = alt.X("kept:Q", **across)
    kinds = [_TRAINED, _RANDOM]
    colour = alt.Color(
        "kind:N", title=None, scale=alt.Scale(domain=kinds, range=[BLUE, ORANGE]),
        legend=alt.Legend(orient="top", direction="horizontal", labelLimit=600, symbolType="stroke", symbolSize=400,
                          symbolStrokeWidth=3),
    )  # fmt: skip
    # Dashes too, for print without colour.
    dash = alt.StrokeDash("kind:N", scale=alt.Scale(domain=kinds, range=[[1, 0], [5, 3]]), legend=None)
    base = alt.Chart()
    once = base.transform_aggregate(points="count()")  # draws the line once instead of once per record
    rule = {"color": GREY, "strokeDash": [2, 3], "strokeWidth": 1}
    layers = alt.layer(
        once.mark_rule(**rule).encode(x=alt.XDatum(0.2, **across)),
        once.mark_rule(**rule).encode(y=alt.YDatum(0.9, **up)),
        base.mark_area(opacity=0.22, clip=True, color=BLUE).encode(
            x=kept, y=alt.Y("low:Q", **up), y2="high:Q"
        ).transform_filter(alt.datum.kind == _TRAINED),
        base.mark_line(strokeWidth=2.2, clip=True).encode(
            x=kept, y=alt.Y("held:Q", **up), color=colour, strokeDash=dash,
            tooltip=[alt.Tooltip("role:N"), alt.Tooltip("kind:N"), alt.Tooltip("kept:Q", format=".1%"),
                     alt.Tooltip("held:Q", format=".1%", title="held, mean"), alt.Tooltip("low:Q", format=".1%"),
                     alt.Tooltip("high:Q", format=".1%")],
        ),
    ).properties(width=200, height=200)  # fmt: skip
    title = alt.TitleParams(
        f"{clean(model)}: how much of the energy the largest singular values hold",
        subtitle="Energy: the sum of squared singular values. Dotted: the first 20 % of them, and 90 % of the energy.",
        anchor="start", fontSize=16, subtitleFontSize=12, subtitleColor=INK, color=INK, offset=12,
    )  # fmt: skip
    facet = alt.Facet(
        "role:N", sort=panels, title=None, header=alt.Header(labelFontSize=13, labelFontWeight="bold", labelLimit=240)
    )
    return (
        layers.facet(facet=facet, columns=min(_COLUMNS, len(panels)), data=alt.InlineData(values=points))
        .resolve_axis(x="independent", y="independent")
        .properties(title=title, background="white", padding=14)
        .configure_axis(labelColor=INK, titleColor=INK, gridColor="#E6E6E6", labelFontSize=11, titleFontSize=11)
        .configure_legend(labelFontSize=12, labelColor=INK)
        .configure_view(stroke="#BBBBBB")
    )
