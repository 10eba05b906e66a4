"""The cells that `mode: greedy` may try: edits composed block by block, from the last decoder block to the first."""

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
    """The search space of one method.

    Attributes:
        levels: the slots of each block, the last block first; the head precedes them, the embedding follows them.
        requests: the rank requests tried for each slot.
        seed: of the method's random draws; None if it is deterministic.
        blocks: the number of the model's blocks.
    """

    method: Method
    levels: tuple[tuple[WeightSlot, ...], ...]
    requests: tuple[RankRequest, ...]
    seed: int | None
    blocks: int

    @property
    def tries(self) -> int:
        """The maximum number of cells to score."""
        return sum(map(len, self.levels)) * len(self.requests)

    def trials(self, accepted: Cell | None, level: int) -> list[Cell]:
        """The accepted cell extended by each edit of one level."""
        slots, requests = (accepted.slots, accepted.requests) if accepted is not None else ((), ())
        cells = []
        for slot in self.levels[level]:
            skip, failure = refusal(self.method, (slot,))
            extended = (*slots, slot)
            first = first_block_of(extended, self.blocks)
            for request in self.requests:
                extended_requests = (*requests, request)
                cells.append(
                    Cell(
                        self.method,
                        GREEDY,
                        extended,
                        request,
                        first,
                        skip,
                        failure,
                        seed=self.seed,
                        requests=extended_requests,
                    )
                )
        return cells

    def composed(self, accepted: Cell | None) -> Cell:
        """The accepted edits as a cell of their own; without edits if none was accepted."""
        if accepted is None:
            return Cell(self.method, GREEDY, seed=self.seed)
        return Cell(
            self.method, GREEDY, accepted.slots, first_block=accepted.first_block, seed=self.seed,
            requests=accepted.requests,
        )  # fmt: skip


def make_compositions(suite: Suite, inventory: Inventory, methods: Sequence[Method]) -> list[Composition]:
    """The suite's greedy sweeps on one model. Raises as `slots_of`."""
    compositions = []
    blocks = len(inventory.blocks)
    for sweep in suite.sweep:
        if sweep.mode != GREEDY:
            continue
        by_block: dict[tuple[int, bool], list[WeightSlot]] = {}
        for slot in slots_of(sweep, inventory):
            by_block.setdefault((first_block_of([slot], blocks), slot.about.layer is not None), []).append(slot)
        levels = tuple(tuple(by_block[place]) for place in sorted(by_block, reverse=True))
        for method in methods:
            if sweep.reducers is None or method.label in sweep.reducers:
                for seed in suite.repeats if method.reducer.randomized else (None,):
                    compositions.append(Composition(method, levels, sweep.rank.requests, seed, blocks))
    return compositions


def compositions_in_words(compositions: Sequence[Composition]) -> list[str]:
    """One line per composition, for `lrbench check`."""
    return [
        f"{composition.method.label:16} {GREEDY:9} {len(composition.levels):4} decisions for each choice, "
        f"among {composition.tries} cells at most, and the composition"
        for composition in compositions
    ]
