"""Templates that escape every value automatically, for HTML by jinja2 and for LaTeX by `tex`."""

from __future__ import annotations

import functools
from pathlib import Path

import jinja2

from lrbench.reports.render.number_format import clean

_FOLDER = Path(__file__).parent / "templates"

# Characters that TeX interprets or its text fonts lack.
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
    """TeX source, which is not escaped again. Made only by the functions of this module."""

    __slots__ = ()


def tex(text: object) -> TeX:
    """Escapes text for TeX; characters that a TeX font may lack become question marks."""
    if isinstance(text, TeX):
        return text
    text = clean(str(text))
    escaped = []
    for before, char in zip(f" {text}", text, strict=False):
        if char == before and char in "-',":  # prevents ligatures such as -- for a dash
            escaped.append("{}")
        escaped.append(_IN_TEX.get(char) or (char if char.isascii() or _is_latin(char) else "?"))
    return TeX("".join(escaped))


def strong(text: object) -> TeX:
    """Bold text, including mathematics."""
    return TeX(rf"{{\bfseries\boldmath {tex(text)}}}")


def superscript(text: object) -> TeX:
    """Superscript text."""
    return TeX(rf"\textsuperscript{{{tex(text)}}}") if text else TeX("")


@functools.cache
def latex() -> jinja2.Environment:
    """The LaTeX environment, with `<< value >>` and `<% statement %>`, since TeX uses braces and percent signs."""
    environment = jinja2.Environment(
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
    environment.filters |= {"strong": strong, "superscript": superscript}
    return environment


@functools.cache
def html(folder: Path = _FOLDER, trailing_newline: bool = True) -> jinja2.Environment:
    """An HTML environment; values are cleaned of control characters and escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=trailing_newline,
    )


def _is_latin(char: str) -> bool:
    """Whether a character is a Latin-1 letter, which all T1 fonts have."""
    return "À" <= char <= "ÿ"
