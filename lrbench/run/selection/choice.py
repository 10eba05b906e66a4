"""Chooses the best of several candidates by their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrbench.reduction.plan import Cell, Plan
from lrbench.results.rows import Row
from lrbench.run.selection.objective import Objective


@dataclass(frozen=True)
class Candidate:
    """A cell that can be chosen, with all its seeds.

    Attributes:
        label: the method's. Each method has a choice of its own; methods are compared afterwards.
        cells: one for each seed.
    """

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Choice:
    """The chosen candidate and its values, each a mean over seeds.

    Attributes:
        value: of the objective; larger is better.
        log_loss: smaller is better; infinite if unknown, None if there was no tie to break.
        rows: of the candidate's cells.
    """

    candidate: Candidate
    value: float
    log_loss: float | None
    rows: tuple[Row, ...]


def is_reference(cell: Cell) -> bool:
    """Whether other cells are compared with this one: the baseline, or the base's own weights."""
    return cell.method is None or cell.drops_updates


def candidates(plan: Plan) -> list[Candidate]:
    """A plan's candidates, in its order: all cells but the references."""
    by_identity: dict[Any, list[Cell]] = {}
    for cell in plan.cells:
        if cell.method is not None and not is_reference(cell):
            names = tuple(slot.name for slot in cell.slots)
            each = tuple((request.kind, request.value) for request in cell.requests)
            identity = (cell.method.label, cell.mode, names, tuple(cell.requested.items()), each)
            by_identity.setdefault(identity, []).append(cell)
    return [Candidate(identity[0], tuple(cells)) for identity, cells in by_identity.items()]


def choose(
    among: Sequence[Candidate],
    objective: Objective,
    rows: Mapping[Cell, Row],
    samples: Callable[[str], Iterable[Mapping[str, Any]]],
) -> Choice | None:
    """The candidate with the largest value of the objective; None if no candidate has a value.

    Ties are broken by the smallest log-loss, then by the smallest model, then by the order of the plan. Candidates with
    a failed cell or without a finite value are not chosen.

    Args:
        samples: returns the per-document scores of a cell, by its hash.
    """
    judged: list[tuple[float, Candidate, tuple[Row, ...]]] = []
    for candidate in among:
        rows_of = tuple(rows[cell] for cell in candidate.cells if cell in rows)
        if len(rows_of) == len(candidate.cells) and all(row.status == "ok" for row in rows_of):
            value = _mean(objective.value(row) for row in rows_of)
            if math.isfinite(value):
                judged.append((value, candidate, rows_of))
    if not judged:
        return None
    largest = max(_rounded(value) for value, _, _ in judged)
    tied = [entry for entry in judged if _rounded(entry[0]) == largest]
    if len(tied) == 1:
        [(value, candidate, rows_of)] = tied
        return Choice(candidate, value, None, rows_of)
    losses = [_mean(objective.log_loss(samples(row.cell)) for row in rows_of) for _, _, rows_of in tied]

    def order(place: int) -> tuple[float, float, int]:
        return _rounded(losses[place]), _mean(_keep(row) for row in tied[place][2]), place

    place = min(range(len(tied)), key=order)
    value, candidate, rows_of = tied[place]
    return Choice(candidate, value, losses[place], rows_of)


def _keep(row: Row) -> float:
    return math.inf if row.keep_model is None else row.keep_model


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else max(numbers, key=abs)


def _rounded(value: float) -> float:
    """Rounded, so that the order of summation makes no difference."""
    return round(value, 12)
