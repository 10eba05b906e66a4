"""Safe file and anchor names made from arbitrary names."""

from __future__ import annotations

import hashlib
import re

from lrbench.system.text import RESERVED

_LONGEST = 48


def slug(name: str) -> str:
    """A name that is safe in any file system and URL: `a-z`, `0-9` and single hyphens, at most 57 characters.

    Other names get eight digits of their hash, so that different names stay different.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain and plain == name and len(plain) <= _LONGEST and plain not in RESERVED:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[:_LONGEST].strip('-')}-{digest}".lstrip("-")


class Names:
    """Unique slugs per key: equal names of different keys get a number."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, ...], str] = {}
        self._taken: set[str] = set()

    def __call__(self, name: str, *key: str) -> str:
        """The slug of `name`, always the same for the same key (default: the name)."""
        full_key = key or (name,)
        if full_key not in self._of:
            candidate = first = slug(name)
            number = 2
            while candidate in self._taken:
                candidate, number = f"{first}-{number}", number + 1
            self._taken.add(candidate)
            self._of[full_key] = candidate
        return self._of[full_key]
