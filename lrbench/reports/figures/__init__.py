"""Figures as Altair charts: one module per kind of figure, each with a function from plain records to a chart.
Each raises InputError if Altair is not installed.

Altair and vl-convert come with `pip install 'lrbench[figures]'`. Charts are saved as SVG, PNG, PDF, or a self-contained
page; neither writing nor showing them needs a network.
"""

from __future__ import annotations

import importlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from lrbench.errors import InputError
from lrbench.system import files

SUFFIXES = (".svg", ".png", ".pdf", ".html")

#: Okabe and Ito's palette, distinguishable with any colour vision; grey for reference marks.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"

# The policy forbids all requests, since the page is self-contained. Vega compiles its expressions, hence `eval`.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:">
<title>lrbench figure</title>
<style>body { margin: 0; background: #fff; overflow-x: auto }</style>
<script>$scripts</script>
</head>
<body>
<div id="figure"></div>
<script>
vegaEmbed("#figure", $specification, $options);
</script>
</body>
</html>
""")
_EMBEDDING = json.dumps(
    {
        "mode": "vega-lite",
        "renderer": "svg",
        "actions": {"export": True, "source": False, "compiled": False, "editor": False},
    }
)


def altair() -> Any:
    """The module Altair. Raises InputError if it or vl-convert is not installed."""
    try:
        importlib.import_module("vl_convert")
        return importlib.import_module("altair")
    except ImportError as error:
        raise InputError(f"figures need Altair and vl-convert ({error}); pip install 'lrbench[figures]'") from None


def by_method(methods: Sequence[str], opacity: tuple[float, float] = (1.0, 0.12)) -> tuple[Any, dict[str, Any]]:
    """A selection by clicks on the legend, and the colour, shape and opacity of marks by their `method`.

    Args:
        methods: in the legend's order.
        opacity: of selected and other marks.
    """
    alt = altair()
    chosen = alt.selection_point(name="method", fields=["method"], bind="legend")
    scale, legend = alt.Scale(domain=methods), alt.Legend(orient="top", title=None, columns=6)
    colour, shape = (channel("method:N", scale=scale, legend=legend) for channel in (alt.Color, alt.Shape))
    seen = alt.condition(chosen, alt.value(opacity[0]), alt.value(opacity[1]))
    return chosen, {"color": colour, "shape": shape, "opacity": seen}


def facets(layers: Any, field: str, values: Sequence[Mapping[str, Any]], columns: int) -> Any:
    """One panel per value of a field, in order of appearance, in at most `columns` columns."""
    alt = altair()
    panels = list(dict.fromkeys(value[field] for value in values))
    facet = alt.Facet(f"{field}:N", sort=panels, title=None)
    return layers.facet(facet=facet, columns=min(columns, len(panels)), data=alt.InlineData(values=values))


def check(path: Path) -> None:
    """Checks before any computation that a figure of the path's suffix can be made.

    Raises:
        InputError: an unknown suffix, or Altair is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--figure: {path} must end in one of {', '.join(SUFFIXES)}")
    altair()


def save(chart: Any, path: Path) -> None:
    """Writes a chart atomically in the format of the path's suffix.

    Raises:
        InputError: as `check`, or the file cannot be written.
    """
    check(path)
    content = to_bytes(chart, path.suffix.lower().removeprefix("."))
    try:
        files.write(path, content)
    except OSError as error:
        raise InputError(f"--figure: cannot write {path}: {error.strerror or error}") from None


def to_bytes(chart: Any, form: str) -> bytes:
    """A chart as `svg`, `png` (two pixels per point), `pdf` or `html`."""
    if form == "html":
        scripts = importlib.import_module("vl_convert").javascript_bundle(vl_version=version())
        # A name that contains `</script>` must not end the surrounding script.
        specification = json.dumps(chart.to_dict()).replace("<", "\\u003c")
        return _PAGE.substitute(scripts=scripts, specification=specification, options=_EMBEDDING).encode()
    if form == "svg":
        text = io.StringIO()
        chart.save(text, format=form)
        return text.getvalue().encode()
    buffer = io.BytesIO()
    chart.save(buffer, format=form, **({"scale_factor": 2} if form == "png" else {}))
    return buffer.getvalue()


def vector(specification: Mapping[str, Any]) -> dict[str, bytes]:
    """A Vega-Lite specification as `svg` and `pdf`; the SVG is byte-reproducible.

    Vega numbers clip paths and gradients per process, so the SVG's are renumbered. The order of objects in vl-convert's
    PDFs varies.
    """
    numbers: dict[bytes, bytes] = {}

    def renumbered(match: re.Match[bytes]) -> bytes:
        return numbers.setdefault(match[0], match[1] + str(len(numbers)).encode())

    converter = importlib.import_module("vl_convert")
    text: str = converter.vegalite_to_svg(dict(specification), vl_version=version())
    svg = re.sub(rb"\b(clip|gradient_|gradient)\d+\b", renumbered, text.encode())
    return {"svg": svg, "pdf": converter.svg_to_pdf(svg.decode())}


def version() -> str:
    """The version of Vega-Lite that charts use, in the converter's form: `6.4`."""
    whole: str = altair().SCHEMA_VERSION
    return ".".join(whole.removeprefix("v").split(".")[:2])
