"""Templates whose every value is escaped: for HTML by jinja2, for LaTeX here. A template cannot forget it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2

from lrbench.reports.render.number_format import clean

_FOLDER = Path(__file__).parent / "templates"

# Signs that people's fonts have and TeX's text fonts lack.
_IN_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after \\ and \midrule a bracket would begin an option
    "]": "{]}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "‖": r"$\Vert$",
    "∞": r"$\infty$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "◆": r"$\blacklozenge$",
    "Ŵ": r"$\hat W$",
    "·": r"$\cdot$",
    "=": r"$=$",
    "*": r"$^{*}$",
}


class TeX(str):
    """Text that is TeX already, and is not escaped again. Made by `tex` and `strong` alone."""

    __slots__ = ()


def tex(text: object) -> TeX:
    """Text as TeX sets it: no character of it is a command. What a TeX font may lack becomes a question mark."""
    if isinstance(text, TeX):
        return text
    text = clean(str(text))
    found = []
    for before, char in zip(f" {text}", text, strict=False):
        if char == before and char in "-',":  # else a ligature, as -- is a dash
            found.append("{}")
        found.append(_IN_TEX.get(char) or (char if char.isascii() or _is_latin(char) else "?"))
    return TeX("".join(found))


def strong(text: object) -> TeX:
    """In bold, mathematics too."""
    return TeX(rf"{{\bfseries\boldmath {tex(text)}}}")


def superscript(text: object) -> TeX:
    """Set small and high."""
    return TeX(rf"\textsuperscript{{{tex(text)}}}") if text else TeX("")


@functools.cache
def latex() -> jinja2.Environment:
    """`<< value >>`, `<% statement %>`: braces and percent signs are TeX's own."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        finalize=tex,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    found.filters |= {"strong": strong, "superscript": superscript}
    return found


@functools.cache
def html() -> jinja2.Environment:
    """Every value is cleaned of what is not text, and escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        finalize=_cleaned,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _cleaned(value: Any) -> Any:
    return clean(value) if type(value) is str else value


def _is_latin(char: str) -> bool:
    """What all of T1 fonts have: Latin-1's letters."""
    return "À" <= char <= "ÿ"
