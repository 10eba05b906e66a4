"""Names of files and anchors made of names that anyone may have chosen."""

from __future__ import annotations

import hashlib
import re

from lrbench.system.text import RESERVED

_LONGEST = 48


def slug(name: str) -> str:
    """A name that is safe in any file system and URL: `a-z`, `0-9` and single hyphens, 57 characters at most.

    Names that are not so themselves get eight digits of their hash, so that no two fall together.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain and plain == name and len(plain) <= _LONGEST and plain not in RESERVED:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[:_LONGEST].strip('-')}-{digest}".lstrip("-")


class Names:
    """Slugs for keys, each key its own: equal names of different keys get a number."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, ...], str] = {}
        self._taken: set[str] = set()

    def __call__(self, name: str, *key: str) -> str:
        """The slug of `name`, the same whenever it is asked for with the same key (by default the name itself)."""
        whole = key or (name,)
        if whole not in self._of:
            found = first = slug(name)
            number = 2
            while found in self._taken:
                found, number = f"{first}-{number}", number + 1
            self._taken.add(found)
            self._of[whole] = found
        return self._of[whole]
