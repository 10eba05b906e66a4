"""Durable writes, which a kill or a power cut never leaves half done; the cache folder; locks between processes.

A file or folder is written under a temporary name in the same folder, `.lrbench-*.tmp`, and then renamed. Temporary
files of killed processes are never read.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as Timeout

from lrbench.errors import InputError
from lrbench.system.faults import point

_PREFIX, _SUFFIX = ".lrbench-", ".tmp"


def cache_root() -> Path:
    """`$LRBENCH_CACHE`, else `~/.cache/lrbench`. Raises InputError if that is unset and the user has no home folder."""
    try:
        return Path(os.environ.get("LRBENCH_CACHE") or "~/.cache/lrbench").expanduser()
    except RuntimeError:
        raise InputError("there is no home folder for the cache; set LRBENCH_CACHE to a folder") from None


def write(path: Path, content: str | bytes) -> None:
    """Creates or replaces a file durably: it holds the old content or all of the new, also after a power cut.

    Args:
        path: its folder must exist.
        content: text is encoded as UTF-8, its line ends unchanged.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            point("write.opened", path)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            point("write.written", path)
            os.fsync(file.fileno())
        point("write.synced", path)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk needs its room
        raise
    point("write.renamed", path)
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """Puts the names in a folder on disk; a file's own sync does not."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def append(path: Path, line: str) -> None:
    """Appends one or more lines durably. First removes an incomplete last line.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("a+b") as file:
        point("append.opened", path)
        end = file.seek(0, os.SEEK_END)
        if not end:
            _sync_names(path.parent)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(line.encode() + b"\n")
        file.flush()
        point("append.written", path)
        os.fsync(file.fileno())
    point("append.synced", path)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a folder; only while no other process writes to it."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, for `replace_folder`; removed at the end of the block if it is still there.

    Raises:
        OSError: it cannot be made.
    """
    parent = path.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, suffix=_SUFFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        new = Path(folder, "new")  # with the permissions of any new folder; those of `folder` are narrower
        new.mkdir()
        yield new


def replace_folder(path: Path, new: Path, keep: Sequence[str] = ()) -> None:
    """Puts a temporary folder in the place of `path`, which may be missing.

    Args:
        path: the final place of `new`.
        new: from `temporary_folder(path)`.
        keep: names in the old folder that are moved to the new one.

    Raises:
        OSError: the old folder is as it was.
    """
    if not path.exists():
        os.rename(new, path)
        return
    old = new.with_name("old")
    os.rename(path, old)
    moved = []
    try:
        for name in keep:
            os.rename(old / name, new / name)
            moved.append(name)
        os.rename(new, path)
    except BaseException:
        for name in moved:
            os.rename(new / name, old / name)
        os.rename(old, path)
        raise


def sync_folder(folder: Path) -> None:
    """Puts all files of a folder on disk, so that none is empty after a power cut once the folder has been renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock on a file, which is kept; the system releases the lock when the process ends, even if it is killed.

    Args:
        wait: until no other process holds it.

    Raises:
        Timeout: another process holds it, and `wait` is false.
        OSError: the file cannot be made or locked.
    """
    with FileLock(path, timeout=-1 if wait else 0):
        yield
