"""What can go wrong, as exceptions that know how to show themselves.

    LrbenchError               anything lrbench reports in one line; `exit_code` says how the process ends
    ├── InputError             bad input: nothing was computed (exit 2)
    │   ├── SuiteError         in a suite file, with file:line:column
    │   ├── PluginError        a plugin cannot be loaded, or is unknown, or its parameters are wrong
    │   ├── ModelError         a model cannot be loaded, or has no such weights
    │   └── TaskError          a task cannot be found, read or built
    ├── ReducerError           a reducer failed on one weight: the cell is a failed row (exit 1)
    ├── EvaluationError        scoring one cell failed: a failed row (exit 1)
    │   └── SpoiltModelError   and left the model another than it was
    └── StorageError           the disk does not take what is to be kept (exit 1)

Every message says where, what, and what to do, in one line.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from pathlib import Path

from lrbench.system.text import clean

#: What foreign code may raise without ending the run: a plugin that calls sys.exit(), or gives a task up, fails alone.
FOREIGN = (Exception, SystemExit, asyncio.CancelledError)

_LONGEST = 2000  # of a message that is shown; a reason is read, and what is longer quotes the input at length


class LrbenchError(Exception):
    """Base of all errors that a user can meet."""

    exit_code = 1


class InputError(LrbenchError):
    """The input is wrong; nothing was computed."""

    exit_code = 2


class SuiteError(InputError):
    """A suite file is wrong at a place: shows as `file:line:column: message` (both from 1)."""

    def __init__(self, message: str, file: str | Path | None = None, line: int = 0, column: int = 0) -> None:
        self.file, self.line, self.column = file, line, column
        place = f"{file}:{line}:{column}: " if file is not None and line else f"{file}: " if file is not None else ""
        super().__init__(place + message)


class PluginError(InputError):
    """A plugin cannot be used."""


class ModelError(InputError):
    """A model cannot be loaded, or has no such weight."""


class TaskError(InputError):
    """A task cannot be found, read or built. `spec` is what the suite says of it, where that is known."""

    spec: object = None


class ReducerError(LrbenchError):
    """A reducer failed on one weight, or returned something that cannot be used."""


class EvaluationError(LrbenchError):
    """Scoring one cell failed."""


class SpoiltModelError(EvaluationError):
    """What was done to the model was not, or not all, undone: nothing can be scored with it as it is.

    Attributes:
        cell: hash of the one that was at work; empty where that is not known.
    """

    cell = ""


class StorageError(LrbenchError):
    """A run's directory cannot be written to any more: the disk is full, or gone."""


def one_line(error: BaseException) -> str:
    """An exception as one line: `Type: message` for those that are not ours.

    Whitespace is folded, and what a terminal would act on is taken out: a message may quote a name from a model, a task
    or a plugin. A very long one loses its middle.
    """
    text = clean(str(error))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 4 :]}"
    return text if isinstance(error, LrbenchError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known words, or `` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
