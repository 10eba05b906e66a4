"""Answers to parts of the requests, kept in a run's directory, so that a kill loses one cell's part at most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lrbench.evaluation.interface import Partial
from lrbench.results.directory import BLOCK, RunDirectory
from lrbench.results.rows import Row

#: of an environment, what changes how requests are divided, and no answer
_DIVIDING = ("hash", "frontier_memory")

_PARTIAL = TypeAdapter(Partial)


class AnswerStorage:
    """Where a run stores answers to parts of the requests, for each environment that gives them.

    Args:
        requests: what defines the queries and their order, as plain JSON.
        stored: called after every write.
    """

    def __init__(self, directory: RunDirectory, requests: Any, stored: Callable[[], None] | None = None) -> None:
        self._directory, self._requests, self._stored = directory, requests, stored
        self._of: dict[str, RunPartials] = {}

    def in_environment(self, environment: dict[str, Any]) -> RunPartials:
        """The storage of one environment (as `system.environment.environment` makes it), which is recorded."""
        key = environment["hash"]
        if key not in self._of:
            self._directory.add_environment(environment)
            self._of[key] = RunPartials(self._directory, self._requests, environment, self._stored)
        return self._of[key]


class RunPartials:
    """What the unfinished cells of one run were answered.

    A row names one environment. So answers count only where they were given in this one, and to the same requests in
    the same order; others are left alone, and their cells scored anew.

    Args:
        requests: what defines the queries and their order, as plain JSON.
        environment: as `lrbench.system.environment.environment` makes it.
        kept: called whenever something was kept.
    """

    def __init__(
        self,
        directory: RunDirectory,
        requests: Any,
        environment: dict[str, Any],
        kept: Callable[[], None] | None = None,
    ) -> None:
        self._directory, self._kept = directory, kept
        here = {key: value for key, value in environment.items() if key not in _DIVIDING}
        self._made = hashlib.sha256(json.dumps([requests, here]).encode()).hexdigest()[:16]

    def read(self, cell: str) -> list[Partial]:
        """All that was kept of a cell, as far as it still holds."""
        found = []
        for entry in self._directory.partial(cell):
            if isinstance(entry, dict) and entry.pop("made", None) == self._made:
                try:
                    partial = _PARTIAL.validate_python(entry)
                except ValidationError:  # it only costs a repetition
                    continue
                if len(partial.queries) == len(partial.loglikelihoods) == len(partial.greedy):
                    found.append(partial)
        return found

    def add(self, cell: str, partial: Partial) -> None:
        """Keeps more of a cell; it is on disk when this returns."""
        self._directory.add_partial(cell, {"made": self._made, **asdict(partial)})
        if self._kept is not None:
            self._kept()

    def scored(self, cell: str) -> tuple[Row, list[dict[str, Any]]] | None:
        """The row and per-document scores that `keep` was given for a cell, where they still hold."""
        for entry in self._directory.partial(_block(cell)):
            if isinstance(entry, dict) and entry.get("made") == self._made:
                try:
                    return Row.model_validate(entry["row"]), list(entry["samples"])
                except (ValidationError, KeyError, TypeError):  # it only costs a repetition
                    continue
        return None

    def keep(self, cell: str, row: Row, samples: list[dict[str, Any]]) -> None:
        """Keeps a cell's row on some documents, which is part of another row; it is on disk when this returns."""
        entry = {"made": self._made, "row": row.model_dump(mode="json", by_alias=True), "samples": samples}
        self._directory.drop_partial(_block(cell))
        self._directory.add_partial(_block(cell), entry)


def _block(cell: str) -> str:
    return f"{BLOCK}{cell}"
