"""Nyström: a layer on k of its inputs, which also predict the contribution of the others."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench
from lrbench import linalg


class Nystrom(lrbench.Reducer):
    """W x ≈ B x_J over k input features J, with B = W H[:, J] H[J, J]⁻¹, the best B for these features.

    With H = E[x xᵀ], B minimizes E‖W x − B x_J‖². `cr` with `refit: true` equals `selection: scores`.

    - `selection: pivots`: greedily, by pivoted Cholesky of D H D with D = diag(‖w_j‖), which avoids features that the
      selected ones predict.
    - `selection: scores`: the largest ‖w_j‖ sqrt(H_jj).

    Lin et al., "MoDeGPT: modular decomposition for large language model compression", 2024 (arXiv 2408.09632), where it
    is the reduction of the feed-forward part (theorem 1, with ridge leverage scores). Williams, Seeger, "Using the
    Nyström method to speed up kernel machines", 2000.
    """

    name = "nystrom"
    needs = frozenset({"second_moment"})
    promises = frozenset({"idempotent", "homogeneous"})

    selection: Annotated[Literal["pivots", "scores"], "how features are selected"] = "pivots"

    def __post_init__(self) -> None:
        if self.selection not in ("pivots", "scores"):
            raise ValueError(f"selection must be pivots or scores, not {self.selection!r}")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One order of the features and one Cholesky factor serve every rank."""
        return _Nested(weight, context.statistics["second_moment"].double(), self.selection, max(ranks))

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """mk."""
        return shape[0] * rank

    def max_rank(self, shape: tuple[int, int]) -> int:
        """n, the number of input features."""
        return shape[1]


class _Nested(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, H: torch.Tensor, selection: str, rank: int) -> None:
        self.n = weight.shape[1]
        norms = weight.double().norm(dim=0)  # (n,)
        scores = norms * H.diagonal().sqrt()  # (n,)
        self.order = scores.argsort(descending=True, stable=True)[:rank]  # (k,)
        if selection == "pivots":
            pivots = linalg.pivoted_cholesky(norms[:, None] * H * norms, rank, overwrite=True).pivots  # (p,), p <= k
            unselected = self.order[~torch.isin(self.order, pivots)]  # for columns of zeros, which no pivot falls on
            self.order = torch.cat([pivots, unselected])[:rank]
        self.refit = linalg.FeatureRefit(weight, H, self.order)

    def at_rank(self, rank: int) -> lrbench.ColumnSubset:
        return lrbench.ColumnSubset(self.refit.coefficients(rank), self.order[:rank], in_features=self.n)


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [Nystrom]
