"""A site's files, put in place all at once, and never over anything that is not ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lrbench.errors import InputError
from lrbench.system import files

#: Says that a directory is a site of ours, and which of its files are.
MARKER = ".lrbench-site.json"


def check(to: Path) -> None:
    """Says before anything is computed whether a site can be put there.

    Raises:
        InputError: it is no directory, or one with something in it that is not a site of ours.
    """
    if to.is_symlink() and not to.exists():
        raise InputError(f"--to: {to} is a link to nothing; remove it, or give another directory")
    if to.exists() and not to.is_dir():
        raise InputError(f"--to: {to} is a file; give a directory")
    if to.is_dir():
        _ours(to)


def put(contents: Mapping[str, bytes], to: Path) -> None:
    """Writes a site. Whoever looks sees the old one or the new one; files beside the old one's stay.

    Args:
        contents: relative path -> content.
        to: a directory that is not there, empty, or a site of ours.

    Raises:
        InputError: as `check`, or it cannot be written.
    """
    check(to)
    to = to.resolve()
    marker = json.dumps({"lrbench site": 1, "files": sorted(contents)}, indent=1) + "\n"
    try:
        with files.temporary_folder(to) as new:
            for name, content in {**contents, MARKER: marker.encode()}.items():
                file = new / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            # a CNAME, a .git
            others = [name for name in os.listdir(to) if name not in _tops(_ours(to))] if to.is_dir() else []
            for name in others:
                if (new / name).exists():
                    raise InputError(f"--to: {to / name} is not of the site that is there; move it away")
            files.replace_folder(to, new, others)
    except OSError as error:
        raise InputError(f"--to: cannot write {to}: {error.strerror or error}") from None


def _ours(to: Path) -> set[str]:
    """The files that the marker names, and itself; none of an empty directory."""
    if not os.listdir(to):
        return set()
    try:
        marker = json.loads((to / MARKER).read_text(encoding="utf-8"))
        ours = {str(name) for name in marker["files"]} | {MARKER}
        if any(part in ("", ".", "..") for name in ours for part in name.split("/")):
            raise ValueError("not names of files in it")
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--to: {to} is not empty and no site of lrbench; give a new directory") from None
    for top in _tops(ours):
        for file in (to / top).rglob("*") if (to / top).is_dir() else ():
            name = file.relative_to(to).as_posix()
            if not file.is_dir() and name not in ours:
                raise InputError(f"--to: {to / name} is in the way: no site of lrbench put it there; move it away")
    return ours


def _tops(names: set[str]) -> set[str]:
    return {name.split("/", 1)[0] for name in names}
