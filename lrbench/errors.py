"""The exceptions that lrbench raises; each message is the line that a user sees.

    LrbenchError               anything lrbench reports in one line; `exit_code` says how the process ends
    ├── InputError             bad input: nothing was computed (exit 2)
    │   ├── SuiteError         in a suite file, with file:line:column
    │   ├── PluginError        a plugin cannot be loaded, or is unknown, or its parameters are wrong
    │   ├── ModelError         a model cannot be loaded, or has no such weights
    │   ├── TaskError          a task cannot be found, read or built
    │   └── MissingError       several things are missing, each in a line of its own
    ├── ReducerError           a reducer failed on one weight: the cell is a failed row (exit 1)
    ├── EvaluationError        scoring one cell failed: a failed row (exit 1)
    │   └── SpoiltModelError   and the model is no longer the loaded one
    └── StorageError           a run's directory cannot be written (exit 1)

Every message says where, what, and what to do, in one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

#: What foreign code may raise without ending the run: a plugin that calls sys.exit(), or gives a task up, fails alone.
FOREIGN = (Exception, SystemExit, asyncio.CancelledError)


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
    """A task cannot be found, read or built. `spec`: its entry in the suite, if known."""

    spec: object = None


class MissingError(InputError):
    """Several things are missing.

    Attributes:
        lines: a message for each.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("; ".join(lines))


class ReducerError(LrbenchError):
    """A reducer failed on one weight, or returned something that cannot be used."""


class EvaluationError(LrbenchError):
    """Scoring one cell failed."""


class SpoiltModelError(EvaluationError):
    """An edit of the model was not undone completely; the model must be loaded again before it is scored.

    Attributes:
        cell: hash of the cell under way; empty if unknown.
    """

    cell = ""


class StorageError(LrbenchError):
    """A run's directory cannot be written to any more: the disk is full, or gone."""
