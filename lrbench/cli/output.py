"""Writes a verb's document to the screen or a file, in the requested format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lrbench.errors import InputError
from lrbench.system import files
from lrbench.system.text import printable

if TYPE_CHECKING:
    from lrbench.reports.render.document import TextReport

FORMATS = ("terminal", "markdown", "csv", "json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--format` and `--output`."""
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to a file instead of the screen")


def say(line: str = "", file: TextIO | None = None) -> None:
    """Prints one line to standard output (or `file`), without control characters, which names may contain."""
    print(printable(line), file=file or sys.stdout)


def check(path: Path | None, option: str = "--output") -> None:
    """Checks before any computation that a file can be written.

    Raises:
        InputError: it is a folder, or its folder does not exist.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: {path.parent} is not a folder; create it first")


def write(path: Path, text: str) -> None:
    """Writes a file atomically. Raises InputError if it cannot be written."""
    check(path)
    try:
        files.write(path, text)
    except OSError as error:
        raise InputError(f"--output: cannot write {path}: {error.strerror or error}") from None


def emit(args: argparse.Namespace, document: Callable[[], TextReport], data: Mapping[str, Callable[[], str]]) -> None:
    """Writes in `args.format` to `args.output` or the screen.

    Args:
        args: with the options of `add_options`.
        document: for the formats terminal and Markdown.
        data: functions for `csv` and `json`.

    Raises:
        InputError: the file cannot be written.
    """
    from lrbench.reports.render.document import markdown, show, terminal

    if args.format == "terminal" and args.output is None:
        show(document())
        sys.stdout.flush()  # raises BrokenPipeError here, where `main` handles it
        return
    match args.format:
        case "terminal":
            text = terminal(document())
        case "markdown":
            text = markdown(document())
        case name:
            text = data[name]()
    if args.output is not None:
        write(args.output, text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
