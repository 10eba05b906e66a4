"""The best of several candidates, by what their rows say."""

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
    """What can be chosen: a cell, or the same one at several seeds.

    Attributes:
        label: of its method; methods do not compete here, they are compared afterwards.
    """

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Choice:
    """The candidate chosen, and what it was judged by: means over its seeds.

    Attributes:
        value: the objective's, larger is better.
        log_loss: smaller is better; infinite where it is not known, None where there was nothing to break a tie of.
        rows: of the chosen one's cells.
    """

    candidate: Candidate
    value: float
    log_loss: float | None
    rows: tuple[Row, ...]


def is_reference(cell: Cell) -> bool:
    """Whether a cell is what others are compared with: the baseline, or the base's own weights."""
    return cell.method is None or cell.drops_updates


def candidates(plan: Plan) -> list[Candidate]:
    """A plan's, in its order: all its cells but the baseline, and the base's own where updates are reduced."""
    alike: dict[Any, list[Cell]] = {}
    for cell in plan.cells:
        if cell.method is not None and not is_reference(cell):
            names = tuple(slot.name for slot in cell.slots)
            each = tuple((request.kind, request.value) for request in cell.requests)
            identity = (cell.method.label, cell.mode, names, tuple(cell.requested.items()), each)
            alike.setdefault(identity, []).append(cell)
    return [Candidate(identity[0], tuple(cells)) for identity, cells in alike.items()]


def choose(
    among: Sequence[Candidate],
    objective: Objective,
    rows: Mapping[Cell, Row],
    samples: Callable[[str], Iterable[Mapping[str, Any]]],
) -> Choice | None:
    """The candidate with the largest value of the objective; None where none has one.

    Of equals that with the least log-loss, then that of the smallest model, then the first. A candidate of which a
    cell failed, or has no finite number, is not chosen.

    Args:
        samples: per-document scores by the cell's hash.
    """
    judged: list[tuple[float, Candidate, tuple[Row, ...]]] = []
    for candidate in among:
        found = [rows[cell] for cell in candidate.cells if cell in rows]
        if len(found) == len(candidate.cells) and all(row.status == "ok" for row in found):
            value = _mean(objective.value(row) for row in found)
            if math.isfinite(value):
                judged.append((value, candidate, tuple(found)))
    if not judged:
        return None
    largest = max(_rounded(value) for value, _, _ in judged)
    equals = [one for one in judged if _rounded(one[0]) == largest]
    if len(equals) == 1:
        [(value, candidate, found_rows)] = equals
        return Choice(candidate, value, None, found_rows)
    losses = [_mean(objective.log_loss(samples(row.cell)) for row in of_one) for _, _, of_one in equals]

    def order(place: int) -> tuple[float, float, int]:
        return _rounded(losses[place]), _mean(_keep(row) for row in equals[place][2]), place

    place = min(range(len(equals)), key=order)
    value, candidate, found_rows = equals[place]
    return Choice(candidate, value, losses[place], found_rows)


def _keep(row: Row) -> float:
    return math.inf if row.keep_model is None else row.keep_model


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known) if all(map(math.isfinite, known)) else max(known, key=abs)


def _rounded(value: float) -> float:
    """So that sums in another order make no difference."""
    return round(value, 12)
