"""Factors of many blocks: products of two block-diagonal matrices (Monarch), and clusters of rows."""

# ruff: noqa: D102  (inherited methods are documented in `Factors`)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from lrbench.reducers.factors.base import Factors, check_positions, require


@dataclass(frozen=True, eq=False)
class BlockDiagonalProduct(Factors):
    """W ≈ a block-diagonal matrix, a permutation, and a second block-diagonal matrix: a Monarch matrix of rank r.

    The inputs form K groups of I consecutive ones, the outputs J groups of L with stride J: input k·I + i is the i-th
    of input group k, output l·J + j the l-th of output group j. Each pair of groups is a block of W of rank r:

        W[l·J + j, k·I + i] ≈ Σ_s left[j, l, k, s] · right[k, j, s, i]

    `right` maps each input group to r values per output group, `left` the K·r values of each output group to its
    outputs. If a size is not a multiple of its number of groups, some blocks are padded; the padding is stored.

    Dao and others, "Monarch: expressive structured matrices", 2022 (arXiv 2204.00595), section 3.1, with r = 1.

    Attributes:
        left: (J, L, K, r).
        right: (K, J, r, I).
        out_features: the number of outputs, at most J·L.
        in_features: the number of inputs, at most K·I.
    """

    left: Tensor
    right: Tensor
    out_features: int
    in_features: int

    @property
    def blocks(self) -> tuple[int, int]:
        """(J, K): the number of output groups and of input groups."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def block_rank(self) -> int:
        """r, the rank of each block."""
        return self.left.shape[3]

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def rank(self) -> int:
        """An upper bound: each block has rank r, and each row or column of blocks at most its size."""
        J, L, K, r = self.left.shape
        I = self.right.shape[3]  # noqa: E741
        return min(self.out_features, self.in_features, J * min(L, K * r), K * min(I, J * r))

    def apply(self, x: Tensor) -> Tensor:
        J, L, K, r = self.left.shape
        I = self.right.shape[3]  # noqa: E741
        inputs = pad(x, (0, K * I - self.in_features)).reshape(-1, K, I).transpose(0, 1)  # (K, tokens, I)
        inner = inputs @ self.right.reshape(K, J * r, I).transpose(1, 2)  # (K, tokens, J r)
        inner = inner.reshape(K, -1, J, r).permute(2, 1, 0, 3).reshape(J, -1, K * r)  # (J, tokens, K r)
        outputs = inner @ self.left.reshape(J, L, K * r).transpose(1, 2)  # (J, tokens, L)
        return outputs.permute(1, 2, 0).reshape(*x.shape[:-1], L * J)[..., : self.out_features]

    def dense(self) -> Tensor:
        J, L, K, _ = self.left.shape
        I = self.right.shape[3]  # noqa: E741
        blocks = self.left.permute(0, 2, 1, 3) @ self.right.transpose(0, 1)  # (J, K, L, I)
        return blocks.permute(2, 0, 1, 3).reshape(L * J, K * I)[: self.out_features, : self.in_features]

    def _dimensions(self) -> dict[str, int]:
        return {"left": 4, "right": 4}

    def _check(self) -> None:
        (J, L, K, r), (right_K, right_J, right_r, I) = self.left.shape, self.right.shape  # noqa: E741
        require(
            (J, K, r) == (right_J, right_K, right_r),
            f"BlockDiagonalProduct: left is {tuple(self.left.shape)}, right {tuple(self.right.shape)}; "
            "left must be (J, L, K, r) and right (K, J, r, I)",
        )
        for name, size, blocks, entries in (("out", self.out_features, J, L), ("in", self.in_features, K, I)):
            require(
                size >= 1 and entries == -(-size // max(blocks, 1)),
                f"BlockDiagonalProduct: {name}_features is {size}, which does not fit {blocks} groups of {entries}",
            )


@dataclass(frozen=True, eq=False)
class ClusteredLowRank(Factors):
    """Clusters of W's rows, each approximated by a product of two thin matrices: W[rows_c] ≈ left_c @ bases_c.

    Attributes:
        left: (Σ sizes[c] · ranks[c],), the left factors (sizes[c], ranks[c]), flattened by rows and concatenated.
        bases: (Σ ranks[c], in), the right factors (ranks[c], in), concatenated.
        rows: (out,) the positions in W of the rows of each cluster, concatenated.
        sizes: the number of rows of each cluster.
        ranks: the rank of each cluster.
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
        """(out,) the position in `rows` of each row of W."""
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
            require(whole and len(counts) > 0, f"ClusteredLowRank.{name} must be whole numbers, not {counts!r}")
        sizes, ranks = list(self.sizes), list(self.ranks)
        require(len(sizes) == len(ranks), f"ClusteredLowRank: {len(sizes)} sizes, but {len(ranks)} ranks")
        check_positions("ClusteredLowRank.rows", self.rows, sum(sizes), sum(sizes))
        require(
            sum(ranks) == len(self.bases),
            f"ClusteredLowRank: ranks add up to {sum(ranks)}, but bases has {len(self.bases)} rows",
        )
        expected = sum(size * rank for size, rank in zip(sizes, ranks, strict=True))
        require(
            expected == len(self.left),
            f"ClusteredLowRank: sizes and ranks imply {expected} entries in left, which has {len(self.left)}",
        )
