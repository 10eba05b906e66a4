"""Text from elsewhere made harmless: shown in a terminal, a log or a table, or used as the name of a file."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

from lrbench.errors import LrbenchError

_LONGEST = 2000  # of a message that is shown; a reason is read, and what is longer quotes the input at length

# CSI; OSC, DCS, SOS, PM and APC, with what they say; two-character sequences. The C1 forms of the first two as well.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def printable(text: str) -> str:
    """One line in which only visible characters and spaces are left; columns set by spaces stay where they are.

    Escape sequences go, with what they say; so do control, formatting and bidirectional characters, lone surrogates and
    unassigned code points. Every other whitespace (tab, line break, no-break space) is one space.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _ESCAPE_SEQUENCE.sub("", text)
    kept = (" " if char.isspace() else char for char in text if char.isspace() or unicodedata.category(char)[0] != "C")
    return "".join(kept)


def clean(text: str) -> str:
    """The same with its whitespace folded: single spaces, none at the ends."""
    return " ".join(printable(text).split())


def one_line(error: BaseException) -> str:
    """An exception as one line: `Type: message` for those that are not ours.

    Whitespace is folded, and what a terminal would act on is taken out: a message may quote a name from a model, a task
    or a plugin. A very long one loses its middle.
    """
    text = clean(str(error))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 4 :]}"
    return text if isinstance(error, LrbenchError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known words, or `` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


#: What Windows takes for a device, whatever the suffix.
RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
)

_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")


def is_reserved(name: str) -> bool:
    """Whether Windows takes a name for a device."""
    return name.split(".")[0].lower() in RESERVED


def is_plain(name: str) -> bool:
    """Whether a name is one file's in any folder: letters, digits, `.`, `_`, `-`; 128 at most; no device."""
    return _PLAIN.fullmatch(name) is not None and not is_reserved(name)
