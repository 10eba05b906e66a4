"""Assigns the cells of a plan to workers in chunks, and reassigns those of lost workers.

Nothing here knows a cluster, or a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

#: A cell is given up after this many workers died on it.
DEATHS = 3
#: A cell is given up after this many machines were lost while they worked on it, since it may crash its machine.
LOSSES = 10
#: A chunk is the remaining cost divided by this number times the number of workers.
CHUNKS_PER_WORKER = 2

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Group(Generic[T]):
    """Cells that one worker computes together, because they share the preparation of a decomposition.

    Attributes:
        cells: they differ only in the rank.
        block: the first edited block.
        cost: the number of blocks to run for all cells.
        weights: equal for groups that edit the same weights, which one worker reads once.
        alone: whether the group must not be combined with others, because a worker died on its cell.
    """

    cells: tuple[T, ...]
    block: int
    cost: float
    weights: object = None
    alone: bool = False


class Queue(Generic[T]):
    """The cells that have no row yet, in the plan's order.

    Workers take chunks of consecutive groups from the front, so that each worker's frontier only moves upward and the
    most expensive cells come first. The chunks shrink with the remaining cost (guided self-scheduling, Polychronopoulos
    and Kuck 1987), so that workers of any speed finish at about the same time. A chunk ends between two weights if such
    an end is near.
    """

    def __init__(self, groups: Iterable[Group[T]]) -> None:
        self._waiting = list(groups)
        self._open = {cell for group in self._waiting for cell in group.cells}
        self._home = {cell: group for group in self._waiting for cell in group.cells}
        self._deaths: Counter[T] = Counter()
        self._losses: Counter[T] = Counter()

    def __bool__(self) -> bool:
        """Whether a cell waits for a worker."""
        return bool(self._waiting)

    @property
    def finished(self) -> bool:
        """Whether every cell has been delivered or given up."""
        return not self._open

    def is_open(self, cell: T) -> bool:
        """Whether a cell is neither delivered nor given up."""
        return cell in self._open

    def take(self, workers: int) -> list[Group[T]]:
        """The next chunk for one of `workers` workers; empty if nothing waits."""
        if not self._waiting:
            return []
        if self._waiting[0].alone:
            return [self._waiting.pop(0)]
        target = sum(group.cost for group in self._waiting) / (CHUNKS_PER_WORKER * max(workers, 1))
        count, cost, even = 1, self._waiting[0].cost, 0
        for group in self._waiting[1:]:
            if group.weights != self._waiting[count - 1].weights and cost >= target / 2:
                even = count
            if group.alone or cost + group.cost > target:
                break
            cost += group.cost
            count += 1
        else:
            even = count
        chunk = self._waiting[: even or count]
        del self._waiting[: even or count]
        return chunk

    def delivered(self, cell: T) -> bool:
        """Records that a cell has its row. False if it had one already."""
        was_open = cell in self._open
        self._open.discard(cell)
        return was_open

    def lost(self, chunk: Sequence[Group[T]], *, died: bool) -> list[T]:
        """Puts back the cells of a lost worker that have no row.

        The first of them was under way. If the worker's process died, and not the whole machine, this cell may be the
        reason: it then waits as a group of its own, so that another death can only be due to it.

        Returns:
            Cells that are given up because too many workers died on them, or too many machines were lost.
        """
        left = [cell for group in chunk for cell in group.cells if cell in self._open]
        given_up: list[T] = []
        suspect: list[T] = []
        if left:
            first = left[0]
            counts, most = (self._deaths, DEATHS) if died else (self._losses, LOSSES)
            counts[first] += 1
            if counts[first] >= most:
                given_up.append(left.pop(0))
                self._open.discard(first)
            elif died:
                suspect.append(left.pop(0))
        back = [self._again([cell], alone=True) for cell in suspect]
        by_group: dict[Group[T], list[T]] = {}
        for cell in left:
            by_group.setdefault(self._home[cell], []).append(cell)
        back += [self._again(cells, alone=False) for cells in by_group.values()]
        self._waiting[:0] = back
        return given_up

    def _again(self, cells: list[T], *, alone: bool) -> Group[T]:
        home = self._home[cells[0]]
        return Group(tuple(cells), home.block, home.cost * len(cells) / len(home.cells), home.weights, alone)


def cost_of(block: int | None, blocks: int) -> float:
    """The cost of scoring a cell, in blocks: those from the first edited one on, and one for the head and the rest."""
    return blocks - (block or 0) + 1


def room_for(machines: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """The number of workers that fit on the machines.

    Args:
        machines: the number of `CPU` and `GPU` of each.
        cpus, gpus: of a worker. A fraction of a GPU is on one GPU; several GPUs are on one machine.
    """
    total = 0
    for machine in machines:
        fits = machine.get("CPU", 0) // cpus
        if gpus:
            devices = machine.get("GPU", 0)
            fits = min(fits, devices // gpus if gpus >= 1 else devices * int(1 / gpus + 1e-9))
        total += int(fits)
    return total
