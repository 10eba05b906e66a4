"""Creates an export's folder atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as hf_logging

from lrbench.errors import InputError
from lrbench.system import files
from lrbench.system.text import one_line


def refuse_occupied(path: Path) -> None:
    """Raises InputError if `path` is a file or a folder that is not empty."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: already exists; give a folder that does not exist, or an empty one")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` on success; hides transformers' progress bars.

    Raises:
        InputError: `path` is occupied or cannot be written.
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
