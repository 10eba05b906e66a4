"""Finds unknown task names without importing lm-eval, which takes seconds.

lm-eval's own names are those of its index. In other folders, a name is unknown if no file has it at a place where names
stand: a file that lm-eval would skip is to be refused for what is wrong with it.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from lrbench.system.text import did_you_mean
from lrbench.tasks.lm_eval_index import TASKS, lm_eval_index, lm_eval_tasks

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
_SUFFIXES = (".yaml", ".yml", "")  # an included file may have none


def unknown(names: Iterable[str], folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Names that no file defines, each with a suggestion for the message.

    Args:
        names: names of tasks, groups or tags, or patterns.
        folders: folders of task files beside the bundled ones and lm-eval's; a missing folder defines nothing.
    """
    words, defined = _read_names((BUNDLED, PROTOCOLS, *folders))
    missing = [name for name in dict.fromkeys(names) if not _matches(name, words)]
    if not missing or lm_eval_tasks(frozenset(missing)):
        return []
    index = lm_eval_index()
    tasks = [name for name, entry in index.items() if entry.kind in TASKS]
    return [
        (name, suggestion(name, defined, index))
        for name in missing
        if not _matches(name, tasks if is_pattern(name) else index)
    ]


def _matches(name: str, known: Collection[str]) -> bool:
    return bool(fnmatch.filter(known, name)) if is_pattern(name) else name in known


def is_pattern(name: str) -> bool:
    """Whether a name stands for all tasks that match it (`*`, `?`, `[...]`)."""
    return any(sign in name for sign in "*?[")


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


def _read_names(folders: Iterable[Path]) -> tuple[set[str], set[str]]:
    """The words at places where names may stand, and the names of tasks and groups defined at the top of a file."""
    words: set[str] = set()
    defined: set[str] = set()
    for folder in dict.fromkeys(folders):
        for place, _, files in os.walk(folder):
            for file in files:
                if os.path.splitext(file)[1] in _SUFFIXES:
                    text = Path(place, file).read_bytes().decode(errors="replace")
                    for match in _PLACES.finditer(text):
                        words.update(_WORD.findall((match["named"] or match["other"] or "").partition(" #")[0]))
                    defined.update(_DEFINED.findall(text))
    return words, defined
