"""Laying trees out in rows, and rows in batches of about as many tokens as fit the budget."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lrbench.evaluate.sweep.queries import Query
from lrbench.evaluate.sweep.trees import Costs, Tree, grow

#: how rows are made: trees packed together under an explicit mask, or a plain row, padded on the right, for each
Style = Literal["packed", "padded"]

PLAIN_FROM = 256  # tokens; a chain this long is cheaper plain: causal attention computes half of what a mask does


@dataclass(frozen=True)
class Layout:
    """How batches are made.

    Attributes:
        tokens: of a batch, about.
        row: length up to which trees are put together, in tokens.
        scores: numbers in the scores of one attention head over a batch; None: the model does not hold them.
        costs: decide what is shared.
    """

    style: Style
    tokens: int
    row: int
    scores: int | None
    costs: Costs

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
    packed = layout.style == "packed"
    trees = list(grow(queries, order, layout.costs if packed else None))
    plain = [tree for tree in trees if not packed or (tree.chain and tree.size >= PLAIN_FROM)]
    masked = [tree for tree in trees if packed and not (tree.chain and tree.size >= PLAIN_FROM)]
    rows = [*_one_each(plain, layout), *_filled(masked, layout)]
    return [_batch(queries, batch, masked, device) for batch, masked in rows]


def _one_each(trees: list[Tree], layout: Layout) -> Iterator[tuple[list[list[Tree]], bool]]:
    trees = sorted(trees, key=lambda tree: -tree.size)
    start = 0
    while start < len(trees):
        end = start + layout.rows(trees[start].size)
        yield [[tree] for tree in trees[start:end]], False
        start = end


def _filled(trees: list[Tree], layout: Layout) -> Iterator[tuple[list[list[Tree]], bool]]:
    """Rows as long as the longest tree left; what remains of each is filled with the longest trees that fit."""
    trees = sorted(trees, key=lambda tree: tree.size)
    sizes = [tree.size for tree in trees]
    left = sum(sizes)
    while trees:
        length = max(sizes[-1], layout.row)
        rows: list[list[Tree]] = []
        for _ in range(min(layout.rows(length), -(-left // length))):
            row, free = [], length
            while trees and (place := bisect.bisect_right(sizes, free)):
                row.append(trees.pop(place - 1))
                free -= sizes.pop(place - 1)
            if row:
                rows.append(row)
                left -= length - free
        yield rows, True


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
