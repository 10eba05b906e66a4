"""Bottom: the smallest singular components of W, which a truncated SVD drops."""

import math
from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class Bottom(lrbench.LowRankReducer):
    """W ≈ U_b (U_bᵀ W), with U_b the k *last* of the min(m, n) left singular vectors (right ones, where m > n).

    The opposite of `svd`, and a control for it: of any k components these leave the largest error. Sharma, Ash, Misra,
    "The truth is in there" (LASER), 2023 (arXiv 2312.13558), figure 5, use it to study what truncation removes.
    """

    name = "bottom"
    promises = frozenset({"monotone", "homogeneous"})
    one_preparation = True

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One eigendecomposition, of the Gram matrix of the shorter side, serves every rank."""
        return _Remainders(self, weight)


class _Remainders(lrbench.Prepared):
    def __init__(self, reducer: Bottom, weight: torch.Tensor) -> None:
        self.reducer = reducer
        self.spectrum = linalg.Spectrum(weight)
        self.short = weight if self.spectrum.wide else weight.T  # (s, l)

    def at_rank(self, rank: int) -> lrbench.Factors:
        U = self.spectrum.vectors[:, len(self.short) - rank :].to(self.short.dtype)  # (s, k)
        with linalg.full_precision():
            B = U.T @ self.short  # (k, l)
        return self.reducer.stored(U, B) if self.spectrum.wide else self.reducer.stored(B.T, U.T)  # (m, k), (k, n)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        tails = self.spectrum.errors()  # errors of W without its first 0 ... s components
        # The leading components are the largest, so cancellation is small.
        return [math.sqrt(tails[0] ** 2 - tails[len(self.short) - rank] ** 2) for rank in ranks]


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [Bottom]
