"""FWSVD: the SVD of a weight whose inputs are weighted by the Fisher information."""

from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class FisherWeightedSVD(lrbench.LowRankReducer):
    """Ŵ D is the truncated SVD of W D, with D = diag(sqrt(F_j)) and F_j = Σ_i E[(∂loss/∂W_ij)²].

    The paper writes a layer as Z = X W and sums the Fisher information over each row of W, that is, over the outputs
    of an input; in y = W x, over each column. As in ASVD, there is no division by D. It is `kfac-svd` with G = I and D²
    in place of H. GFWSVD (Chekalina et al., 2025, arXiv 2505.17974) is `kfac-svd` with H and G estimated from the
    gradients of the weight.

    Hsu, Hua, Chang, Lou, Shen, Jin, "Language model compression with weighted low-rank factorization", 2022 (arXiv
    2207.00112).
    """

    name = "fwsvd"
    needs = frozenset({"fisher"})
    promises = frozenset({"exact", "monotone", "nested", "idempotent", "homogeneous"})
    one_preparation = True

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One SVD serves every rank."""
        d = context.statistics["fisher"].double().sqrt()  # (n,)
        d = d.clamp(min=1e-6 * float(d.max()))  # positive, so that inputs without gradient are fitted too
        return self.truncations(linalg.WeightedSpectrum(weight, d))


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [FisherWeightedSVD]
