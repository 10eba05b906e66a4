"""Which names are safe as those of files, on every system."""

from __future__ import annotations

import re

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
