"""Templates: everything that comes from a run is cleaned of what is not text, and escaped."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from lrbench.analysis.scored_run import split_suffix
from lrbench.reports.publish.tables import Head
from lrbench.reports.render.number_format import clean

ASSETS = ("site.css", "theme.js", "site.js", "figures.js")

#: Nothing is fetched: scripts and styles come from the site's own folder (`file:` when it is opened from a disk, where
#: a page has no origin that could be its own), and nothing else is allowed.
POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(template: str, depth: int = 0, **values: Any) -> bytes:
    """A page.

    Args:
        template: a file in `templates/`.
        depth: how many folders below the site's root the page is.
        values: what the template shows.
    """
    page = _environment().get_template(template).render(root="../" * depth, policy=POLICY, **values)
    return page.encode("utf-8", "replace")


def asset(name: str) -> bytes:
    """A file in `assets/`."""
    return (resources.files("lrbench.reports.publish") / "assets" / name).read_bytes()


def data(value: Any) -> Markup:
    """JSON to stand in a `<script type="application/json">`: nothing in it ends the script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lrbench.reports.publish"),
        undefined=jinja2.StrictUndefined,
        finalize=_cleaned,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data": data, "lines": _lines, "percent": _percent, "plural": _plural, "figure": _figure, "signed": _signed,
        "same": _same, "heads": _heads, "zip": _zip, "groupby_kept": _groups, "list_of": list, "joined": _joined,
        "split_suffix": split_suffix,
    }  # fmt: skip
    return environment


def _cleaned(value: Any) -> Any:
    return clean(value) if type(value) is str else value


def _lines(text: str) -> Markup:
    """Text of several lines, each cleaned, indented as it was."""
    cleaned = ((line[: len(line) - len(line.lstrip(" "))], clean(line)) for line in text.splitlines())
    return Markup("\n").join(Markup(indent) + line for indent, line in cleaned)


def _joined(words: Iterable[str]) -> Markup:
    """Words for an attribute, a line each: none of them holds a line break."""
    return Markup("&#10;").join(clean(word) for word in words)


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _figure(value: float | None) -> str:
    if value is None or value != value:
        return "—"
    return f"{value:.4g}".replace("-", "−").replace("inf", "∞")


def _signed(value: float | None) -> str:
    return _figure(value) if not value or value != value or value < 0 else f"+{_figure(value)}"


# Options of a menu: value, words, whether it is chosen at first.


def _same(values: Iterable[str]) -> list[tuple[str, str, bool]]:
    return [(value, value or "none", True) for value in values]


def _zip(values: Iterable[str], words: Iterable[str]) -> list[tuple[str, str, bool]]:
    return [(value, word, True) for value, word in zip(values, words, strict=True)]


def _heads(heads: Iterable[Head]) -> list[tuple[str, str, bool]]:
    return [(head.name, head.whole, not head.hidden) for head in heads]


def _groups(items: Iterable[dict[str, Any]], key: str) -> list[list[dict[str, Any]]]:
    """Items by a key, in order of first appearance."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for item in items:
        found.setdefault(item[key], []).append(item)
    return list(found.values())
