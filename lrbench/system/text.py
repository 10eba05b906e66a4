"""Names and messages as text that a terminal, a log or a table can show: nothing in it is a command."""

from __future__ import annotations

import re
import unicodedata

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
