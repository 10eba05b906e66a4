"""How long a sweep takes on many workers, from what its parts take: the queue of a run, on a clock of its own."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from lrbench.run.executors.schedule import Group, Queue, cost_of


@dataclass(frozen=True)
class Costs:
    """Seconds, as measured on one worker.

    Attributes:
        open: until a worker has the model and the requests.
        block: one cell's requests through one block; moving the frontier by one block costs the same.
        cell: of a cell, whatever its block: the head, and putting the edit in place.
        reduce: of a group: decomposing its weights, for all its ranks.
        write: of a row, by the run's process, which writes one after the other.
    """

    open: float
    block: float
    cell: float
    reduce: float
    write: float


@dataclass(frozen=True)
class Schedule:
    """What became of it, in seconds.

    Attributes:
        makespan: until the last row is written.
        work: scoring and reducing, of all workers; what no schedule can save.
        frontier: computing what enters the first edited blocks, of all workers.
        longest: the largest group, which one worker does.
        parts: what keeps the makespan above `work / workers`, by name: an idle or busy worker's seconds on average.
    """

    workers: int
    makespan: float
    work: float
    frontier: float
    longest: float
    parts: dict[str, float]

    @property
    def ideal(self) -> float:
        """Work shared out evenly, and nothing else."""
        return self.work / self.workers

    @property
    def efficiency(self) -> float:
        """The ideal over the makespan."""
        return self.ideal / self.makespan

    @property
    def limit(self) -> str:
        """The largest of `parts`."""
        return max(self.parts, key=lambda name: self.parts[name])


def laser_sweep(blocks: int, weights: int, ranks: int) -> list[Group[object]]:
    """LASER's sweep (arXiv 2312.13558): each weight of each block alone, at several ranks."""
    return [
        Group(tuple(object() for _ in range(ranks)), block, ranks * cost_of(block, blocks), (block, weight))
        for block in range(blocks)
        for weight in range(weights)
    ]


def simulate(groups: Sequence[Group[object]], blocks: int, workers: int, costs: Costs) -> Schedule:
    """Lets workers of equal speed work a sweep off, as `Queue` hands it out.

    Args:
        groups: in ascending blocks.
        blocks: of the model.
    """
    queue = Queue(groups)
    order = count()
    free = [(costs.open, next(order), 0) for _ in range(workers)]  # when, a tie-breaker, where the frontier is
    heapq.heapify(free)
    work = frontier = written = last = 0.0
    rows: list[float] = []
    ends = []
    while free:
        clock, _, block = heapq.heappop(free)
        share = queue.take(workers)
        if not share:
            ends.append(clock)
            continue
        for group in share:
            moved = (group.block - block if group.block >= block else group.block) * costs.block
            block = group.block
            frontier += moved
            clock += moved + costs.reduce
            work += costs.reduce
            for _cell in group.cells:
                seconds = (blocks - group.block) * costs.block + costs.cell
                work += seconds
                clock += seconds
                rows.append(clock)
        last = max(last, clock)
        heapq.heappush(free, (clock, next(order), block))
    for clock in sorted(rows):
        written = max(written, clock) + costs.write
    makespan = max(last, written)
    longest = max(
        len(group.cells) * ((blocks - group.block) * costs.block + costs.cell) + costs.reduce for group in groups
    )
    idle = sum(last - end for end in ends) / workers
    parts = {
        "opening the model": costs.open,
        "computing the frontier": frontier / workers,
        "longest group" if longest > work / workers else "waiting for the last share": idle,
        "writing rows": makespan - last,
    }
    return Schedule(workers, makespan, work, frontier, longest, parts)
