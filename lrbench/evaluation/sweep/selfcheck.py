"""The self-check: a few queries, chosen to be hard, scored by the plain model and by the engine."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluation.sweep.answers import Tally, predictions
from lrbench.evaluation.sweep.batches import PLAIN_FROM, Batch, Layout, make_batches, make_uneven
from lrbench.evaluation.sweep.block_replay import Recording
from lrbench.evaluation.sweep.frontier import Frontier
from lrbench.evaluation.sweep.partial_forward import Passes
from lrbench.evaluation.sweep.prefix_trees import Costs, Tree, grow
from lrbench.evaluation.sweep.queries import Query
from lrbench.models.edit import edited
from lrbench.models.slots import WeightSlot

ASKED = 64  # predictions a query, at most: with all of a long window's, the plain model's logits would fill the memory


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        entering: what enters the head, as a share of its norm. The sharper test: where a model's logits hardly depend
            on the context, log-likelihoods agree although the wrong tokens were attended to.
        absolute, relative: of a query's log-likelihood; the larger of the two counts.
    """

    entering: float
    absolute: float
    relative: float


TOLERANCES = {
    torch.float64: Tolerance(1e-6, 1e-6, 1e-6),
    torch.float32: Tolerance(1e-3, 1e-3, 1e-4),
    torch.float16: Tolerance(2e-2, 0.5, 2e-2),
    torch.bfloat16: Tolerance(8e-2, 2.0, 5e-2),
}


@dataclass(frozen=True)
class Plain:
    """What the plain model says of one query: what enters its head at the asked positions, and its log-likelihood."""

    entering: torch.Tensor
    loglikelihood: float


@dataclass(frozen=True)
class Compared:
    """The largest differences over all queries and block boundaries, and whether they are tolerable.

    Attributes:
        exact: starting at a later block changed nothing, to the last bit.
    """

    entering: float
    loglikelihood: float
    passed: bool
    exact: bool

    def __and__(self, other: Compared) -> Compared:
        """Both: the larger differences, tolerable if both are."""
        return Compared(
            max(self.entering, other.entering), max(self.loglikelihood, other.loglikelihood),
            self.passed and other.passed, self.exact and other.exact,
        )  # fmt: skip


def choose(queries: Sequence[Query], trees: Sequence[Tree]) -> list[Query]:
    """The longest query (past any sliding window, if one is), the shortest few, and forks.

    Of trees that fork the longest, the shortest and the bushiest; of chains the longest one that stands under a mask.

    The longest is asked for no more than half of what it could be: there must be positions that nobody asks about.
    """
    forked = [tree for tree in trees if not tree.chain]
    chosen: dict[int, None] = {max(range(len(queries)), key=lambda index: len(queries[index].tokens)): None}
    for tree in (
        *sorted(forked, key=lambda tree: -tree.size)[:1],
        *sorted(forked, key=lambda tree: -len(tree.asked) / tree.size)[:1],
        *sorted(forked, key=lambda tree: tree.size)[:1],
    ):
        chosen.update((index, None) for index in _fork(tree))
    masked = [tree for tree in trees if tree.chain and tree.size < PLAIN_FROM]
    for tree in sorted(masked, key=lambda tree: -tree.size)[:1]:
        chosen.setdefault(tree.asked[-1][0])  # in a chain, the last is the longest
    for tree in sorted(trees, key=lambda tree: tree.size)[:3]:
        chosen.setdefault(tree.asked[0][0])
    half = max(1, len(queries[next(iter(chosen))].tokens) // 2)
    return [queries[index].last(ASKED if place else min(ASKED, half)) for place, index in enumerate(chosen)]


def _fork(tree: Tree) -> tuple[int, int]:
    """Two queries of a tree that is no chain, of which neither begins with all of the other."""
    for (one, nodes), (other, following) in pairwise(tree.asked):
        if following[-1] >= tree.ends[nodes[-1]]:
            return one, other
    raise ValueError("the tree is a chain")


@torch.no_grad()
def plainly(model: PreTrainedModel, query: Query) -> Plain:
    """Scores one query by itself, without a mask, without padding, with nothing standing aside."""
    entering: list[torch.Tensor] = []
    head: nn.Module = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, args: entering.append(args[0]))
    asked = len(query.targets)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    only = {"logits_to_keep": asked} if keeps else {}  # of a long window all logits are gigabytes
    try:
        tokens = torch.from_numpy(query.tokens)[None].to(model.device)
        logits = model(tokens, use_cache=False, **only).logits[0, -asked:].float()
    finally:
        hook.remove()
    targets = torch.from_numpy(query.targets).to(logits.device)
    loglikelihood = logits.log_softmax(-1).gather(1, targets[:, None]).double().sum()
    return Plain(entering[0][0, -asked:], float(loglikelihood))


def make_check(queries: Sequence[Query], layout: Layout, device: torch.device) -> list[Batch]:
    """The chosen queries in batches, the smallest last.

    Whatever can be shared is, and the shortest go into one row, so that nothing is left untested because it is dear.
    """
    several = sum(sorted(len(query.tokens) for query in queries)[:3])
    batches = make_batches(queries, _order(queries), replace(layout, row=several, costs=_sharing(layout)), device)
    return sorted(batches, key=lambda batch: -batch.ids.numel())


def make_side_by_side(queries: Sequence[Query], layout: Layout, device: torch.device) -> list[Batch]:
    """Those of the chosen queries that stand under masks, in rows of different lengths beside each other.

    So it is seen that a model looks at the masks and positions of every row, and that padding is nowhere seen; the
    first row has most of it, so that what is its alone does for no other. Forks stay together, and nothing else: one
    first token that all have in common would put them all into one row.
    """
    order, trees = _order(queries), list[Tree]()
    while order:
        together = 2 if len(order) > 1 and _fork_late(queries[order[0]], queries[order[1]]) else 1
        trees += grow(queries, order[:together], _sharing(layout))
        order = order[together:]
    return make_uneven(queries, trees, layout, device)


def _fork_late(one: Query, other: Query) -> bool:
    """Whether the shorter of two queries has half of its tokens, or more, in common with the other."""
    length = min(len(one.tokens), len(other.tokens))
    different = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    return 2 * (int(different[0]) if len(different) else length) >= length


def _order(queries: Sequence[Query]) -> list[int]:
    return sorted(range(len(queries)), key=lambda index: queries[index].key)


def _sharing(layout: Layout) -> Costs:
    """Costs by which whatever can be shared is."""
    return Costs(token=1.0, pair=0.0, longest=layout.costs.longest)


def compare(
    passes: Passes, batches: Sequence[Batch], plain: Sequence[Plain], tolerance: Tolerance, starts: Collection[int]
) -> Compared:
    """Scores `batches` from some block boundaries on and holds the answers to their queries against `plain`.

    Raises:
        Exception: whatever the model raises where it does not take the mask, or blocks that stand aside.
    """
    entering = loglikelihood = 0.0
    passed = exact = True
    first: list[torch.Tensor] = []
    answered = {owner for batch in batches for owner in batch.owners.tolist()}
    frontier = Frontier(passes)
    for place, start in enumerate(sorted(starts)):
        states = frontier.at(batches, start)
        tally = Tally(len(plain))
        for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
            if start:
                _other_tokens(passes, batches[-1])
            found = passes.asked(batch, start, state)
            if not place:
                first.append(found)
            exact = exact and torch.equal(found, first[index])
            tally.add(batch, *predictions(passes, batch, found))
            for owner in batch.owners.unique().tolist():
                mine = found[batch.entries[(batch.owners == owner).to(batch.entries.device)].to(found.device)]
                distance = float(torch.linalg.vector_norm((mine - plain[owner].entering).float()))
                norm = float(torch.linalg.vector_norm(plain[owner].entering.float()))
                entering = max(entering, distance / norm if norm else distance)
                passed = passed and distance <= tolerance.entering * norm
        answers = tally.answers()
        for owner in answered:
            reference = plain[owner].loglikelihood
            difference = abs(answers[owner][0] - reference)
            loglikelihood = max(loglikelihood, difference)
            bound = max(tolerance.absolute, tolerance.relative * abs(reference))
            passed = passed and difference <= bound
    return Compared(entering, loglikelihood, passed, exact)


@torch.no_grad()
def remembers_amiss(passes: Passes, batch: Batch, slots: Sequence[WeightSlot]) -> str | None:
    """The first weight before which something cannot be remembered; None where all is well.

    For some blocks and each of their weights: what one edit's pass remembered is given back to another edit's, which
    must come to what it comes to without, bit for bit.

    Args:
        batch: to try it on.
        slots: the model's.
    """
    blocks = len(passes.blocks)
    frontier = Frontier(passes)
    batches = [batch]
    for block in sorted({0, blocks // 2, blocks - 1}):
        (state,) = frontier.at(batches, block)
        for slot in _one_each(slot for slot in slots if slot.about.layer == block):
            weight = slot.read()
            ways = passes.recipes(batch, block, state, {slot.module})
            for recipe in ways if block == blocks - 1 else ways[:1]:  # of the others, some of the same stands aside
                recording = Recording(recipe)
                with edited({slot: -weight}):
                    passes.states(batch, block, state, block + 1, recording)
                memo = recording.memo()
                with edited({slot: weight / 2}):
                    whole = passes.states(batch, block, state, block + 1)
                    replayed = passes.states(batch, block, state, block + 1, memo)
                if not torch.equal(replayed, whole):
                    return slot.name
    return None


def _one_each(slots: Iterator[WeightSlot]) -> list[WeightSlot]:
    """One slot of each module."""
    return list({id(slot.module): slot for slot in slots}.values())


def _other_tokens(passes: Passes, batch: Batch) -> None:
    """A whole pass over other tokens: a block that remembers what it last saw then remembers something else."""
    rolled = Batch(
        batch.ids.roll(1, -1), batch.depths, batch.ends, batch.asked,
        batch.entries, batch.targets, batch.owners, batch.tokens,
    )  # fmt: skip
    passes.asked(rolled, 0, None)
