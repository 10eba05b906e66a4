"""Which worker does which cells: shares of a plan that keep a frontier moving upward, and what becomes of lost ones.

Nothing here knows a cluster, or a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

#: Deaths of workers on one cell after which it is given up.
DEATHS = 3
#: Machines lost under one cell after which it is given up: a cell that takes its whole machine down looks like that.
LOSSES = 10
#: A share is what is left, divided by this many for each worker: large at first, small at the end.
SHARES = 2

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Group(Generic[T]):
    """Cells that one worker does together, since they share the preparation of a decomposition.

    Attributes:
        cells: differing in the rank alone.
        block: the first one edited.
        cost: of them all, in blocks that are run.
        weights: the same for groups that edit the same weights; what these share is then shared, too.
        alone: nothing else goes with them: a worker died, and they are suspected.
    """

    cells: tuple[T, ...]
    block: int
    cost: float
    weights: object = None
    alone: bool = False


class Queue(Generic[T]):
    """Cells that are still to be done, in the plan's order.

    Shares are contiguous and taken from the front, so that each worker's frontier only moves upward, and what comes
    first costs most. They shrink as less is left (guided self-scheduling, Polychronopoulos and Kuck 1987), so that
    workers end together whatever their speeds; and they end between two weights where that is near.
    """

    def __init__(self, groups: Iterable[Group[T]]) -> None:
        self._waiting = list(groups)
        self._open = {cell for group in self._waiting for cell in group.cells}
        self._home = {cell: group for group in self._waiting for cell in group.cells}
        self._deaths: Counter[T] = Counter()
        self._losses: Counter[T] = Counter()

    def __bool__(self) -> bool:
        """Whether any cell waits to be taken."""
        return bool(self._waiting)

    @property
    def finished(self) -> bool:
        """Whether every cell has been delivered or given up."""
        return not self._open

    def is_open(self, cell: T) -> bool:
        """Whether a cell is neither delivered nor given up."""
        return cell in self._open

    def take(self, workers: int) -> list[Group[T]]:
        """The next share, where so many workers are at work; empty where nothing waits."""
        if not self._waiting:
            return []
        if self._waiting[0].alone:
            return [self._waiting.pop(0)]
        target = sum(group.cost for group in self._waiting) / (SHARES * max(workers, 1))
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
        share = self._waiting[: even or count]
        del self._waiting[: even or count]
        return share

    def delivered(self, cell: T) -> bool:
        """Notes that a cell has its row. False where it had one already."""
        known = cell in self._open
        self._open.discard(cell)
        return known

    def lost(self, share: Sequence[Group[T]], *, died: bool) -> list[T]:
        """Puts back what a lost worker leaves of its share.

        The first cell without a row is the one that was under way. Where the worker's process died, rather than the
        machine under it, that cell may be the reason: it waits alone, so that the next death is surely its own.

        Returns:
            Cells that are given up, since workers have died on them too often, or far too many machines were lost.
        """
        left = [cell for group in share for cell in group.cells if cell in self._open]
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
        together: dict[Group[T], list[T]] = {}
        for cell in left:
            together.setdefault(self._home[cell], []).append(cell)
        back += [self._again(cells, alone=False) for cells in together.values()]
        self._waiting[:0] = back
        return given_up

    def _again(self, cells: list[T], *, alone: bool) -> Group[T]:
        home = self._home[cells[0]]
        return Group(tuple(cells), home.block, home.cost * len(cells) / len(home.cells), home.weights, alone)


def cost_of(block: int | None, blocks: int) -> float:
    """What scoring a cell costs, in blocks: those from the first edited one on, and one for the head and the rest."""
    return blocks - (block or 0) + 1


def room_for(machines: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many workers machines could hold.

    Args:
        machines: what each has: `CPU` and `GPU`.
        cpus, gpus: of a worker; a worker with a fraction of a GPU is on one GPU, and one with several on one machine.
    """
    total = 0
    for machine in machines:
        fits = machine.get("CPU", 0) // cpus
        if gpus:
            there = machine.get("GPU", 0)
            fits = min(fits, there // gpus if gpus >= 1 else there * int(1 / gpus + 1e-9))
        total += int(fits)
    return total
