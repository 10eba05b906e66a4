"""Prefix trees: queries with a common prefix become one tree of tokens that holds the prefix once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lrbench.evaluation.sweep.queries import Query


@dataclass(frozen=True)
class Costs:
    """The cost of a row of L tokens in one block, in multiply-adds: `token`·L + `pair`·L².

    Attributes:
        token: about the number of parameters in a block.
        pair: multiply-adds of attention per pair of positions; masked pairs are computed too.
        longest: the maximum number of tokens in a tree of several queries.
    """

    token: float
    pair: float
    longest: int

    def row(self, length: int) -> float:
        """The cost of a row."""
        return length * (self.token + self.pair * length)


@dataclass
class Tree:
    """Queries merged at their common prefixes, with tokens in depth-first order.

    Attributes:
        tokens, depths: (nodes,), the token and depth of each node.
        ends: (nodes,), the end of each node's subtree: node j is i or an ancestor of i iff j <= i < ends[j].
        query_nodes: per query, its index and the nodes that predict its targets.
        alone: the total number of tokens of its queries before merging.
        chain: whether no node has two children, so that a plain causal row computes the same.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    query_nodes: list[tuple[int, np.ndarray]] = field(default_factory=list)
    alone: int = 0
    chain: bool = True

    @property
    def size(self) -> int:
        """The number of nodes."""
        return len(self.tokens)


class _Growing:
    """A tree under construction. Queries are added in token order, so only the last path can still grow."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.segments: list[tuple[int, int]] = []  # start node, depth
        self.path = np.zeros(0, dtype=np.int64)  # nodes of the last query
        self.read = np.zeros(0, dtype=np.int64)  # its tokens
        self.query_nodes: list[tuple[int, np.ndarray]] = []
        self.size = self.alone = 0
        self.chain = True

    def shared(self, query: Query) -> int:
        """The length of the prefix that the query has in common with the last path."""
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
        self.query_nodes.append((index, self.path[len(query.tokens) - len(query.targets) : len(query.tokens)]))

    def done(self) -> Tree:
        tokens = np.concatenate(self.tokens)
        bounds = [start for start, _ in self.segments[1:]] + [self.size]
        depths = np.concatenate(
            [np.arange(depth, depth + end - start) for (start, depth), end in zip(self.segments, bounds, strict=True)]
        )
        return Tree(tokens, depths, _ends(depths), self.query_nodes, self.alone, self.chain)


def grow(queries: Sequence[Query], order: Sequence[int], costs: Costs | None) -> Iterator[Tree]:
    """Yields trees that together hold every query.

    A query joins the tree of its predecessor if that costs less than a row of its own, and no more per query token
    than the tree costs without it. So the choices of a document are merged at its context, and documents at their
    few-shot examples, unless the row becomes too long.

    Args:
        order: indices into `queries`, sorted by `Query.key`.
        costs: None: merge only a query that extends the whole of another, which needs no mask in a causal model.
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
    """The end of each subtree: the next node that is not deeper."""
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
