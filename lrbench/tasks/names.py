"""Names of tasks as they stand in the files, read in a second and without importing lm-eval.

lm-eval's own index is built from 14,000 files of YAML, which takes it ten seconds, and importing it five more. That
a name is unknown can be told sooner: where no file has it as a word in a place where names stand, none defines it.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lrbench.system.text import did_you_mean

BUNDLED = Path(__file__).parent / "almanac"
PROTOCOLS = Path(__file__).parent / "protocols"  # what papers evaluate on, and lm-eval lacks

# A value of one of the keys that name tasks, groups and tags; an item of a list, or a line, that is one word.
_PLACES = re.compile(
    r"""^[ \t"'{-]*(?:task|group|tag)["']?[ \t]*:(?P<named>[^\n]*)"""
    r"""|^[ \t]*(?:-[ \t]+)?(?P<other>[^\s:]+)[ \t]*(?:\#.*)?$""",
    re.MULTILINE,
)
_DEFINED = re.compile(r"""^(?:task|group)[ \t]*:[ \t]*["']?([A-Za-z][\w.+-]*)""", re.MULTILINE)
_WORD = re.compile(r"""[^\s,\[\]{}"']+""")
_SHOWN = 10
_SUFFIXES = (".yaml", ".yml", "")  # lm-eval's own include files without any


@dataclass(frozen=True)
class Words:
    """What may be the name of a task, a group or a tag.

    Attributes:
        named: values of the keys that name them.
        others: words at other places where a name may stand.
        defined: what tasks and groups are called by the files that are theirs.
    """

    named: frozenset[str]
    others: frozenset[str]
    defined: frozenset[str] = frozenset()

    def may_define(self, name: str) -> bool:
        """Whether a file may define a name, or for a pattern (`*`, `?`, `[...]`) one that matches; no is certain."""
        if any(sign in name for sign in "*?["):
            return bool(fnmatch.filter(self.named | self.others, name))
        return name in self.named or name in self.others


def unknown(names: Iterable[str], folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Names that no file defines, each with what it may have meant, in words.

    Args:
        names: of tasks, groups or tags, or patterns.
        folders: of task files, beside the bundled one and lm-eval's own. One that is not there defines nothing.
    """
    own = [_words(folder) for folder in dict.fromkeys((BUNDLED, PROTOCOLS, *folders))]
    missing = [name for name in dict.fromkeys(names) if not any(words.may_define(name) for words in own)]
    if not missing:
        return []
    theirs = _lm_evals()
    return [
        (name, suggestion(name, {word for words in own for word in words.defined}, theirs.named))
        for name in missing
        if not theirs.may_define(name)
    ]


def suggestion(name: str, own: Iterable[str], theirs: Iterable[str]) -> str:
    """What a name may have meant: one of our own that has it as a part, the nearest of ours, or of lm-eval's."""
    own = sorted(own, key=lambda known: (len(known), known))
    containing = next((known for known in own if name in known.split("_") or known.endswith(f"_{name}")), None)
    if containing is not None:
        return f"; did you mean {containing!r}?"
    near = did_you_mean(name, own) or did_you_mean(name, theirs)
    return (
        near
        or f"; there are {', '.join(own[:_SHOWN])}{', ...' * (len(own) > _SHOWN)}, and what `lm-eval ls tasks` lists"
    )


@cache
def _lm_evals() -> Words:
    found = importlib.util.find_spec("lm_eval")
    assert found is not None
    assert found.submodule_search_locations is not None
    return _words(Path(found.submodule_search_locations[0]) / "tasks")


def _words(folder: Path) -> Words:
    texts = []
    for place, _, files in os.walk(folder):
        for file in files:
            if os.path.splitext(file)[1] in _SUFFIXES:
                with open(os.path.join(place, file), "rb") as opened:  # pathlib takes as long again
                    texts.append(opened.read())
    named: set[str] = set()
    others: set[str] = set()
    text = b"\n".join(texts).decode(errors="replace")
    for match in _PLACES.finditer(text):
        found = _WORD.findall((match["named"] or match["other"] or "").partition(" #")[0])
        (others if match["named"] is None else named).update(found)
    return Words(frozenset(named), frozenset(others), frozenset(_DEFINED.findall(text)))
