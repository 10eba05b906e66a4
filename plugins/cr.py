"""CR: the matrix product W x restricted to k inputs (Drineas, Kannan, Mahoney, 2006)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench
from lrbench import linalg


class CR(lrbench.Reducer):
    """W x = Σ_j w_j x_j ≈ Σ_{j in J} d_j w_j x_j, over k input features J.

    - `sampling: top`: the k columns of largest norm, unscaled. Deterministic; the error is the norm of the rest.
      `calibrated: true` takes the largest ‖w_j‖ sqrt(H_jj), with H = E[x xᵀ]; `refit: true`, which is always
      calibrated, replaces the columns by W H[:, J] H[J, J]⁻¹, which minimize the output error (see `nystrom`).
    - `sampling: random`: k draws with replacement, p_j in proportion to ‖w_j‖, each scaled by 1/(k p_j); equal draws
      are merged, so fewer than k columns may be stored. Its mean is W. The variance is smallest for p_j in proportion
      to ‖w_j‖ |x_j|, which is this p_j for inputs of equal size; `calibrated: true` takes ‖w_j‖ sqrt(H_jj). But an
      *unbiased estimator is not a compressor*: for a fixed matrix its variance is error, well above that of `top`.
      Use it to reproduce papers.

    Drineas, Kannan, Mahoney, "Fast Monte Carlo algorithms for matrices I", 2006, algorithm BasicMatrixMultiplication
    and lemma 4: E‖W x − Ŵ x‖² = Σ_j ‖w_j‖² x_j² / (k p_j) − ‖W x‖² / k.
    """

    name = "cr"
    promises = frozenset({"monotone", "columns", "nested", "permutes", "idempotent", "homogeneous"})
    one_preparation = True

    sampling: Annotated[Literal["top", "random"], "largest norms, or an unbiased random draw"] = "top"
    calibrated: Annotated[bool, "weight each input by its size in the calibration text"] = False
    refit: Annotated[bool, "fit the selected columns to the layer's output; needs sampling: top"] = False

    def __post_init__(self) -> None:
        if self.sampling not in ("top", "random"):
            raise ValueError(f"sampling must be top or random, not {self.sampling!r}")
        if self.sampling == "random":
            if self.refit:
                raise ValueError("refit needs sampling: top; an unbiased draw is not fitted")
            object.__setattr__(self, "promises", frozenset({"columns", "homogeneous"}))
        elif self.refit:  # only the output error is monotone
            object.__setattr__(self, "promises", frozenset({"idempotent", "homogeneous"}))
        elif self.calibrated:  # permuted columns would need permuted statistics
            object.__setattr__(self, "promises", type(self).promises - {"permutes"})
        if self.calibrated or self.refit:
            object.__setattr__(self, "needs", frozenset({"second_moment"}))

    @property
    def randomized(self) -> bool:
        """True for `sampling: random`."""
        return self.sampling == "random"

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One ordering, or one series of draws, serves every rank."""
        H = context.statistics["second_moment"] if self.needs else None  # (n, n)
        sizes = 1.0 if H is None else H.double().diagonal().sqrt()  # (n,), of the inputs
        if self.refit:
            assert H is not None
            return _Refitted(weight, sizes, H, max(ranks))
        return _Top(weight, sizes) if self.sampling == "top" else _Random(weight, sizes, context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """mk; fewer if a random draw repeats a column."""
        return shape[0] * rank

    def max_rank(self, shape: tuple[int, int]) -> int:
        """n, the number of terms of the product."""
        return shape[1]


class _Top(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, sizes: torch.Tensor | float) -> None:
        self.W = weight  # (m, n)
        self.squares = weight.double().square().sum(0)  # (n,)
        self.order = (self.squares.sqrt() * sizes).argsort(descending=True, stable=True)  # (n,)

    def at_rank(self, rank: int) -> lrbench.ColumnSubset:
        J = self.order[:rank]  # (k,)
        return lrbench.ColumnSubset(self.W.index_select(1, J), J, in_features=self.W.shape[1])

    def errors(self, ranks: Sequence[int]) -> list[float]:
        errors: list[float] = linalg.tail_errors(self.squares[self.order]).tolist()
        return [errors[rank] for rank in ranks]


class _Refitted(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, sizes: torch.Tensor | float, H: torch.Tensor, rank: int) -> None:
        self.n = weight.shape[1]
        self.order = _Top(weight, sizes).order[:rank]  # (k,)
        self.refit = linalg.FeatureRefit(weight, H, self.order)

    def at_rank(self, rank: int) -> lrbench.ColumnSubset:
        return lrbench.ColumnSubset(self.refit.coefficients(rank), self.order[:rank], in_features=self.n)


class _Random(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, sizes: torch.Tensor | float, generator: torch.Generator) -> None:
        self.W, n = weight, weight.shape[1]  # (m, n)
        self.squares = weight.double().square().sum(0).cpu()  # (n,)
        norms = self.squares.sqrt() * (sizes.cpu() if isinstance(sizes, torch.Tensor) else sizes)  # (n,)
        # A zero matrix defines no distribution; use the uniform one.
        self.p = norms / norms.sum() if bool(norms.any()) else torch.full_like(norms, 1 / n)
        # As many as the largest rank needs, so that the first k draws do not depend on the requested ranks.
        uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
        cumulative = self.p.cumsum(0)
        self.draws = torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)  # (n,)

    def scale(self, rank: int) -> torch.Tensor:
        """(n,) the number of draws of each column over its expectation."""
        times = torch.bincount(self.draws[:rank], minlength=len(self.p))  # (n,)
        return torch.where(times > 0, times / (rank * self.p), 0.0)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [float((self.squares * (1 - self.scale(rank)).square()).sum().sqrt()) for rank in ranks]

    def at_rank(self, rank: int) -> lrbench.ColumnSubset:
        J = self.draws[:rank].unique()  # (c,), c <= k
        scale = self.scale(rank)[J].to(device=self.W.device, dtype=self.W.dtype)  # (c,)
        J = J.to(self.W.device)
        return lrbench.ColumnSubset(self.W.index_select(1, J) * scale, J, in_features=self.W.shape[1])


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [CR]
