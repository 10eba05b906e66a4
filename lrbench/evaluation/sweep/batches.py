"""Packs prefix trees into rows, and rows into batches of about the requested number of tokens."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lrbench.evaluation.sweep.prefix_trees import Costs, Tree, grow
from lrbench.evaluation.sweep.queries import Query

#: `packed`: several trees per row under an explicit mask; `padded`: one plain row, padded on the right, per tree.
Style = Literal["packed", "padded"]

PLAIN_FROM = 256  # tokens; a chain this long is cheaper in a plain row: causal attention is half the work of masked


@dataclass(frozen=True)
class BatchLayout:
    """How batches are made.

    Attributes:
        tokens: the approximate number of tokens per batch.
        row: the minimum length of a row of trees, if there are enough trees to fill it.
        scores: the maximum number of attention scores per head and batch; None: no limit, as the model does not
            materialise them.
        costs: the cost model that decides which queries are merged.
    """

    style: Style
    tokens: int
    row: int
    scores: int | None
    costs: Costs

    def allows(self, length: int) -> bool:
        """Whether several trees may form a row of this length."""
        return length <= min(self.tokens, self.costs.longest) and (self.scores is None or length**2 <= self.scores)

    def rows(self, length: int) -> int:
        """The number of rows of this length per batch."""
        fits = self.tokens // length
        if self.scores is not None:
            fits = min(fits, self.scores // length**2)
        return max(1, fits)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens for one forward pass.

    Attributes:
        ids: (rows, length).
        depths, ends: (rows, length), as in `Tree`, ends as positions in the row; None if rows are plain.
        scored: (positions,), the scored positions, as indices into the flattened rows.
        entries: (predictions,), indices into `scored`.
        targets: (predictions,), target tokens.
        owners: (predictions,), the index of each prediction's query.
        tokens: the number of tokens without padding.
    """

    ids: torch.Tensor
    depths: torch.Tensor | None
    ends: torch.Tensor | None
    scored: torch.Tensor
    entries: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    tokens: int


def make_batches(
    queries: Sequence[Query], order: Sequence[int], layout: BatchLayout, device: torch.device
) -> list[Batch]:
    """Makes batches that score every query in `order` once, the longest rows first.

    Args:
        order: query indices sorted by their tokens, as for `grow`.
    """
    trees = list(grow(queries, order, layout.costs if layout.style == "packed" else None))
    masked = [tree for tree in trees if _is_masked(tree, layout)]
    plain = [tree for tree in trees if not _is_masked(tree, layout)]
    batches = [_batch(queries, rows, False, device) for rows in _one_each(plain, layout)]
    return batches + [_batch(queries, rows, True, device) for rows in _filled(masked, layout)]


def make_uneven(
    queries: Sequence[Query], trees: Iterable[Tree], layout: BatchLayout, device: torch.device
) -> list[Batch]:
    """Makes batches of the trees that need masks, one tree per row, the shortest first."""
    masked = [tree for tree in trees if _is_masked(tree, layout)]
    return [_batch(queries, rows[::-1], True, device) for rows in _one_each(masked, layout)]


def _is_masked(tree: Tree, layout: BatchLayout) -> bool:
    return layout.style == "packed" and not (tree.chain and tree.size >= PLAIN_FROM)


def _one_each(trees: list[Tree], layout: BatchLayout) -> Iterator[list[list[Tree]]]:
    trees = sorted(trees, key=lambda tree: -tree.size)
    start = 0
    while start < len(trees):
        end = start + layout.rows(trees[start].size)
        yield [[tree] for tree in trees[start:end]]
        start = end


def _filled(trees: list[Tree], layout: BatchLayout) -> Iterator[list[list[Tree]]]:
    """Packs trees into batches of rows with the least cost per token.

    Short rows need less attention, long rows less padding. So for each batch several row lengths are tried, all of
    which fit the longest remaining tree.
    """
    left = sorted(trees, key=lambda tree: tree.size)
    while left:
        sizes = [tree.size for tree in left]
        longest, shortest, middle = sizes[-1], sizes[0], sizes[len(sizes) // 2]
        lengths = (longest, longest + shortest, longest + middle, 2 * longest, 3 * longest)
        allowed = {max(length, layout.row) for length in lengths if length == longest or layout.allows(length)}
        tried = [_fill(sizes, length, layout) for length in sorted(allowed)]
        rows = min(tried, key=lambda rows: _cost(rows, sizes, layout.costs))
        yield [[left[place] for place in row] for row in rows]
        taken = {place for row in rows for place in row}
        left = [tree for place, tree in enumerate(left) if place not in taken]


def _fill(sizes: list[int], length: int, layout: BatchLayout) -> list[list[int]]:
    """Rows as indices into `sizes` (ascending): each row takes the longest tree that still fits, repeatedly."""
    rows: list[list[int]] = []
    sizes, places = list(sizes), list(range(len(sizes)))
    for _ in range(layout.rows(length)):
        row, free = [], length
        while sizes and (place := bisect.bisect_right(sizes, free)):
            row.append(places.pop(place - 1))
            free -= sizes.pop(place - 1)
        if not row:
            break
        rows.append(row)
    return rows


def _cost(rows: list[list[int]], sizes: list[int], costs: Costs) -> tuple[float, int]:
    """The cost per token without padding; ties are broken in favour of the fullest row."""
    filled = [sum(sizes[place] for place in row) for row in rows]
    return len(rows) * costs.row(max(filled)) / sum(filled), -max(filled)


def _batch(queries: Sequence[Query], rows: list[list[Tree]], masked: bool, device: torch.device) -> Batch:
    length = max(sum(tree.size for tree in row) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    depths = np.zeros_like(ids)
    ends = np.tile(
        np.arange(1, length + 1), (len(rows), 1)
    )  # a padding position attends to itself, as each position must attend to something
    positions, targets, owners = [], [], []
    for r, row in enumerate(rows):
        at = 0
        for tree in row:
            here = slice(at, at + tree.size)
            ids[r, here], depths[r, here], ends[r, here] = tree.tokens, tree.depths, tree.ends + at
            for index, nodes in tree.query_nodes:
                positions.append(nodes + at + r * length)
                targets.append(queries[index].targets)
                owners.append(np.full(len(nodes), index))
            at += tree.size
    scored, entries = np.unique(np.concatenate(positions), return_inverse=True)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Batch(
        ids=tensor(ids),
        depths=tensor(depths) if masked else None,
        ends=tensor(ends) if masked else None,
        scored=tensor(scored),
        entries=tensor(entries),
        targets=tensor(np.concatenate(targets)),
        owners=torch.from_numpy(np.concatenate(owners)),
        tokens=sum(tree.size for row in rows for tree in row),
    )
