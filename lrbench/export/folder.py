"""The folder that an export makes: there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as hf_logging

from lrbench.errors import InputError
from lrbench.system.text import one_line


def refuse_occupied(path: Path) -> None:
    """Raises InputError where `path` is a file, or a folder that holds something."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: is there already; give a folder that does not exist, or an empty one")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when all is written; transformers' progress bars are quiet.

    Raises:
        InputError: `path` is taken, or cannot be written.
    """
    refuse_occupied(path)
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if shown:
            hf_logging.enable_progress_bar()
