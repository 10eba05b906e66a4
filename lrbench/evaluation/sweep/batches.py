"""Laying trees out in rows, and rows in batches of about as many tokens as fit the budget."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lrbench.evaluation.sweep.prefix_trees import Costs, Tree, grow
from lrbench.evaluation.sweep.queries import Query

#: how rows are made: trees packed together under an explicit mask, or a plain row, padded on the right, for each
Style = Literal["packed", "padded"]

PLAIN_FROM = 256  # tokens; a chain this long is cheaper plain: causal attention computes half of what a mask does


@dataclass(frozen=True)
class Layout:
    """How batches are made.

    Attributes:
        tokens: of a batch, about.
        row: tokens that a row of trees has at least, if it can be filled.
        scores: numbers in the scores of one attention head over a batch; None: the model does not hold them.
        costs: decide what is shared.
    """

    style: Style
    tokens: int
    row: int
    scores: int | None
    costs: Costs

    def allows(self, length: int) -> bool:
        """Whether trees may be put together to so long a row."""
        return length <= min(self.tokens, self.costs.longest) and (self.scores is None or length**2 <= self.scores)

    def rows(self, length: int) -> int:
        """How many rows of a length a batch has."""
        fits = self.tokens // length
        if self.scores is not None:
            fits = min(fits, self.scores // length**2)
        return max(1, fits)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens that go through the model together.

    Attributes:
        ids: (rows, length).
        depths, ends: (rows, length), as in `Tree`, with ends within the row; None where rows are plain.
        asked: (positions,), indices into the flattened rows at which something is predicted.
        entries: (predictions,), indices into `asked`.
        targets: (predictions,), the tokens to be predicted.
        owners: (predictions,), the queries to which the predictions belong.
        tokens: those that are not padding.
    """

    ids: torch.Tensor
    depths: torch.Tensor | None
    ends: torch.Tensor | None
    asked: torch.Tensor
    entries: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    tokens: int


def make_batches(queries: Sequence[Query], order: Sequence[int], layout: Layout, device: torch.device) -> list[Batch]:
    """Batches that ask every query once, the longest rows first.

    Args:
        order: of the queries' tokens, as for `grow`; queries that are not in it are left out.
    """
    trees = list(grow(queries, order, layout.costs if layout.style == "packed" else None))
    masked = [tree for tree in trees if _is_masked(tree, layout)]
    plain = [tree for tree in trees if not _is_masked(tree, layout)]
    batches = [_batch(queries, rows, False, device) for rows in _one_each(plain, layout)]
    return batches + [_batch(queries, rows, True, device) for rows in _filled(masked, layout)]


def make_uneven(queries: Sequence[Query], trees: Iterable[Tree], layout: Layout, device: torch.device) -> list[Batch]:
    """Batches of those trees that stand under masks, each in a row of its own, the shortest first."""
    masked = [tree for tree in trees if _is_masked(tree, layout)]
    return [_batch(queries, rows[::-1], True, device) for rows in _one_each(masked, layout)]


def _is_masked(tree: Tree, layout: Layout) -> bool:
    return layout.style == "packed" and not (tree.chain and tree.size >= PLAIN_FROM)


def _one_each(trees: list[Tree], layout: Layout) -> Iterator[list[list[Tree]]]:
    trees = sorted(trees, key=lambda tree: -tree.size)
    start = 0
    while start < len(trees):
        end = start + layout.rows(trees[start].size)
        yield [[tree] for tree in trees[start:end]]
        start = end


def _filled(trees: list[Tree], layout: Layout) -> Iterator[list[list[Tree]]]:
    """Batches of rows that hold one tree each or several, as many as make its tokens cost least.

    Short rows cost little attention, and long ones are filled better. So each batch is tried with several lengths that
    the longest tree left fits into.
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


def _fill(sizes: list[int], length: int, layout: Layout) -> list[list[int]]:
    """Rows of places in `sizes`, which ascend: in each row the longest first, then what is longest of what fits."""
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
    """Of rows for each token that is no padding; of those that cost the same, the fullest come first."""
    filled = [sum(sizes[place] for place in row) for row in rows]
    return len(rows) * costs.row(max(filled)) / sum(filled), -max(filled)


def _batch(queries: Sequence[Query], rows: list[list[Tree]], masked: bool, device: torch.device) -> Batch:
    length = max(sum(tree.size for tree in row) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    depths = np.zeros_like(ids)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))  # padding sees itself, as every position must see one
    positions, targets, owners = [], [], []
    for r, row in enumerate(rows):
        at = 0
        for tree in row:
            here = slice(at, at + tree.size)
            ids[r, here], depths[r, here], ends[r, here] = tree.tokens, tree.depths, tree.ends + at
            for index, nodes in tree.asked:
                positions.append(nodes + at + r * length)
                targets.append(queries[index].targets)
                owners.append(np.full(len(nodes), index))
            at += tree.size
    asked, entries = np.unique(np.concatenate(positions), return_inverse=True)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Batch(
        ids=tensor(ids),
        depths=tensor(depths) if masked else None,
        ends=tensor(ends) if masked else None,
        asked=tensor(asked),
        entries=tensor(entries),
        targets=tensor(np.concatenate(targets)),
        owners=torch.from_numpy(np.concatenate(owners)),
        tokens=sum(tree.size for row in rows for tree in row),
    )
