"""Renders the site's templates; all values from a run are cleaned of control characters and escaped."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lrbench.analysis.scored_run import split_suffix
from lrbench.reports.publish.tables import Head
from lrbench.reports.render.number_format import clean
from lrbench.reports.render.templating import html

_FOLDER = Path(__file__).parent
ASSETS = ("site.css", "theme.js", "site.js", "figures.js")

#: Allows only scripts and styles from the site's own folder (`file:` for a site opened from disk, which has no origin).
POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(template: str, depth: int = 0, **values: Any) -> bytes:
    """Renders a page.

    Args:
        template: a file in `templates/`.
        depth: the page's depth below the site's root, in folders.
        values: the template's variables.
    """
    page = _environment().get_template(template).render(root="../" * depth, policy=POLICY, **values)
    return page.encode("utf-8", "replace")


def asset(name: str) -> bytes:
    """A file in `assets/`."""
    return (_FOLDER / "assets" / name).read_bytes()


def data(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`, escaped so that it cannot end the script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = html(_FOLDER / "templates", trailing_newline=False)
    environment.filters |= {
        "data": data, "lines": _lines, "percent": _percent, "plural": _plural, "figure": _figure, "signed": _signed,
        "same": _same, "heads": _heads, "groupby_kept": _groups, "list_of": list, "joined": _joined,
        "split_suffix": split_suffix,
    }  # fmt: skip
    return environment


def _lines(text: str) -> Markup:
    """Cleans text line by line, keeping its indentation."""
    cleaned = ((line[: len(line) - len(line.lstrip(" "))], clean(line)) for line in text.splitlines())
    return Markup("\n").join(Markup(indent) + line for indent, line in cleaned)


def _joined(words: Iterable[str]) -> Markup:
    """Joins words with line breaks for an attribute."""
    return Markup("&#10;").join(clean(word) for word in words)


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"


def _plural(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _figure(value: float | None) -> str:
    if value is None or value != value:
        return "—"
    return f"{value:.4g}".replace("-", "−").replace("inf", "∞")


def _signed(value: float | None) -> str:
    return _figure(value) if not value or value != value or value < 0 else f"+{_figure(value)}"


# Menu options: value, label, whether initially hidden.


def _same(values: Iterable[str]) -> list[tuple[str, str, bool]]:
    return [(value, value or "none", False) for value in values]


def _heads(heads: Iterable[Head]) -> list[tuple[str, str, bool]]:
    return [(head.column.name, head.whole, head.hidden) for head in heads]


def _groups(items: Iterable[dict[str, Any]], key: str) -> list[list[dict[str, Any]]]:
    """Items by a key, in order of first appearance."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item[key], []).append(item)
    return list(groups.values())
