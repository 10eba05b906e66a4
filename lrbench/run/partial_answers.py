"""Partial answers of unfinished cells in a run's directory, so that a killed run loses at most one part of a cell."""

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

#: Keys of an environment that change how requests are divided, but no answer.
_DIVIDING = ("hash", "frontier_memory")

_PARTIAL = TypeAdapter(Partial)


class AnswerStorage:
    """Stores partial answers, separately for each environment that computes them.

    Args:
        requests: the definition of the queries and their order, as plain JSON.
        stored: called after every write.
    """

    def __init__(self, directory: RunDirectory, requests: Any, stored: Callable[[], None] | None = None) -> None:
        self._directory, self._requests, self._stored = directory, requests, stored
        self._storages: dict[str, RunPartials] = {}

    def in_environment(self, environment: dict[str, Any]) -> RunPartials:
        """The storage of one environment, which is recorded; see `lrbench.system.environment.environment`."""
        key = environment["hash"]
        if key not in self._storages:
            self._directory.add_environment(environment)
            self._storages[key] = RunPartials(self._directory, self._requests, environment, self._stored)
        return self._storages[key]


class RunPartials:
    """Partial answers of a run's unfinished cells in one environment.

    A row names one environment. So answers are reused only if they were computed in this environment, to the same
    requests in the same order. Others are ignored, and their cells scored anew.

    Args:
        requests: the definition of the queries and their order, as plain JSON.
        environment: see `lrbench.system.environment.environment`.
        stored: called after every write.
    """

    def __init__(
        self,
        directory: RunDirectory,
        requests: Any,
        environment: dict[str, Any],
        stored: Callable[[], None] | None = None,
    ) -> None:
        self._directory, self._stored = directory, stored
        defining = {key: value for key, value in environment.items() if key not in _DIVIDING}
        self._made = hashlib.sha256(json.dumps([requests, defining]).encode()).hexdigest()[:16]

    def read(self, cell: str) -> list[Partial]:
        """The reusable partial answers of a cell."""
        partials = []
        for entry in self._directory.partial(cell):
            if isinstance(entry, dict) and entry.pop("made", None) == self._made:
                try:
                    partial = _PARTIAL.validate_python(entry)
                except ValidationError:  # the answers are computed again
                    continue
                if len(partial.queries) == len(partial.loglikelihoods) == len(partial.greedy):
                    partials.append(partial)
        return partials

    def add(self, cell: str, partial: Partial) -> None:
        """Stores a partial answer of a cell; it is on disk when this returns."""
        self._directory.add_partial(cell, {"made": self._made, **asdict(partial)})
        if self._stored is not None:
            self._stored()

    def scored(self, cell: str) -> tuple[Row, list[dict[str, Any]]] | None:
        """The row and per-document scores that `add_scored` stored for a cell; None if they cannot be reused."""
        for entry in self._directory.partial(_block(cell)):
            if isinstance(entry, dict) and entry.get("made") == self._made:
                try:
                    return Row.model_validate(entry["row"]), list(entry["samples"])
                except (ValidationError, KeyError, TypeError):  # the answers are computed again
                    continue
        return None

    def add_scored(self, cell: str, row: Row, samples: list[dict[str, Any]]) -> None:
        """Stores a cell's row on some documents, a part of a later row; it is on disk when this returns."""
        entry = {"made": self._made, "row": row.model_dump(mode="json", by_alias=True), "samples": samples}
        self._directory.drop_partial(_block(cell))
        self._directory.add_partial(_block(cell), entry)


def _block(cell: str) -> str:
    return f"{BLOCK}{cell}"
