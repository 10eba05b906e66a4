"""Which names lm-eval's own tasks cannot have, without its index: parsing 14,000 files takes some ten seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import lm_eval.tasks

_NAMED = re.compile(rb"(?:task|group|tag)[ \t]*:[ \t]*[\"']?([A-Za-z0-9_.+-]+)")


def unheard_of(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """The names that stand in none of lm-eval's task files, and those that tasks, groups and tags have there.

    A name that is found may still be no task's: only the index can tell.
    """
    text = b"\n".join(_task_files(Path(lm_eval.tasks.__file__).parent))
    unknown = {name for name in names if name.encode("utf-8", "surrogatepass") not in text}
    return unknown, {found.decode() for found in _NAMED.findall(text)} if unknown else set()


def _task_files(root: Path) -> Iterator[bytes]:
    for folder, _, files in os.walk(root):
        for name in files:
            if name.endswith(".yaml"):
                try:
                    with open(os.path.join(folder, name), "rb", buffering=0) as file:
                        yield file.read()
                except OSError:
                    continue  # what cannot be read is for lm-eval to say
