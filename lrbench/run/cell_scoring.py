"""Scores reduced cells with an engine, and goes on after a cell that leaves a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrbench.errors import SpoiltModelError
from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.interface import Job, Outcome
from lrbench.reduction.plan import Cell
from lrbench.reduction.reduced_weight import Reduction
from lrbench.results.rows import Row

HELD_BYTES = 2**30  # of factors that wait for an engine which prefers many jobs at once


@dataclass(frozen=True)
class Scored:
    """A cell's row and its per-document scores. The row's `evaluate_seconds` exclude writing it."""

    row: Row
    samples: list[dict[str, Any]] = field(default_factory=list)


class CellScoring:
    """Reduced cells that wait to be scored.

    Args:
        engine: scores them.
        row_of: makes a cell's row from its reductions and the engine's outcome.
        restore: loads the model's weights again; called with a description of the trace that a cell left in them.
    """

    def __init__(
        self,
        engine: BaseEngine,
        row_of: Callable[[Cell, Sequence[Reduction], Outcome], Scored],
        restore: Callable[[str], None],
    ) -> None:
        self._engine, self._row_of, self._restore = engine, row_of, restore
        self._waiting: dict[str, tuple[Job, Cell, Sequence[Reduction]]] = {}

    def add(self, job: Job, cell: Cell, reductions: Sequence[Reduction] = ()) -> None:
        """Adds a cell."""
        self._waiting[job.cell] = job, cell, reductions

    @property
    def due(self) -> bool:
        """Whether to score now: the engine does not prefer many cells at once, or their factors take much memory."""
        held = sum(reduction.edit.stored_bytes for *_, done in self._waiting.values() for reduction in done)
        return not self._engine.prefers_many or held > HELD_BYTES

    def rows(self) -> Iterator[Scored]:
        """Scores all waiting cells. A cell that leaves a trace in the model fails, and the others are scored after it.

        Raises:
            ModelError: the weights cannot be loaded again.
        """
        while self._waiting:
            try:
                for outcome in self._engine.score([job for job, *_ in self._waiting.values()]):
                    if isinstance(outcome.error, SpoiltModelError):
                        raise outcome.error
                    yield self._row(outcome)
            except SpoiltModelError as error:
                self._restore(str(error))
                cell = error.cell if error.cell in self._waiting else next(iter(self._waiting))
                yield self._row(Outcome(cell, error=error))

    def _row(self, outcome: Outcome) -> Scored:
        _, cell, reductions = self._waiting[outcome.cell]
        scored = self._row_of(cell, reductions, outcome)
        del self._waiting[outcome.cell]
        return scored
