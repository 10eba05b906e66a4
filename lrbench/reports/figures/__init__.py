"""Figures as Altair charts: one specification a file, each a function from plain records to a chart.

Altair and vl-convert come with `pip install 'lrbench[figures]'`. A chart becomes SVG, PNG, PDF, or a page that holds
its scripts itself; nothing is fetched from a network, when it is written or when it is shown.
"""

from __future__ import annotations

import importlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from lrbench.errors import InputError
from lrbench.system import files

SUFFIXES = (".svg", ".png", ".pdf", ".html")

#: Okabe and Ito's palette, which people see apart whatever their colour vision; the grey is for what is no finding.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"

# The policy lets nothing be fetched: the page holds all that it shows. Vega compiles its expressions, hence `eval`.
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
    """Altair, where it and the converter are installed.

    Raises:
        InputError: they are not; says how to install them.
    """
    try:
        importlib.import_module("vl_convert")
        return importlib.import_module("altair")
    except ImportError as error:
        raise InputError(f"figures need Altair and vl-convert ({error}); pip install 'lrbench[figures]'") from None


def check(path: Path) -> None:
    """Says before anything is computed whether a figure can be made of the kind that the path's suffix names.

    Raises:
        InputError: another suffix, or Altair is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--figure: {path} must end in one of {', '.join(SUFFIXES)}")
    altair()


def save(chart: Any, path: Path) -> None:
    """Writes a chart in the format of the path's suffix, in one step: a reader sees the old file or the new one.

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
    """A chart as `svg`, `png` (two pixels a point), `pdf` or `html`."""
    if form == "html":
        scripts = importlib.import_module("vl_convert").javascript_bundle(vl_version=version())
        # A name with `</script>` in it must not end the script that it stands in.
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
    """A Vega-Lite specification as `svg` and `pdf`; the SVG has the same bytes whenever it is made.

    Vega numbers clip paths and gradients over a whole process, so the SVG's are numbered anew. vl-convert writes the
    objects of a PDF in an order that varies.
    """
    numbers: dict[bytes, bytes] = {}

    def renumbered(match: re.Match[bytes]) -> bytes:
        return numbers.setdefault(match[0], match[1] + str(len(numbers)).encode())

    converter = importlib.import_module("vl_convert")
    text: str = converter.vegalite_to_svg(dict(specification), vl_version=version())
    svg = re.sub(rb"\b(clip|gradient_|gradient)\d+\b", renumbered, text.encode())
    return {"svg": svg, "pdf": converter.svg_to_pdf(svg.decode())}


def version() -> str:
    """The version of Vega-Lite that charts are written for, as the converter calls it: `6.4`."""
    whole: str = altair().SCHEMA_VERSION
    return ".".join(whole.removeprefix("v").split(".")[:2])
