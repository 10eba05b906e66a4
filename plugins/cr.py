"""CR: the matrix product W x, kept on k of the inputs (Drineas, Kannan, Mahoney, 2006)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench


class CR(lrbench.Reducer):
    """W x = Σ_j w_j x_j ≈ Σ_{j in J} d_j w_j x_j, over k input features J.

    - `sampling: top`: the k columns of largest norm, unscaled. Deterministic; the error is the norm of the rest.
    - `sampling: random`: k draws with replacement, p_j in proportion to ‖w_j‖, each scaled by 1/(k p_j); equal draws
      are merged, so that fewer than k columns may be stored. Its mean is W. The variance is least at p_j in proportion
      to ‖w_j‖ |x_j|, which is this p_j where the inputs are of equal size, all that can be assumed without data. But an
      *unbiased estimator is not a compressor*: it pays for having no bias with a variance that for one fixed matrix is
      simply error, well above that of `top`. Use it to repeat papers.

    Drineas, Kannan, Mahoney, "Fast Monte Carlo algorithms for matrices I", 2006, algorithm BasicMatrixMultiplication
    and lemma 4: E‖W x − Ŵ x‖² = Σ_j ‖w_j‖² x_j² / (k p_j) − ‖W x‖² / k.
    """

    name = "cr"
    promises = frozenset({"monotone", "columns", "idempotent", "homogeneous"})
    one_preparation = True

    sampling: Annotated[Literal["top", "random"], "largest norms, or an unbiased random draw"] = "top"

    def __post_init__(self) -> None:
        if self.sampling not in ("top", "random"):
            raise ValueError(f"sampling must be top or random, not {self.sampling!r}")
        if self.sampling == "random":
            object.__setattr__(self, "promises", frozenset({"columns", "homogeneous"}))

    @property
    def randomized(self) -> bool:
        """`top` draws nothing."""
        return self.sampling == "random"

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One ordering, or one series of draws, serves every rank."""
        return _Top(weight) if self.sampling == "top" else _Random(weight, context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """mk; fewer where a random draw repeats a column."""
        return shape[0] * rank

    def max_rank(self, shape: tuple[int, int]) -> int:
        """n: there are as many terms to the product as inputs."""
        return shape[1]


class _Top(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor) -> None:
        self.W = weight  # (m, n)
        self.squares = weight.double().square().sum(0)  # (n,)
        self.order = self.squares.argsort(descending=True, stable=True)  # (n,)

    def at_rank(self, rank: int) -> lrbench.ColumnSubset:
        J = self.order[:rank]  # (k,)
        return lrbench.ColumnSubset(self.W.index_select(1, J), J, in_features=self.W.shape[1])

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [float(self.squares[self.order[rank:]].sum().sqrt()) for rank in ranks]


class _Random(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, generator: torch.Generator) -> None:
        self.W, n = weight, weight.shape[1]  # (m, n)
        norms = weight.double().norm(dim=0).cpu()  # (n,)
        # A zero matrix has no distribution of its own, and any draw of it is right.
        self.p = norms / norms.sum() if bool(norms.any()) else torch.full_like(norms, 1 / n)
        # As many as the largest rank needs, so that the first k draws are the same whichever ranks are asked.
        uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
        cumulative = self.p.cumsum(0)
        self.draws = torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)  # (n,)

    def at_rank(self, rank: int) -> lrbench.ColumnSubset:
        J, times = self.draws[:rank].unique(return_counts=True)  # (c,), (c,), c <= k
        scale = (times / (rank * self.p[J])).to(device=self.W.device, dtype=self.W.dtype)  # (c,)
        J = J.to(self.W.device)
        return lrbench.ColumnSubset(self.W.index_select(1, J) * scale, J, in_features=self.W.shape[1])


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """The reducers of this file."""
    return [CR]
