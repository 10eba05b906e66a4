"""Truncated singular value decomposition: the best approximation of a rank (Eckart, Young, 1936)."""

from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class SVD(lrbench.LowRankReducer):
    """W ≈ U_k (U_kᵀ W), with U_k the k leading left singular vectors (right ones, on the other side, where m > n).

    Eckart, Young, "The approximation of one matrix by another of lower rank", 1936. Sharma, Ash, Misra, "The truth is
    in there" (LASER), 2023 (arXiv 2312.13558), uses it on language models.
    """

    name = "svd"
    promises = frozenset(
        {"exact", "monotone", "optimal", "nested", "transposes", "permutes", "idempotent", "homogeneous"}
    )
    one_preparation = True  # except an SVD of W, computed only if a relative error is below linalg.GATE

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One eigendecomposition, of the Gram matrix of the shorter side, serves every rank."""
        return _Truncations(self, weight, max(ranks), context)


class _Truncations(lrbench.Prepared):
    def __init__(self, reducer: SVD, weight: torch.Tensor, rank: int, context: lrbench.Context) -> None:
        self.reducer = reducer
        self.weight = weight
        self.spectrum = linalg.Spectrum(weight, rank=rank, once=context.once)

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        U = self.spectrum.leading(rank).to(self.weight.dtype)  # (m, k), or V_k (n, k) where m > n
        B = self.spectrum.coordinates(rank)  # U_kᵀ W (k, n), or V_kᵀ Wᵀ (k, m)
        return (U, B) if self.spectrum.wide else (B.T, U.T)  # (m, k), (k, n)

    def at_rank(self, rank: int) -> lrbench.Factors:
        return self.reducer.stored(*self.factors(rank))

    def errors(self, ranks: Sequence[int]) -> list[float]:
        errors = self.spectrum.errors()
        return [errors[rank] for rank in ranks]

    def predicted_losses(
        self, ranks: Sequence[int], second_moment: torch.Tensor, output_gradient_moment: torch.Tensor
    ) -> list[float]:
        left, right = self.factors(max(ranks))
        losses = linalg.predicted_losses(self.weight, left, right, second_moment, output_gradient_moment)
        return [losses[rank] for rank in ranks]

    def chosen(self, rank: int) -> dict[str, str]:
        return {"algorithm": "gram" if self.spectrum.trusts(rank) else "svd"}


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [SVD]
