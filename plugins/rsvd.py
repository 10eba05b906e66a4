"""Randomized singular value decomposition (Halko, Martinsson, Tropp, 2011)."""

from collections.abc import Sequence
from typing import Annotated

import torch

import lrbench
from lrbench import linalg


class RandomizedSVD(lrbench.LowRankReducer):
    """W ≈ Q (QᵀW)_k, with Q an orthonormal basis of the range of (W Wᵀ)^q W Ω, and (·)_k the truncated SVD.

    Halko, Martinsson, Tropp, "Finding structure with randomness", 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1.
    With oversampling p >= 2 and no power iteration (q = 0) the expected Frobenius error ‖W − Q QᵀW‖, before truncation
    to rank k, is at most sqrt(1 + k/(p−1)) times the optimum of rank k (theorem 10.5, for k >= 2).
    `oversample: 0, power_iterations: 2` is LASER's own `torch.svd_lowrank(q=k, niter=2)`.
    """

    name = "rsvd"
    promises = frozenset({"exact", "monotone", "idempotent", "homogeneous"})
    randomized = True

    oversample: Annotated[int, "sketch columns beyond the rank"] = 8
    power_iterations: Annotated[int, "how often W Wᵀ is applied to the sketch"] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversample < 0 or self.power_iterations < 0:
            raise ValueError("oversample and power_iterations must not be negative")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One sketch, of the largest rank, serves every rank."""
        return _Sketched(weight, max(ranks), self, context.generator)


class _Sketched(lrbench.Prepared):
    """One sketch serves every rank: rank k uses what its first k + p columns span."""

    def __init__(self, weight: torch.Tensor, rank: int, reducer: RandomizedSVD, generator: torch.Generator) -> None:
        self.reducer, self.oversample, self.size = reducer, reducer.oversample, min(weight.shape)
        columns = min(rank + reducer.oversample, self.size)  # l
        self.Q = linalg.range_finder(weight, columns, reducer.power_iterations, generator)  # (m, l)
        with linalg.full_precision():
            self.B = self.Q.T @ weight  # (l, n)
        self.G = linalg.gram(self.B)  # (l, l)

    def at_rank(self, rank: int) -> lrbench.Factors:
        columns = min(rank + self.oversample, self.size)
        Q, B = self.Q[:, :columns], self.B[:columns]  # (m, l), (l, n)
        U = linalg.Spectrum(B, self.G[:columns, :columns], rank=rank).leading(rank).to(B.dtype)  # (l, k)
        with linalg.full_precision():
            return self.reducer.stored(Q @ U, U.T @ B)  # (m, k), (k, n)


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """The reducers of this file."""
    return [RandomizedSVD]
