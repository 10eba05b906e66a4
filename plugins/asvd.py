"""ASVD: the SVD of a weight whose columns are scaled by the size of its inputs."""

from collections.abc import Sequence
from typing import Annotated

import torch

import lrbench
from lrbench import linalg


class ASVD(lrbench.LowRankReducer):
    """Ŵ S is the truncated SVD of W S, with S = diag(mean|x|^alpha) over the inputs.

    With U_k the leading left singular vectors of W S, Ŵ = U_k (U_kᵀ W S) S⁻¹ = U_k (U_kᵀ W), without a division by S.

    Yuan, Shang, Song, Wu, Yan, Sun, "ASVD: activation-aware singular value decomposition for compressing large language
    models", 2023 (arXiv 2312.05821), section 3.3, without its search for ranks per layer.
    """

    name = "asvd"
    needs = frozenset({"absmean"})
    promises = frozenset({"exact", "monotone", "nested", "idempotent", "homogeneous"})
    one_preparation = True

    alpha: Annotated[float, "power of mean |x|; 0 gives the plain SVD"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 2:
            raise ValueError(f"alpha must be between 0 and 2, not {self.alpha:g}")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One SVD serves every rank."""
        size = context.statistics["absmean"].double()  # (n,)
        # (n,), positive, so that unused inputs are fitted too
        s = size.clamp(min=1e-6 * float(size.max())).pow(self.alpha)
        return self.truncations(linalg.WeightedSpectrum(weight, s))


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [ASVD]
