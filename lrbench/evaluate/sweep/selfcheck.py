"""The self-check: a few queries, chosen to be hard, scored by the plain model and by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluate.sweep.batches import Batch, Layout, make_batches
from lrbench.evaluate.sweep.frontier import Frontier
from lrbench.evaluate.sweep.passes import Passes
from lrbench.evaluate.sweep.queries import Query
from lrbench.evaluate.sweep.scoring import Tally, predictions
from lrbench.evaluate.sweep.trees import Costs, Tree

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


def choose(queries: Sequence[Query], trees: Sequence[Tree]) -> list[Query]:
    """The longest query (past any sliding window, if one is), the longest and the bushiest tree, the shortest few."""
    forked = [tree for tree in trees if not tree.chain]
    chosen: dict[int, None] = {max(range(len(queries)), key=lambda index: len(queries[index].tokens)): None}
    for tree in (
        *sorted(forked, key=lambda tree: -tree.size)[:1],
        *sorted(forked, key=lambda tree: -len(tree.asked) / tree.size)[:1],
    ):
        chosen.update((index, None) for index in _fork(tree))
    for tree in sorted(trees, key=lambda tree: tree.size)[:3]:
        chosen.setdefault(tree.asked[0][0])
    return [queries[index].last(ASKED) for index in chosen]


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
    try:
        logits = model(torch.from_numpy(query.tokens)[None].to(model.device)).logits[0, -asked:].float()
    finally:
        hook.remove()
    targets = torch.from_numpy(query.targets).to(logits.device)
    loglikelihood = logits.log_softmax(-1).gather(1, targets[:, None]).double().sum()
    return Plain(entering[0][0, -asked:], float(loglikelihood))


def compare(
    passes: Passes, queries: Sequence[Query], plain: Sequence[Plain], layout: Layout, tolerance: Tolerance
) -> Compared:
    """Scores `queries` from several block boundaries on and holds the answers against `plain`.

    Whatever can be shared is, and the shortest go into one row, so that nothing is left untested because it is dear.

    Raises:
        Exception: whatever the model raises where it does not take the mask, or blocks that stand aside.
    """
    order = sorted(range(len(queries)), key=lambda index: queries[index].key)
    several = sum(sorted(len(query.tokens) for query in queries)[:3])
    costs = Costs(token=1.0, pair=0.0, longest=layout.costs.longest)
    batches = make_batches(queries, order, replace(layout, row=several, costs=costs), passes.model.device)
    least = min(batches, key=lambda batch: batch.ids.numel())
    passes.record(least)
    blocks = len(passes.blocks)
    entering = loglikelihood = 0.0
    passed = exact = True
    first: list[torch.Tensor] = []
    frontier = Frontier(passes)
    for start in sorted({0, blocks // 2, blocks - 1, blocks} if passes.resume else {0}):
        states = frontier.at(batches, start)
        tally = Tally(len(queries))
        for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
            if start:
                _other_tokens(passes, least)
            found = passes.asked(batch, start, state)
            if not start:
                first.append(found)
            exact = exact and torch.equal(found, first[index])
            tally.add(batch, *predictions(passes, batch, found))
            for owner in batch.owners.unique().tolist():
                mine = found[batch.entries[(batch.owners == owner).to(batch.entries.device)]]
                distance = float(torch.linalg.vector_norm((mine - plain[owner].entering).float()))
                norm = float(torch.linalg.vector_norm(plain[owner].entering.float()))
                entering = max(entering, distance / norm if norm else distance)
                passed = passed and distance <= tolerance.entering * norm
        for (answer, _), reference in zip(tally.answers(), plain, strict=True):
            difference = abs(answer - reference.loglikelihood)
            loglikelihood = max(loglikelihood, difference)
            bound = max(tolerance.absolute, tolerance.relative * abs(reference.loglikelihood))
            passed = passed and difference <= bound
    return Compared(entering, loglikelihood, passed, exact)


def _other_tokens(passes: Passes, batch: Batch) -> None:
    """A whole pass over other tokens: a block that remembers what it last saw then remembers something else."""
    rolled = Batch(
        batch.ids.roll(1, -1), batch.depths, batch.ends, batch.asked,
        batch.entries, batch.targets, batch.owners, batch.tokens,
    )  # fmt: skip
    passes.asked(rolled, 0, None)
