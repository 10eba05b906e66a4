"""SVD-LLM: the truncation that loses least of the layer's output."""

from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class SVDLLM(lrbench.LowRankReducer):
    """Ŵ = U_k (U_kᵀ W), with U_k the leading eigenvectors of W H Wᵀ and H = E[x xᵀ] the second moment of the inputs.

    Of all matrices of rank k this one has the least output error E‖W x − Ŵ x‖². The paper whitens: it truncates the SVD
    of W L, with H = L Lᵀ, and multiplies by L⁻¹. Since U_k U_kᵀ W L is that truncation, the inverse cancels.

    Wang, Zheng, Wan, Zhang, "SVD-LLM: truncation-aware singular value decomposition for large language model
    compression", 2024 (arXiv 2403.07378), section 3.1. Its second stage, an update of the weights, is not done here.
    """

    name = "svd-llm"
    needs = frozenset({"second_moment"})
    promises = frozenset({"exact", "monotone", "nested", "output-optimal", "idempotent", "homogeneous"})
    one_preparation = True

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One eigendecomposition serves every rank."""
        L = context.once(linalg.root, context.statistics["second_moment"])  # (n, n), L Lᵀ = H
        return self.truncations(context.once(linalg.WeightedSpectrum, weight, L))


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """The reducers of this file."""
    return [SVDLLM]
