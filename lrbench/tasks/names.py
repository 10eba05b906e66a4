"""Finds unknown task names in a second, without importing lm-eval.

lm-eval takes five seconds to import and ten to build its index of 14,000 YAML files. But if no file has a name at a
place where names stand, no file defines it.
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
PROTOCOLS = Path(__file__).parent / "protocols"  # tasks of papers that lm-eval lacks

# A value of a key that names tasks, groups or tags; or a list item or line of a single word.
_PLACES = re.compile(
    r"""^[ \t"'{-]*(?:task|group|tag)["']?[ \t]*:(?P<named>[^\n]*)"""
    r"""|^[ \t]*(?:-[ \t]+)?(?P<other>[^\s:]+)[ \t]*(?:\#.*)?$""",
    re.MULTILINE,
)
_DEFINED = re.compile(r"""^(?:task|group)[ \t]*:[ \t]*["']?([A-Za-z][\w.+-]*)""", re.MULTILINE)
_WORD = re.compile(r"""[^\s,\[\]{}"']+""")
_SHOWN = 10
_SUFFIXES = (".yaml", ".yml", "")  # some of lm-eval's include files have none


@dataclass(frozen=True)
class TaskNames:
    """The words in task files that may be names of tasks, groups or tags.

    Attributes:
        named: values of the keys for names.
        others: words at other places where a name may stand.
        defined: names of tasks and groups that a file defines at its top level.
    """

    named: frozenset[str]
    others: frozenset[str]
    defined: frozenset[str] = frozenset()

    def may_define(self, name: str) -> bool:
        """Whether a file may define the name, or a match of the pattern (`*`, `?`, `[...]`); False is certain."""
        if any(sign in name for sign in "*?["):
            return bool(fnmatch.filter(self.named | self.others, name))
        return name in self.named or name in self.others


def unknown(names: Iterable[str], folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Names that no file defines, each with a suggestion for the message.

    Args:
        names: names of tasks, groups or tags, or patterns.
        folders: folders of task files beside the bundled ones and lm-eval's; a missing folder defines nothing.
    """
    own = [_read_names(folder) for folder in dict.fromkeys((BUNDLED, PROTOCOLS, *folders))]
    missing = [name for name in dict.fromkeys(names) if not any(words.may_define(name) for words in own)]
    if not missing:
        return []
    lm_eval = _lm_eval_names()
    return [
        (name, suggestion(name, {word for words in own for word in words.defined}, lm_eval.named))
        for name in missing
        if not lm_eval.may_define(name)
    ]


def suggestion(name: str, own: Iterable[str], lm_eval: Iterable[str]) -> str:
    """A suggestion for an unknown name: a name of ours that contains it, or the nearest of ours or of lm-eval's."""
    own = sorted(own, key=lambda known: (len(known), known))
    containing = next((known for known in own if name in known.split("_") or known.endswith(f"_{name}")), None)
    if containing is not None:
        return f"; did you mean {containing!r}?"
    near = did_you_mean(name, own) or did_you_mean(name, lm_eval)
    return (
        near
        or f"; there are {', '.join(own[:_SHOWN])}{', ...' * (len(own) > _SHOWN)}, and what `lm-eval ls tasks` lists"
    )


@cache
def _lm_eval_names() -> TaskNames:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return _read_names(Path(spec.submodule_search_locations[0]) / "tasks")


def _read_names(folder: Path) -> TaskNames:
    texts = []
    for place, _, files in os.walk(folder):
        for file in files:
            if os.path.splitext(file)[1] in _SUFFIXES:
                with open(os.path.join(place, file), "rb") as opened:  # pathlib takes twice as long
                    texts.append(opened.read())
    named: set[str] = set()
    others: set[str] = set()
    text = b"\n".join(texts).decode(errors="replace")
    for match in _PLACES.finditer(text):
        words = _WORD.findall((match["named"] or match["other"] or "").partition(" #")[0])
        (others if match["named"] is None else named).update(words)
    return TaskNames(frozenset(named), frozenset(others), frozenset(_DEFINED.findall(text)))
