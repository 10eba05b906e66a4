"""Edits composed one decoder block after another, from the last one down: what `mode: greedy` may try at each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reducers.ranks import RankRequest
from lrbench.reduction.plan import Cell, Method, first_block_of, refusal, slots_of
from lrbench.suite.load import Suite

GREEDY = "greedy"


@dataclass(frozen=True)
class Composition:
    """What one method may compose.

    Attributes:
        levels: the slots of each block, the last block first; the head stands before them, the embedding after them.
        requests: the ranks that each may be given.
        seed: of the method's random draws; None where it draws nothing.
        blocks: of the model.
    """

    method: Method
    levels: tuple[tuple[WeightSlot, ...], ...]
    requests: tuple[RankRequest, ...]
    seed: int | None
    blocks: int

    @property
    def tries(self) -> int:
        """How many cells there are to score."""
        return sum(map(len, self.levels)) * len(self.requests)

    def trials(self, accepted: Cell | None, level: int) -> list[Cell]:
        """What has been accepted with each edit that one level offers."""
        slots, requests = (accepted.slots, accepted.requests) if accepted is not None else ((), ())
        found = []
        for slot in self.levels[level]:
            skip, failure = refusal(self.method, (slot,))
            whole = (*slots, slot)
            first = first_block_of(whole, self.blocks)
            for request in self.requests:
                each = (*requests, request)
                found.append(
                    Cell(self.method, GREEDY, whole, request, first, skip, failure, seed=self.seed, requests=each)
                )
        return found

    def composed(self, accepted: Cell | None) -> Cell:
        """What has been accepted, as a cell of its own; without edits where nothing has."""
        if accepted is None:
            return Cell(self.method, GREEDY, seed=self.seed)
        return Cell(
            self.method, GREEDY, accepted.slots, first_block=accepted.first_block, seed=self.seed,
            requests=accepted.requests,
        )  # fmt: skip


def make_compositions(suite: Suite, inventory: Inventory, built: Sequence[Method]) -> list[Composition]:
    """What a suite has composed on one model. Raises as `slots_of`."""
    found = []
    blocks = len(inventory.blocks)
    for sweep in suite.sweep:
        if sweep.mode != GREEDY:
            continue
        by_block: dict[tuple[int, bool], list[WeightSlot]] = {}
        for slot in slots_of(suite, sweep, inventory):
            by_block.setdefault((first_block_of([slot], blocks), slot.about.layer is not None), []).append(slot)
        levels = tuple(tuple(by_block[place]) for place in sorted(by_block, reverse=True))
        for method in built:
            if sweep.reducers is None or method.label in sweep.reducers:
                for seed in suite.repeats if method.reducer.randomized else (None,):
                    found.append(Composition(method, levels, sweep.rank.requests, seed, blocks))
    return found


def compositions_in_words(found: Sequence[Composition]) -> list[str]:
    """A line for each, for `lrbench check`."""
    return [
        f"{one.method.label:16} {GREEDY:9} {len(one.levels):4} decisions for each choice, "
        f"among {one.tries} cells at most, and the composition"
        for one in found
    ]
