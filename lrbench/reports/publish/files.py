"""Writes a site's files atomically, and never over files that lrbench did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lrbench.errors import InputError
from lrbench.system import files

#: Marks a directory as a site of lrbench and lists its files.
MARKER = ".lrbench-site.json"


def check(to: Path) -> None:
    """Checks before any computation that a site can be written to `to`.

    Raises:
        InputError: it is not a directory, or contains something other than a site of lrbench.
    """
    if to.is_symlink() and not to.exists():
        raise InputError(f"--to: {to} is a link to nothing; remove it, or give another directory")
    if to.exists() and not to.is_dir():
        raise InputError(f"--to: {to} is a file; give a directory")
    if to.is_dir():
        _ours(to)


def put(contents: Mapping[str, bytes], to: Path) -> None:
    """Replaces a site atomically; other files at the top of the directory, such as CNAME, are kept.

    Args:
        contents: relative path -> content.
        to: a new or empty directory, or a site of lrbench.

    Raises:
        InputError: as `check`, or the site cannot be written.
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
                    raise InputError(f"--to: {to / name} does not belong to the existing site; move it away")
            files.replace_folder(to, new, others)
    except OSError as error:
        raise InputError(f"--to: cannot write {to}: {error.strerror or error}") from None


def _ours(to: Path) -> set[str]:
    """The files listed in the marker, and the marker; none for an empty directory."""
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
                raise InputError(f"--to: {to / name} is in the way and not from lrbench; move it away")
    return ours


def _tops(names: set[str]) -> set[str]:
    return {name.split("/", 1)[0] for name in names}
