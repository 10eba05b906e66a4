"""The folder that an export makes: there whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as hf_logging

from lrbench.errors import InputError
from lrbench.system import files
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
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with files.temporary_folder(path) as folder:
            yield folder
            files.replace_folder(path, folder)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from None
    finally:
        if shown:
            hf_logging.enable_progress_bar()
