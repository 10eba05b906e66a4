"""Figures as Altair charts: one specification a file, each a function from plain records to a chart.

Altair and vl-convert come with `pip install 'lrbench[figures]'`. A chart becomes SVG, PNG, PDF, or a page that holds
its scripts itself; nothing is fetched from a network, when it is written or when it is shown.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from string import Template
from typing import Any

from lrbench.errors import InputError

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
      content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:">
<title>lrbench figure</title>
<style>body { margin: 0; background: #fff; overflow-x: auto }</style>
<script>$scripts</script>
</head>
<body>
<div id="figure"></div>
<script>
vegaEmbed("#figure", $specification,
  {"mode": "vega-lite", "renderer": "svg", "actions": {"export": true, "source": false, "compiled": false, "editor": false}});
</script>
</body>
</html>
""")


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
    """Says before anything is computed whether a figure can be written there.

    Raises:
        InputError: another suffix, no such folder, a folder of that name, or Altair is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--figure: {path} must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"--figure: {path} is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--figure: {path.parent} is not a folder; create it first")
    altair()


def save(chart: Any, path: Path) -> None:
    """Writes a chart in the format of the path's suffix, in one step: a reader sees the old file or the new one.

    Raises:
        InputError: as `check`, or the file cannot be written.
    """
    check(path)
    content = to_bytes(chart, path.suffix.lower().removeprefix("."))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"--figure: cannot write {path}: {error.strerror or error}") from None


def to_bytes(chart: Any, form: str) -> bytes:
    """A chart as `svg`, `png` (two pixels a point), `pdf` or `html`."""
    converter: Any = importlib.import_module("vl_convert")
    specification = chart.to_dict()
    version = ".".join(specification["$schema"].rsplit("/", 1)[1].removeprefix("v").split(".")[:2])
    if form == "html":
        # A name with `</script>` in it must not end the script that it stands in.
        data = json.dumps(specification).replace("<", "\\u003c")
        scripts = converter.javascript_bundle(vl_version=version)
        return _PAGE.substitute(scripts=scripts, specification=data).encode()
    if form == "svg":
        text: str = converter.vegalite_to_svg(specification, vl_version=version)
        return text.encode()
    if form == "png":
        image: bytes = converter.vegalite_to_png(specification, vl_version=version, scale=2)
        return image
    document: bytes = converter.vegalite_to_pdf(specification, vl_version=version)
    return document
