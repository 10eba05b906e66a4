"""Predicts the time of a cell from a few timed batches."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from lrbench.evaluation.sweep.answers import Tally
from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.engine import SweepEngine
from lrbench.evaluation.sweep.sweeper import QueryPart, Sweeper
from lrbench.system.device import synchronize
from lrbench.tasks.containment import contained

LEAST_BATCHES, SECONDS = 2, 10.0  # time batches until both are reached, or all are timed


@dataclass(frozen=True)
class SweepCost:
    """The predicted cost of one cell's log-likelihood requests.

    Attributes:
        tokens_asked: tokens of all requests, each counted by itself.
        tokens_shared: tokens after merging common prefixes.
        positions: positions per block, including padding.
        blocks: the number of decoder blocks.
        blocks_seconds: for all positions through all blocks.
        head_seconds: for the head at all scored positions.
        resumes: whether a pass may start at a later block.
        plain: whether lm-eval's own passes are used, whose padding is not counted here.
    """

    tokens_asked: int = 0
    tokens_shared: int = 0
    positions: int = 0
    blocks: int = 0
    blocks_seconds: float = 0.0
    head_seconds: float = 0.0
    resumes: bool = True
    plain: bool = False

    def block_tokens(self, first_blocks: list[int]) -> int:
        """Positions times blocks that a sweep computes, including the move of the frontier to each first block."""
        if not self.resumes:
            return self.positions * self.blocks * len(first_blocks)
        run = sum(self.blocks - block for block in first_blocks) + max(first_blocks, default=0)
        return self.positions * run

    def seconds(self, first_blocks: list[int]) -> float:
        """Predicted seconds of a sweep over cells that start at these blocks."""
        per_block_token = self.blocks_seconds / (self.positions * self.blocks) if self.positions else 0.0
        return self.block_tokens(first_blocks) * per_block_token + len(first_blocks) * self.head_seconds


def cost(engine: SweepEngine) -> SweepCost:
    """Predicts the cost of a cell by timing some of the engine's batches on the baseline."""
    sweeper = engine.sweeper
    if sweeper is None:
        return SweepCost(blocks=engine.blocks)
    tokens_requested = sweeper.describe()["tokens_asked"]
    if sweeper.mode == "none":
        seconds = _lm_eval_seconds(engine, tokens_requested)
        return SweepCost(
            tokens_requested,
            tokens_requested,
            tokens_requested,
            engine.blocks,
            blocks_seconds=seconds,
            resumes=False,
            plain=True,
        )
    all_batches = [(part, batch) for part in sweeper.parts for batch in part.batches]
    positions = sum(batch.ids.numel() for _, batch in all_batches)
    ends = sum(len(batch.scored) for _, batch in all_batches)
    blocks_seconds, head_seconds, timed_positions, timed_ends = 0.0, 0.0, 0, 0
    chosen = random.Random(0).sample(all_batches, len(all_batches))
    with contained():
        _time(engine, sweeper, *min(all_batches, key=lambda entry: entry[1].ids.numel()))  # libraries initialise
        started = time.perf_counter()
        for count, (part, batch) in enumerate(chosen):
            if count >= LEAST_BATCHES and time.perf_counter() - started > SECONDS:
                break
            in_blocks, in_head = _time(engine, sweeper, part, batch)
            blocks_seconds, head_seconds = blocks_seconds + in_blocks, head_seconds + in_head
            timed_positions, timed_ends = timed_positions + batch.ids.numel(), timed_ends + len(batch.scored)
    resumes = sweeper.mode != "whole"
    all_blocks = blocks_seconds * positions / timed_positions
    all_heads = head_seconds * ends / timed_ends if resumes else 0.0
    if not resumes:  # the whole pass was timed as the head's
        all_blocks = head_seconds * positions / timed_positions
    return SweepCost(
        tokens_asked=tokens_requested,
        tokens_shared=sum(batch.tokens for _, batch in all_batches),
        positions=positions,
        blocks=engine.blocks,
        blocks_seconds=all_blocks,
        head_seconds=all_heads,
        resumes=resumes,
    )


def _time(engine: SweepEngine, sweeper: Sweeper, part: QueryPart, batch: Batch) -> tuple[float, float]:
    """Seconds of one batch in all blocks, and in the head."""
    alone = QueryPart(part.queries, [batch])
    tally = Tally(len(engine.requests.pairs) + len(engine.requests.windows))
    started = time.perf_counter()
    states = sweeper.advance(alone, engine.blocks)
    synchronize(batch.ids.device)
    reached = time.perf_counter()
    sweeper.score(alone, engine.blocks, states, tally)
    return reached - started, time.perf_counter() - reached


def _lm_eval_seconds(engine: SweepEngine, tokens: int) -> float:
    """Predicted seconds of all requests in lm-eval's own passes, from two timed batches."""
    tokens_requested = [*engine.requests.pairs, *engine.requests.windows]
    chosen = random.Random(0).sample(tokens_requested, min(len(tokens_requested), LEAST_BATCHES * engine.lm.batch_size))
    with contained():
        engine.lm._loglikelihood_tokens(chosen[:1], disable_tqdm=True)
        started = time.perf_counter()
        engine.lm._loglikelihood_tokens(chosen, disable_tqdm=True)
        seconds = time.perf_counter() - started
    timed = sum(len(context) + len(continuation) for _, context, continuation in chosen)
    return seconds * tokens / timed
