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

SAMPLE = 4  # batches that are timed


@dataclass(frozen=True)
class SweepCost:
    """The predicted cost of one cell's log-likelihood requests.

    Attributes:
        tokens_asked: tokens of all requests, each counted by itself.
        positions: positions per block, including padding; without lm-eval's own padding where its passes are used.
        blocks: the number of decoder blocks.
        blocks_seconds: for all positions through all blocks.
        head_seconds: for the head at all scored positions.
        resumes: whether a pass may start at a later block.
    """

    tokens_asked: int = 0
    positions: int = 0
    blocks: int = 0
    blocks_seconds: float = 0.0
    head_seconds: float = 0.0
    resumes: bool = True

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
    requested = sweeper.describe()["tokens_asked"]
    if sweeper.mode == "none":
        return SweepCost(requested, requested, engine.blocks, _lm_eval_seconds(engine, requested), resumes=False)
    batches = [(part, batch) for part in sweeper.parts for batch in part.batches]
    sample = random.Random(0).sample(batches, min(len(batches), SAMPLE))
    with contained():
        _time(engine, sweeper, *sample[0])  # libraries initialise
        times = [_time(engine, sweeper, part, batch) for part, batch in sample]
    positions = sum(batch.ids.numel() for _, batch in batches)
    scale = positions / sum(batch.ids.numel() for _, batch in sample)
    in_blocks, in_head = (scale * sum(seconds) for seconds in zip(*times, strict=True))
    if sweeper.mode == "whole":  # one pass through the model, all of it timed as the head's
        return SweepCost(requested, positions, engine.blocks, in_head, resumes=False)
    return SweepCost(requested, positions, engine.blocks, in_blocks, in_head)


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
    """Predicted seconds of all requests in lm-eval's own passes, from a few timed ones."""
    requests = [*engine.requests.pairs, *engine.requests.windows]
    chosen = random.Random(0).sample(requests, min(len(requests), SAMPLE * engine.lm.batch_size))
    with contained():
        engine.lm._loglikelihood_tokens(chosen[:1], disable_tqdm=True)
        started = time.perf_counter()
        engine.lm._loglikelihood_tokens(chosen, disable_tqdm=True)
        seconds = time.perf_counter() - started
    timed = sum(len(context) + len(continuation) for _, context, continuation in chosen)
    return seconds * tokens / timed
