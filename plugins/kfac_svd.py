"""KFAC-SVD: the low-rank approximation that adds the least loss, with the curvature as a Kronecker product."""

from collections.abc import Sequence
from typing import Annotated

import torch

import lrbench
from lrbench import linalg


class KFACSVD(lrbench.LowRankReducer):
    """Ŵ is the truncated SVD of Lgᵀ W L, mapped back: Lg⁻ᵀ [Lgᵀ W L]_k L⁻¹.

    With x a token's input and g the gradient of the loss in its output, L Lᵀ = H = E[x xᵀ] and Lg Lgᵀ = G = E[g gᵀ].
    To second order a change Δ of W adds the loss ½ tr(G Δ H Δᵀ) = ½ ‖Lgᵀ Δ L‖², which is least at every rank. Since
    [Lgᵀ W L]_k = U_k U_kᵀ Lgᵀ W L, L is not inverted. Both moments are shrunk towards a multiple of the identity, since
    few tokens see few directions.

    Special cases: `svd-llm` has G = I, `fwsvd` G = I and a diagonal in place of H; GFWSVD estimates H and G from the
    gradients of the weight.

    Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015 (arXiv
    1503.05671); as a decomposition in LEMS, ICML 2026 (arXiv 2610.32878).
    """

    name = "kfac-svd"
    needs = frozenset({"second_moment", "output_gradient_moment"})
    promises = frozenset({"exact", "nested", "idempotent", "homogeneous"})
    one_preparation = True

    shrink_inputs: Annotated[float, "added to the diagonal of H, in units of its mean"] = 0.1
    shrink_gradients: Annotated[float, "added to the diagonal of G, in units of its mean; above 0"] = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink_inputs < float("inf"):
            raise ValueError(f"shrink_inputs must be at least 0, not {self.shrink_inputs:g}")
        if not 1e-6 <= self.shrink_gradients < float("inf"):
            raise ValueError(
                f"shrink_gradients must be at least 1e-6, since G is inverted; not {self.shrink_gradients:g}"
            )

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One factorization serves every rank."""
        H, G = context.statistics["second_moment"], context.statistics["output_gradient_moment"]  # (n, n), (m, m)
        unit = G.double() / float(G.diagonal().double().mean())  # its scale changes nothing but the factors' sizes
        L = linalg.root(linalg.shrunk(H, self.shrink_inputs))  # (n, n)
        Lg = torch.linalg.cholesky(linalg.shrunk(unit, self.shrink_gradients))  # (m, m)
        return self.truncations(linalg.TwoSidedSpectrum(weight, L, Lg))


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [KFACSVD]
