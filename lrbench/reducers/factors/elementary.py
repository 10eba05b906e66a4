"""Elementary factors: products of thin matrices, rows and columns of W, and the dense matrix."""

# ruff: noqa: D102  (inherited methods are documented in `Factors`)

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lrbench.reducers.factors.base import Factors, check_positions, require


@dataclass(frozen=True, eq=False)
class LowRank(Factors):
    """W ≈ left @ right.

    Attributes:
        left: (out, k).
        right: (k, in).
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def dense(self) -> Tensor:
        return self.left @ self.right

    def apply(self, x: Tensor) -> Tensor:
        return (x @ self.right.T) @ self.left.T  # (..., in) -> (..., k) -> (..., out)

    def _check(self) -> None:
        left, right = tuple(self.left.shape), tuple(self.right.shape)
        require(left[1] == right[0], f"LowRank: left is {left} and right is {right}; the inner sizes differ")


@dataclass(frozen=True, eq=False)
class Interpolative(Factors):
    """Ŵ as k of its rows (or columns) and coefficients that combine them into the others.

    In an interpolative decomposition the skeleton consists of rows or columns of W. In pivoted storage of a low-rank
    product it consists of rows or columns of the *product*. The identity part of the coefficients is not stored.

    Attributes:
        skeleton: (k, in), rows of Ŵ, for side "rows"; (out, k), columns of Ŵ, for side "columns".
        indices: (k,) positions of the skeleton in Ŵ.
        coefficients: (out - k, k) for the other rows, or (k, in - k) for the other columns, in ascending order.
        side: "rows" or "columns".
    """

    skeleton: Tensor
    indices: Tensor
    coefficients: Tensor
    side: Literal["rows", "columns"]

    @property
    def shape(self) -> tuple[int, int]:
        rows = self.side == "rows"
        size = self.rank + self.coefficients.shape[0 if rows else 1]
        return (size, self.skeleton.shape[1]) if rows else (self.skeleton.shape[0], size)

    @property
    def rank(self) -> int:
        return self.skeleton.shape[0 if self.side == "rows" else 1]

    @cached_property
    def _others(self) -> Tensor:
        """Positions outside the skeleton, ascending."""
        size = self.shape[0 if self.side == "rows" else 1]
        outside = torch.ones(size, dtype=torch.bool, device=self.indices.device)
        outside[self.indices.long()] = False
        return outside.nonzero().flatten()

    @cached_property
    def _order(self) -> Tensor:
        """The position of each row (or column) of Ŵ in the concatenation of skeleton and others."""
        return torch.cat([self.indices.long(), self._others]).argsort()

    def dense(self) -> Tensor:
        if self.side == "rows":
            return torch.cat([self.skeleton, self.coefficients @ self.skeleton])[self._order]
        return torch.cat([self.skeleton, self.skeleton @ self.coefficients], dim=1)[:, self._order]

    def apply(self, x: Tensor) -> Tensor:
        if self.side == "rows":
            kept = x @ self.skeleton.T  # (..., k)
            return torch.cat([kept, kept @ self.coefficients.T], dim=-1).index_select(-1, self._order)
        kept = x.index_select(-1, self.indices) + x.index_select(-1, self._others) @ self.coefficients.T  # (..., k)
        return kept @ self.skeleton.T

    def _positions(self) -> frozenset[str]:
        return frozenset({"indices"})

    def _check(self) -> None:
        require(self.side in ("rows", "columns"), f"Interpolative: side is {self.side!r}, not 'rows' or 'columns'")
        k, rows = self.rank, self.side == "rows"
        inner, size = self.coefficients.shape[1 if rows else 0], self.shape[0 if rows else 1]
        require(inner == k, f"Interpolative: a skeleton of {k} {self.side}, but coefficients for {inner}")
        check_positions("Interpolative.indices", self.indices, k, size)


@dataclass(frozen=True, eq=False)
class CUR(Factors):
    """W ≈ C U R, with columns C and rows R of W.

    Attributes:
        C: (out, c), columns of W.
        U: (c, r).
        R: (r, in), rows of W.
        columns: (c,) positions of C in W.
        rows: (r,) positions of R in W.
    """

    C: Tensor
    U: Tensor
    R: Tensor
    columns: Tensor
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.C.shape[0], self.R.shape[1]

    @property
    def rank(self) -> int:
        return min(self.C.shape[1], self.R.shape[0])

    def dense(self) -> Tensor:
        return (self.C @ self.U) @ self.R

    def apply(self, x: Tensor) -> Tensor:
        return ((x @ self.R.T) @ self.U.T) @ self.C.T  # (..., in) -> (..., r) -> (..., c) -> (..., out)

    def _positions(self) -> frozenset[str]:
        return frozenset({"columns", "rows"})

    def _check(self) -> None:
        C, U, R = tuple(self.C.shape), tuple(self.U.shape), tuple(self.R.shape)
        require(C[1] == U[0] and U[1] == R[0], f"CUR: C is {C}, U is {U} and R is {R}; the inner sizes differ")
        check_positions("CUR.columns", self.columns, C[1], R[1])
        check_positions("CUR.rows", self.rows, R[0], C[0])


@dataclass(frozen=True, eq=False)
class ColumnSubset(Factors):
    """W ≈ k of its columns, scaled, and zeros elsewhere: the other inputs are dropped.

    Attributes:
        columns: (out, k), including the scale.
        indices: (k,) positions of the columns in W.
        in_features: the number of inputs.
    """

    columns: Tensor
    indices: Tensor
    in_features: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.columns.shape[0], self.in_features

    @property
    def rank(self) -> int:
        return self.columns.shape[1]

    def dense(self) -> Tensor:
        return self.columns.new_zeros(self.shape).index_copy(1, self.indices.long(), self.columns)

    def apply(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.indices) @ self.columns.T  # (..., k) -> (..., out)

    def _positions(self) -> frozenset[str]:
        return frozenset({"indices"})

    def _check(self) -> None:
        check_positions("ColumnSubset.indices", self.indices, self.rank, self.in_features)


@dataclass(frozen=True, eq=False)
class Dense(Factors):
    """W ≈ a dense matrix, for methods whose result has no low-rank structure.

    Attributes:
        matrix: (out, in).
    """

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def rank(self) -> int:
        return min(self.shape)

    def dense(self) -> Tensor:
        return self.matrix

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T
