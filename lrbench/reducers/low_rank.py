"""The base class of methods whose result is a product of two thin matrices, and the ways to store the product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from lrbench.linalg import predicted_losses, skeleton_rows
from lrbench.reducers.base import Prepared, Reducer
from lrbench.reducers.factors import Interpolative, LowRank


class TruncatedFactorization(Protocol):
    """A factorization that gives a product of every rank, such as `linalg.WeightedSpectrum`."""

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        """Left (out, k) and right (k, in): the first columns and rows of those of full rank, whose product is W."""

    def errors(self) -> list[float]:
        """‖W − left · right‖_F at k = 0 ... min(out, in)."""


class LowRankReducer(Reducer):
    """A reducer that computes W ≈ left · right of rank k; the parameter `store` selects how the product is stored.

    - `store: factors`: left and right, k(m + n) parameters; more than W has if k > mn / (m + n).
    - `store: pivoted`: k rows (or columns) of the product, and coefficients that combine them into the others:
      k(m + n − k) parameters, never more than W has. In exact arithmetic the product is the same; rounding skeleton and
      coefficients loses more digits than rounding two factors, which the measured relative error includes.

    Pivoted storage is PIFA: Zhao, Zhang, Cannistraci, "Pivoting factorization", 2025 (arXiv 2501.19090).

    A subclass with a `__post_init__` must call this one.
    """

    store: Annotated[
        Literal["factors", "pivoted"], "two thin factors, or rows of their product and coefficients for the rest"
    ] = "factors"

    def __post_init__(self) -> None:
        if self.store not in ("factors", "pivoted"):
            raise ValueError(f"store must be factors or pivoted, not {self.store!r}")

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """k(m + n), or k(m + n − k) if pivoted."""
        return rank * (sum(shape) - (rank if self.store == "pivoted" else 0))

    def stored(self, left: Tensor, right: Tensor, dtype: torch.dtype | None = None) -> LowRank | Interpolative:
        """The product of left and right, stored as `store` selects, k <= min(out, in).

        Args:
            left: (out, k).
            right: (k, in).
            dtype: the factors' dtype; by default that of `right`.
        """
        dtype = right.dtype if dtype is None else dtype
        if self.store == "pivoted":
            return pivoted(left, right, dtype)
        return LowRank(left.to(dtype).contiguous(), right.to(dtype).contiguous())

    def truncations(self, spectrum: TruncatedFactorization) -> Prepared:
        """The result of `prepare` if one factorization gives the product of every rank; `store` selects its storage."""
        return _Truncations(self, spectrum)


class _Truncations(Prepared):
    def __init__(self, reducer: LowRankReducer, spectrum: TruncatedFactorization) -> None:
        self._reducer, self._spectrum = reducer, spectrum

    def at_rank(self, rank: int) -> LowRank | Interpolative:
        left, right = self._spectrum.factors(rank)  # (out, k), (k, in)
        return self._reducer.stored(left, right)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        errors = self._spectrum.errors()
        return [errors[rank] for rank in ranks]

    def predicted_losses(
        self, ranks: Sequence[int], second_moment: Tensor, output_gradient_moment: Tensor
    ) -> list[float]:
        left, right = self._spectrum.factors(len(self._spectrum.errors()) - 1)  # (out, s), (s, in), s = min(out, in)
        weight = left.double() @ right.double()
        losses = predicted_losses(weight, left, right, second_moment, output_gradient_moment)
        return [losses[rank] for rank in ranks]


def pivoted(left: Tensor, right: Tensor, dtype: torch.dtype) -> Interpolative:
    """The product of left (out, k) and right (k, in), k <= min(out, in), as k of its rows or columns and coefficients.

    The skeleton is taken along the shorter side, where fewer entries are outside it: only those are rounded more than
    once. All is computed in float64 and rounded at the end.

    Args:
        left: (out, k); may be rank-deficient or zero.
        right: (k, in); likewise.
        dtype: the dtype of the result.
    """
    left, right = left.double(), right.double()
    if left.shape[0] <= right.shape[1]:
        rows, coefficients = skeleton_rows(left)
        skeleton = left.index_select(0, rows) @ right  # (k, in)
        return Interpolative(skeleton.to(dtype), rows, coefficients.to(dtype), side="rows")
    columns, coefficients = skeleton_rows(right.T)
    skeleton = left @ right.index_select(1, columns)  # (out, k)
    return Interpolative(skeleton.to(dtype), columns, coefficients.T.to(dtype).contiguous(), side="columns")
