"""Sharing: queries that begin alike become one tree of tokens, in which what they share stands once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lrbench.evaluation.sweep.queries import Query


@dataclass(frozen=True)
class Costs:
    """What a row of L tokens costs in one block, in multiply-adds: `token`·L + `pair`·L².

    Attributes:
        token: numbers in a block, about: each meets each token once.
        pair: for each two positions of a row; the mask saves nothing, what it hides is computed too.
        longest: tokens that a tree may have unless a single query needs more.
    """

    token: float
    pair: float
    longest: int

    def row(self, length: int) -> float:
        """The cost of a row."""
        return length * (self.token + self.pair * length)


@dataclass
class Tree:
    """Queries that share their beginnings. Tokens stand in depth-first order.

    Attributes:
        tokens, depths: of each node.
        ends: of each node, where its subtree ends: node j is i or above i where j <= i < ends[j].
        asked: of each query, its index and the nodes that predict its targets.
        alone: tokens that its queries would have without sharing.
        chain: no node has two children, so that a plain causal row computes the same.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    asked: list[tuple[int, np.ndarray]] = field(default_factory=list)
    alone: int = 0
    chain: bool = True

    @property
    def size(self) -> int:
        """Nodes."""
        return len(self.tokens)


class _Growing:
    """A tree to which queries are added in the order of their tokens: only the last path can still grow."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.segments: list[tuple[int, int]] = []  # start node, depth
        self.path = np.zeros(0, dtype=np.int64)  # nodes of the last query
        self.read = np.zeros(0, dtype=np.int64)  # its tokens
        self.asked: list[tuple[int, np.ndarray]] = []
        self.size = self.alone = 0
        self.chain = True

    def shared(self, query: Query) -> int:
        """How many of its first tokens are here already."""
        n = min(len(self.read), len(query.tokens))
        different = np.flatnonzero(self.read[:n] != query.tokens[:n])
        return int(different[0]) if len(different) else n

    def add(self, index: int, query: Query, shared: int) -> None:
        added = len(query.tokens) - shared
        if added:
            self.chain = self.chain and shared == self.size
            self.tokens.append(query.tokens[shared:])
            self.segments.append((self.size, shared))
            self.path = np.concatenate([self.path[:shared], np.arange(self.size, self.size + added)])
            self.read = query.tokens
            self.size += added
        self.alone += len(query.tokens)
        self.asked.append((index, self.path[len(query.tokens) - len(query.targets) : len(query.tokens)]))

    def done(self) -> Tree:
        tokens = np.concatenate(self.tokens)
        bounds = [start for start, _ in self.segments[1:]] + [self.size]
        depths = np.concatenate(
            [np.arange(depth, depth + end - start) for (start, depth), end in zip(self.segments, bounds, strict=True)]
        )
        return Tree(tokens, depths, _ends(depths), self.asked, self.alone, self.chain)


def grow(queries: Sequence[Query], order: Sequence[int], costs: Costs | None) -> Iterator[Tree]:
    """Trees that together hold every query.

    A query joins the tree of the one before it where that costs less than to stand alone, and no more for each token
    asked than the tree does without it. So choices share their context, and documents their few-shot examples as long
    as the row does not become too long for that.

    Args:
        order: indices into `queries` in the order of their tokens (`Query.key`).
        costs: None: only a query that begins with all of another joins it, which a causal model allows without a mask.
    """
    growing = _Growing()
    for index in order:
        query = queries[index]
        shared = growing.shared(query)
        if growing.size and not _joins(growing, query, shared, costs):
            yield growing.done()
            growing, shared = _Growing(), 0
        growing.add(index, query, shared)
    if growing.size:
        yield growing.done()


def _joins(tree: _Growing, query: Query, shared: int, costs: Costs | None) -> bool:
    alone, size = len(query.tokens), tree.size + len(query.tokens) - shared
    if tree.chain and shared == tree.size:
        return True
    if costs is None:
        return False
    if size == tree.size:
        return True
    together = costs.row(size)
    return (
        shared > 0
        and size <= costs.longest
        and together <= costs.row(tree.size) + costs.row(alone)
        and together * tree.alone <= costs.row(tree.size) * (tree.alone + alone)
    )


def _ends(depths: np.ndarray) -> np.ndarray:
    """Where each subtree ends: at the next node that is not deeper."""
    ends = np.full(len(depths), len(depths))
    starts = np.flatnonzero(np.diff(depths, prepend=-1) != 1)  # of the branches after the first
    last_at = np.full(int(depths.max(initial=0)) + 2, -1)  # depth -> the node of the current path
    begin = 0
    for start in [*starts.tolist(), len(depths)]:
        last_at[depths[begin:start]] = np.arange(begin, start)
        if start < len(depths):
            closed = last_at[depths[start] :]
            ends[closed[closed >= 0]] = start
            last_at[depths[start] :] = -1
        begin = start
    return ends
