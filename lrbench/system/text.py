"""Makes text of foreign origin safe to show in a terminal, log or table, or to use as a file name."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

from lrbench.errors import LrbenchError

_LONGEST = 2000  # characters of a message; a longer one quotes the input at length

# CSI; OSC, DCS, SOS, PM and APC with their content; two-character sequences; the C1 forms of the first two.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def printable(text: str) -> str:
    """One line of visible characters and spaces; columns aligned by spaces stay aligned.

    Removes escape sequences with their content, control, formatting and bidirectional characters, lone surrogates and
    unassigned code points. Every other whitespace character (tab, line break, no-break space) becomes a space.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _ESCAPE_SEQUENCE.sub("", text)
    kept = (" " if char.isspace() else char for char in text if char.isspace() or unicodedata.category(char)[0] != "C")
    return "".join(kept)


def clean(text: str) -> str:
    """As `printable`, with single spaces and none at the ends."""
    return " ".join(printable(text).split())


def silent(message: str) -> None:
    """Ignores a message, where none is shown."""


def one_line(error: BaseException) -> str:
    """An exception as one line: the message of an `LrbenchError`, `Type: message` of any other.

    The message is cleaned, since it may quote a name from a model, task or plugin. A very long one loses its middle.
    """
    text = clean(str(error))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 4 :]}"
    return text if isinstance(error, LrbenchError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known words; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


#: Names that Windows takes for devices, with any suffix.
RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
)

_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")


def is_reserved(name: str) -> bool:
    """Whether Windows takes a name for a device."""
    return name.split(".")[0].lower() in RESERVED


def is_plain(name: str) -> bool:
    """Whether a name is a valid file name on every system: up to 128 letters, digits, `.`, `_`, `-`; no device."""
    return _PLAIN.fullmatch(name) is not None and not is_reserved(name)
