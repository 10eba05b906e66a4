"""SVD-LLM: the low-rank approximation with the smallest output error."""

from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class SVDLLM(lrbench.LowRankReducer):
    """Ŵ = U_k (U_kᵀ W), with U_k the leading eigenvectors of W H Wᵀ and H = E[x xᵀ] the second moment of the inputs.

    Of all matrices of rank k it has the smallest output error E‖W x − Ŵ x‖². The paper truncates the SVD of W L,
    with H = L Lᵀ, and multiplies by L⁻¹. Since the truncation is U_k U_kᵀ W L, the inverse cancels.

    Wang, Zheng, Wan, Zhang, "SVD-LLM: truncation-aware singular value decomposition for large language model
    compression", 2024 (arXiv 2403.07378), section 3.1, without its second stage, an update of the weights.
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
    """Registers the reducer of this file."""
    return [SVDLLM]
