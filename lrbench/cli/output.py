"""Where a verb's document goes: to the screen or a file, in the format asked for."""

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
    from lrbench.reports.render.document import Document

FORMATS = ("terminal", "markdown", "csv", "json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--format` and `--output`."""
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to a file instead of the screen")


def say(line: str = "", file: TextIO | None = None) -> None:
    """Prints one line to standard output (or `file`): names in it may be anyone's, and none of them is obeyed."""
    print(printable(line), file=file or sys.stdout)


def check(path: Path | None, option: str = "--output") -> None:
    """Says before anything is computed whether a file can be written there.

    Raises:
        InputError: it is a folder, or its folder is not there.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: {path.parent} is not a folder; create it first")


def write(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the old one or the new one.

    Raises:
        InputError: it cannot be written.
    """
    check(path)
    try:
        files.write(path, text)
    except OSError as error:
        raise InputError(f"--output: cannot write {path}: {error.strerror or error}") from None


def emit(args: argparse.Namespace, document: Callable[[], Document], data: Mapping[str, Callable[[], str]]) -> None:
    """Writes in `args.format` to `args.output`, or to the screen.

    Args:
        args: with the options of `add_options`.
        document: for people: terminal and Markdown.
        data: `csv` and `json`.

    Raises:
        InputError: the file cannot be written.
    """
    from lrbench.reports.render.document import markdown, show, terminal

    if args.format == "terminal" and args.output is None:
        show(document())
        sys.stdout.flush()  # a closed pipe shows here, where the command line knows what to do about it
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
