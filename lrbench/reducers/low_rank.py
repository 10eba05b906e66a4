"""What methods share whose result is a product of two thin matrices: how it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from lrbench.linalg import skeleton_rows
from lrbench.reducers.base import Prepared, Reducer
from lrbench.reducers.factors import Interpolative, LowRank


class Truncated(Protocol):
    """What has a product of each rank, as `linalg.WeightedSpectrum`."""

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        """Left (out, k) and right (k, in)."""

    def errors(self) -> list[float]:
        """‖W − left · right‖_F at k = 0 ... min(out, in)."""


class LowRankReducer(Reducer):
    """A reducer that finds W ≈ left · right, of rank k, and leaves to `store` how that product is stored.

    - `store: factors`: left and right themselves, k(m + n) numbers; more than W has from k = mn / (m + n) on.
    - `store: pivoted`: as k rows (or columns) of the product, and the others as their combinations: k(m + n − k)
      numbers, never more than W has. In exact arithmetic the product is the same; rounding skeleton and coefficients
      costs more digits than rounding two factors, and that is in the relative error as it is measured.

    Zhao, Zhang, Cannistraci, "Pivoting factorization", 2025 (arXiv 2501.19090), store low-rank layers so (PIFA).

    A subclass that has a `__post_init__` calls this one's.
    """

    store: Annotated[
        Literal["factors", "pivoted"], "two thin factors, or rows of their product and coefficients for the rest"
    ] = "factors"

    def __post_init__(self) -> None:
        if self.store not in ("factors", "pivoted"):
            raise ValueError(f"store must be factors or pivoted, not {self.store!r}")

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """k(m + n), or pivoted k(m + n − k)."""
        return rank * (sum(shape) - (rank if self.store == "pivoted" else 0))

    def stored(self, left: Tensor, right: Tensor, dtype: torch.dtype | None = None) -> LowRank | Interpolative:
        """The product of left (out, k) and right (k, in) as `store` says, k <= min(out, in).

        Args:
            left: (out, k).
            right: (k, in).
            dtype: of the factors; that of `right` where absent.
        """
        dtype = right.dtype if dtype is None else dtype
        if self.store == "pivoted":
            return pivoted(left, right, dtype)
        return LowRank(left.to(dtype).contiguous(), right.to(dtype).contiguous())

    def truncations(self, spectrum: Truncated) -> Prepared:
        """What `prepare` returns where one factorization has the product of each rank, to be stored as `store` says."""
        return _Truncations(self, spectrum)


class _Truncations(Prepared):
    def __init__(self, reducer: LowRankReducer, spectrum: Truncated) -> None:
        self._reducer, self._spectrum = reducer, spectrum

    def at_rank(self, rank: int) -> LowRank | Interpolative:
        left, right = self._spectrum.factors(rank)  # (out, k), (k, in)
        return self._reducer.stored(left, right)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        errors = self._spectrum.errors()
        return [errors[rank] for rank in ranks]


def pivoted(left: Tensor, right: Tensor, dtype: torch.dtype) -> Interpolative:
    """The product of left (out, k) and right (k, in), k <= min(out, in), as its own rows or columns.

    The skeleton is of the shorter side: only the entries outside it pass through the coefficients and so lose more than
    one rounding, and of the shorter side fewer are outside. All is computed in float64 and rounded once.

    Args:
        left: (out, k); may be rank-deficient or zero.
        right: (k, in); likewise.
        dtype: of the result.
    """
    left, right = left.double(), right.double()
    if left.shape[0] <= right.shape[1]:
        rows, coefficients = skeleton_rows(left)
        skeleton = left.index_select(0, rows) @ right  # (k, in)
        return Interpolative(skeleton.to(dtype), rows, coefficients.to(dtype), side="rows")
    columns, coefficients = skeleton_rows(right.T)
    skeleton = left @ right.index_select(1, columns)  # (out, k)
    return Interpolative(skeleton.to(dtype), columns, coefficients.T.to(dtype).contiguous(), side="columns")
