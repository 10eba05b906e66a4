"""Random columns: the control for methods that select columns or rows."""

from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class RandomColumns(lrbench.Reducer):
    """W ≈ C C⁺ W, with C = k columns of W drawn uniformly, and least-squares coefficients for the other columns.

    Stored as a column interpolation, like `id` with `side: columns`, from which it differs only in the selection of
    columns. (By default `id` selects rows if W is wide.) Without coefficients it would be a control for `cr` only. On
    Haar-random matrices, whose columns are alike, it is nearly as good as `id`.
    """

    name = "random-columns"
    promises = frozenset({"monotone", "columns", "nested", "refit", "idempotent", "homogeneous"})
    randomized = True

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One random order and one QR serve every rank."""
        return _Drawn(weight, max(ranks), context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """k(m + n − k)."""
        return rank * (sum(shape) - rank)


class _Drawn(lrbench.Prepared):
    """Rank k keeps the first k columns of one random order."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator) -> None:
        self.W = weight  # (m, n)
        self.order = torch.randperm(weight.shape[1], generator=generator).to(weight.device)  # (n,)
        self.refit = linalg.RowRefit(weight.T, self.order[:rank])

    def at_rank(self, rank: int) -> lrbench.Interpolative:
        J, others = self.order[:rank], self.order[rank:].sort().values  # (k,), (n - k,)
        T = self.refit.coefficients(rank, others).T.to(self.W.dtype).contiguous()  # (k, n - k)
        return lrbench.Interpolative(self.W.index_select(1, J), J, T, side="columns")

    def errors(self, ranks: Sequence[int]) -> list[float]:
        errors = self.refit.errors()
        return [errors[rank] for rank in ranks]


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [RandomColumns]
