"""Factors of many blocks: products of two block-diagonal matrices (Monarch), and clusters of rows."""

# ruff: noqa: D102  (what every type of factors answers is documented once, by `Factors`)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from lrbench.reducers.factors.base import Factors, agree, check_positions


@dataclass(frozen=True, eq=False)
class BlockDiagonalProduct(Factors):
    """W ≈ a block-diagonal matrix, a permutation, and a second block-diagonal matrix: a Monarch matrix of rank r.

    The inputs are cut into K runs of I, the outputs dealt out to J hands of L: input k·I + i is the i-th of run k,
    output l·J + j the l-th of hand j. Each pair of a run and a hand is a block of W, stored at rank r:

        W[l·J + j, k·I + i] ≈ Σ_s left[j, l, k, s] · right[k, j, s, i]

    `right` maps each run to r numbers for each hand, `left` each hand's K·r numbers to its outputs. Where a size is no
    multiple of its number of blocks, the last entries of some blocks stand for nothing; they are stored all the same.

    Dao and others, "Monarch: expressive structured matrices", 2022 (arXiv 2204.00595), section 3.1, there with r = 1.

    Attributes:
        left: (J, L, K, r).
        right: (K, J, r, I).
        out_features: how many outputs there are, at most J·L.
        in_features: how many inputs there are, at most K·I.
    """

    left: Tensor
    right: Tensor
    out_features: int
    in_features: int

    @property
    def blocks(self) -> tuple[int, int]:
        """(J, K): groups of outputs, and of inputs."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def block_rank(self) -> int:
        """r, of each block."""
        return self.left.shape[3]

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def rank(self) -> int:
        """At most r for each block, and at most what a row or a column of blocks has room for."""
        J, L, K, r = self.left.shape
        I = self.right.shape[3]  # noqa: E741
        return min(self.out_features, self.in_features, J * min(L, K * r), K * min(I, J * r))

    def apply(self, x: Tensor) -> Tensor:
        J, L, K, r = self.left.shape
        I = self.right.shape[3]  # noqa: E741
        runs = pad(x, (0, K * I - self.in_features)).reshape(-1, K, I).transpose(0, 1)  # (K, tokens, I)
        inner = runs @ self.right.reshape(K, J * r, I).transpose(1, 2)  # (K, tokens, J r)
        dealt = inner.reshape(K, -1, J, r).permute(2, 1, 0, 3).reshape(J, -1, K * r)  # (J, tokens, K r)
        hands = dealt @ self.left.reshape(J, L, K * r).transpose(1, 2)  # (J, tokens, L)
        return hands.permute(1, 2, 0).reshape(*x.shape[:-1], L * J)[..., : self.out_features]

    def dense(self) -> Tensor:
        J, L, K, _ = self.left.shape
        I = self.right.shape[3]  # noqa: E741
        blocks = self.left.permute(0, 2, 1, 3) @ self.right.transpose(0, 1)  # (J, K, L, I)
        return blocks.permute(2, 0, 1, 3).reshape(L * J, K * I)[: self.out_features, : self.in_features]

    def _dimensions(self) -> dict[str, int]:
        return {"left": 4, "right": 4}

    def _check(self) -> None:
        (J, L, K, r), (runs, hands, rank, I) = self.left.shape, self.right.shape  # noqa: E741
        agree(
            (J, K, r) == (hands, runs, rank),
            f"BlockDiagonalProduct: left is {tuple(self.left.shape)}, right {tuple(self.right.shape)}; "
            "left must be (J, L, K, r) and right (K, J, r, I)",
        )
        for name, size, blocks, entries in (("out", self.out_features, J, L), ("in", self.in_features, K, I)):
            agree(
                size >= 1 and entries == -(-size // max(blocks, 1)),
                f"BlockDiagonalProduct: {name}_features is {size}, which {blocks} blocks of {entries} do not fit",
            )


@dataclass(frozen=True, eq=False)
class ClusteredLowRank(Factors):
    """W's rows in clusters, each cluster a product of two thin matrices of its own rank.

    Cluster c has `sizes[c]` rows of W, whose positions follow those of cluster c − 1 in `rows`, and `ranks[c]` rows of
    `bases`. Of a cluster's rows, W[rows_c] ≈ left_c @ bases_c.

    Attributes:
        left: (Σ sizes · ranks,), the left factors (sizes[c], ranks[c]) one after the other, each row by row.
        bases: (Σ ranks, in), the right factors (ranks[c], in) one below the other.
        rows: (out,) each position in W once, cluster after cluster.
        sizes: rows of each cluster.
        ranks: rank of each cluster.
    """

    left: Tensor
    bases: Tensor
    rows: Tensor
    sizes: Sequence[int]
    ranks: Sequence[int]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.bases.shape[1]

    @property
    def rank(self) -> int:
        return min(*self.shape, sum(self.ranks))

    def clusters(self) -> list[tuple[Tensor, Tensor]]:
        """The factors (sizes[c], ranks[c]) and (ranks[c], in) of each cluster."""
        lefts = self.left.split([size * rank for size, rank in zip(self.sizes, self.ranks, strict=True)])
        shapes = zip(lefts, self.sizes, self.ranks, strict=True)
        return list(
            zip((left.view(size, rank) for left, size, rank in shapes), self.bases.split(list(self.ranks)), strict=True)
        )

    @cached_property
    def _order(self) -> Tensor:
        """Where each row of W stands in `rows`."""
        return self.rows.argsort()

    def dense(self) -> Tensor:
        return torch.cat([left @ basis for left, basis in self.clusters()])[self._order]

    def apply(self, x: Tensor) -> Tensor:
        inner = (x @ self.bases.T).split(list(self.ranks), dim=-1)  # (..., ranks[c]) each
        outer = [z @ left.T for z, (left, _) in zip(inner, self.clusters(), strict=True)]  # (..., sizes[c]) each
        return torch.cat(outer, dim=-1).index_select(-1, self._order)

    def _positions(self) -> frozenset[str]:
        return frozenset({"rows"})

    def _dimensions(self) -> dict[str, int]:
        return {"left": 1}

    def _check(self) -> None:
        for name, counts in (("sizes", self.sizes), ("ranks", self.ranks)):
            whole = isinstance(counts, Sequence) and all(type(count) is int and count >= 0 for count in counts)
            agree(whole and len(counts) > 0, f"ClusteredLowRank.{name} must be whole numbers, not {counts!r}")
        sizes, ranks = list(self.sizes), list(self.ranks)
        agree(len(sizes) == len(ranks), f"ClusteredLowRank: {len(sizes)} sizes, but {len(ranks)} ranks")
        check_positions("ClusteredLowRank.rows", self.rows, sum(sizes), sum(sizes))
        agree(
            sum(ranks) == len(self.bases),
            f"ClusteredLowRank: ranks add up to {sum(ranks)}, but bases has {len(self.bases)} rows",
        )
        numbers = sum(size * rank for size, rank in zip(sizes, ranks, strict=True))
        agree(
            numbers == len(self.left),
            f"ClusteredLowRank: sizes and ranks ask for {numbers} numbers in left, which has {len(self.left)}",
        )
