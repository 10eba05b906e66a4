"""The self-check: scores a few hard queries with the plain model and with the engine, and compares."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lrbench.evaluation.sweep.answers import Tally, predictions
from lrbench.evaluation.sweep.batches import PLAIN_FROM, Batch, BatchLayout, make_batches, make_uneven
from lrbench.evaluation.sweep.block_replay import Recording
from lrbench.evaluation.sweep.frontier import Frontier
from lrbench.evaluation.sweep.partial_forward import PartialForward
from lrbench.evaluation.sweep.prefix_trees import Costs, Tree, grow
from lrbench.evaluation.sweep.queries import Query
from lrbench.models.edit import edited
from lrbench.models.slots import WeightSlot

MAX_SCORED = 64  # maximum predictions per query: the plain model's logits of a whole long window would fill the memory
SHORT = 48  # tokens of a query: enough for every kind of mistake that does not depend on the length


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted differences.

    Attributes:
        entering: of the head's input, relative to its norm. This is the sharper test: if logits hardly depend on the
            context, log-likelihoods agree even if the wrong tokens were attended to.
        absolute, relative: of a query's log-likelihood; the larger bound applies.
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
class Reference:
    """The plain model's result for one query: its head's input at the scored positions, and the log-likelihood."""

    entering: torch.Tensor
    loglikelihood: float


@dataclass(frozen=True)
class PassComparison:
    """The largest differences over all queries and block boundaries.

    Attributes:
        passed: whether they are within the tolerance.
        exact: whether results are bit-identical whatever block a pass starts from.
    """

    entering: float
    loglikelihood: float
    passed: bool
    exact: bool

    def __and__(self, other: PassComparison) -> PassComparison:
        """Combines two comparisons: the larger differences; passed and exact if both are."""
        return PassComparison(
            max(self.entering, other.entering), max(self.loglikelihood, other.loglikelihood),
            self.passed and other.passed, self.exact and other.exact,
        )  # fmt: skip


def choose(queries: Sequence[Query], trees: Sequence[Tree], limits: Collection[int] = ()) -> list[Query]:
    """Chooses hard queries: the longest, a few of the shortest, and forks; and cuts them to `SHORT` tokens.

    Forks are taken from the longest, the shortest and the bushiest forked tree, and from chains the longest one that
    needs a mask. Of the longest query at most half of the positions are scored, so that some positions are unscored.

    Args:
        limits: as `length_limits`. The longest query and the fork of the longest tree stay longer than the largest
            limit that they exceed.
    """
    forked = [tree for tree in trees if not tree.chain]
    longest = max(queries, key=lambda query: len(query.tokens))
    cut = longest.shortened(_kept(len(longest.tokens), limits))
    chosen = [cut.last(min(MAX_SCORED, max(1, len(cut.tokens) // 2)))]
    forks: dict[tuple[int, int], Collection[int]] = {}
    for tree in sorted(forked, key=lambda tree: -tree.size)[:1]:
        forks[_fork(tree)] = limits
    for tree in (
        *sorted(forked, key=lambda tree: -len(tree.query_nodes) / tree.size)[:1],
        *sorted(forked, key=lambda tree: tree.size)[:1],
    ):
        forks.setdefault(_fork(tree), ())
    for (first, second), exceeded in forks.items():
        chosen += cut_fork(queries[first], queries[second], exceeded)
    masked = [tree for tree in trees if tree.chain and tree.size < PLAIN_FROM]
    alone = [tree.query_nodes[-1][0] for tree in sorted(masked, key=lambda tree: -tree.size)[:1]]  # the chain's longest
    alone += [tree.query_nodes[0][0] for tree in sorted(trees, key=lambda tree: tree.size)[:3]]
    taken = {index for fork in forks for index in fork}
    others = [queries[index] for index in dict.fromkeys(alone) if index not in taken]
    chosen += [query.shortened(SHORT) for query in others if query is not longest]
    return [query.last(MAX_SCORED) for query in chosen]


def length_limits(config: PreTrainedConfig) -> set[int]:
    """The lengths beyond which a configuration says that the model may compute otherwise.

    These are its windows and chunks of attention, and the lengths that its position encodings were made for.
    """
    text = config.get_text_config().to_dict()
    nested = [value for value in text.values() if isinstance(value, dict)]
    return {
        value
        for settings in (text, *nested)
        for key, value in settings.items()
        if any(word in str(key) for word in ("window", "chunk", "max_position")) and type(value) is int and value
    }


def _kept(length: int, limits: Collection[int]) -> int:
    """The tokens to keep of a query of this length: `SHORT` more than the largest limit below."""
    return SHORT + max((limit for limit in limits if limit < length), default=0)


def cut_fork(first: Query, second: Query, limits: Collection[int]) -> tuple[Query, Query]:
    """Cuts two queries to fewer tokens, so that they still have a common prefix and still differ after it."""
    length = min(len(first.tokens), len(second.tokens))
    common = int(np.flatnonzero(first.tokens[:length] != second.tokens[:length])[0])
    longer = max(len(first.tokens), len(second.tokens))
    kept = _kept(longer, limits)
    start = max(0, min(longer - kept, common - SHORT // 2))
    return first.between(start, start + kept), second.between(start, start + kept)


def _fork(tree: Tree) -> tuple[int, int]:
    """Two queries of a forked tree, neither of which is a prefix of the other."""
    for (first, nodes), (second, following) in pairwise(tree.query_nodes):
        if following[-1] >= tree.ends[nodes[-1]]:
            return first, second
    raise ValueError("the tree is a chain")


@torch.no_grad()
def score_plainly(model: PreTrainedModel, query: Query) -> Reference:
    """Scores one query by itself with the plain model: no mask, no padding, no skipped module."""
    entering: list[torch.Tensor] = []
    head: nn.Module = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, args: entering.append(args[0]))
    count = len(query.targets)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    only = {"logits_to_keep": count} if keeps else {}  # all logits of a long window take gigabytes
    try:
        tokens = torch.from_numpy(query.tokens)[None].to(model.device)
        logits = model(tokens, use_cache=False, **only).logits[0, -count:].float()
    finally:
        hook.remove()
    targets = torch.from_numpy(query.targets).to(logits.device)
    loglikelihood = logits.log_softmax(-1).gather(1, targets[:, None]).double().sum()
    return Reference(entering[0][0, -count:], float(loglikelihood))


def make_check(queries: Sequence[Query], layout: BatchLayout, device: torch.device) -> list[Batch]:
    """Batches of the chosen queries, the smallest last.

    All common prefixes are merged and the shortest queries share a row, so that both are tested whatever they cost.
    """
    several = sum(sorted(len(query.tokens) for query in queries)[:3])
    batches = make_batches(queries, _order(queries), replace(layout, row=several, costs=_sharing(layout)), device)
    return sorted(batches, key=lambda batch: -batch.ids.numel())


def make_side_by_side(queries: Sequence[Query], layout: BatchLayout, device: torch.device) -> list[Batch]:
    """Batches of the chosen queries that need masks, in rows of different lengths.

    They test that the model uses the mask and positions of every row and ignores padding; the first row is the
    shortest, so that its mask fits no other row. Only forks are merged: otherwise a first token common to all queries
    would put them all into one row.
    """
    order, trees = _order(queries), list[Tree]()
    while order:
        together = 2 if len(order) > 1 and _fork_late(queries[order[0]], queries[order[1]]) else 1
        trees += grow(queries, order[:together], _sharing(layout))
        order = order[together:]
    return make_uneven(queries, trees, layout, device)


def make_plain_rows(queries: Sequence[Query], layout: BatchLayout, device: torch.device) -> list[Batch]:
    """A batch of the first and the last query in plain rows, the shorter of which is padded."""
    return make_batches(queries, sorted({0, len(queries) - 1}), replace(layout, style="padded"), device)


def _fork_late(first: Query, second: Query) -> bool:
    """Whether the common prefix of two queries has at least half of the tokens of the shorter one."""
    length = min(len(first.tokens), len(second.tokens))
    different = np.flatnonzero(first.tokens[:length] != second.tokens[:length])
    return 2 * (int(different[0]) if len(different) else length) >= length


def _order(queries: Sequence[Query]) -> list[int]:
    return sorted(range(len(queries)), key=lambda index: queries[index].key)


def _sharing(layout: BatchLayout) -> Costs:
    """Costs under which all common prefixes are merged."""
    return Costs(token=1.0, pair=0.0, longest=layout.costs.longest)


def compare(
    passes: PartialForward,
    batches: Sequence[Batch],
    plain: Sequence[Reference],
    tolerance: Tolerance,
    starts: Collection[int],
    *,
    overwrite: bool = True,
) -> PassComparison:
    """Scores `batches` from several start blocks and compares the answers with `plain`.

    Args:
        overwrite: runs a pass over other tokens before blocks are skipped, which then remember the wrong ones.

    Raises:
        Exception: whatever the model raises if it does not accept the mask or skipped blocks.
    """
    entering = loglikelihood = 0.0
    passed = exact = True
    first: list[torch.Tensor] = []
    answered = {owner for batch in batches for owner in batch.owners.tolist()}
    frontier = Frontier(passes)
    for place, start in enumerate(sorted(starts)):
        states = frontier.at(batches, start)
        tally = Tally(len(plain))
        if start and overwrite:
            _other_tokens(passes, batches[-1])
        for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
            head_inputs = passes.head_inputs(batch, start, state)
            if not place:
                first.append(head_inputs)
            exact = exact and torch.equal(head_inputs, first[index])
            tally.add(batch, *predictions(passes, batch, head_inputs))
            for owner in batch.owners.unique().tolist():
                mine = head_inputs[
                    batch.entries[(batch.owners == owner).to(batch.entries.device)].to(head_inputs.device)
                ]
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
    return PassComparison(entering, loglikelihood, passed, exact)


@torch.no_grad()
def first_wrong_replay(passes: PartialForward, batch: Batch, slots: Sequence[WeightSlot]) -> str | None:
    """The name of the first weight whose block is replayed wrongly; None if all are right.

    For some blocks and each of their weights, a pass with one edit is recorded and replayed for another edit. The
    result must equal that of a full pass bit for bit.
    """
    blocks = len(passes.blocks)
    frontier = Frontier(passes)
    batches = [batch]
    for block in sorted({0, blocks // 2, blocks - 1}):
        (state,) = frontier.at(batches, block)
        for slot in _one_each(slot for slot in slots if slot.about.layer == block):
            weight = slot.read()
            ways = passes.recipes(batch, block, state, {slot.module})
            for recipe in (
                ways if block == blocks - 1 else ways[:1]
            ):  # further recipes skip a subset of the same modules
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
    """One slot per module."""
    return list({id(slot.module): slot for slot in slots}.values())


def _other_tokens(passes: PartialForward, batch: Batch) -> None:
    """Runs a full pass over other tokens, which overwrites what a block that is then skipped remembers."""
    rolled = Batch(
        batch.ids.roll(1, -1), batch.depths, batch.ends, batch.scored,
        batch.entries, batch.targets, batch.owners, batch.tokens,
    )  # fmt: skip
    passes.head_inputs(rolled, 0, None)
