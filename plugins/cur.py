"""CUR: k columns, k rows, and the best small matrix between them."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench
from lrbench import linalg


class CURDecomposition(lrbench.Reducer):
    """W ≈ C U R with C = W[:, J], R = W[I, :] and U = C⁺ W R⁺, the best U for these C and R.

    `selection` selects I and J:

    - `lupp`: LU with partial pivoting: J from a sketch WᵀΩ of k columns, I from the columns C = W[:, J]; fast,
      random, nested in k.
    - `deim`: interpolation points of the leading singular vectors; nested in k. The spectral error is at most
      (η_p + η_q) sigma_{k+1} (Sorensen, Embree, theorem 4.1).
    - `leverage`: a draw without replacement by leverage scores of rank k; not nested, and may miss a direction.
    - `cpqr`: QR with column pivoting of W and of Wᵀ; nested in k.

    Sorensen, Embree, "A DEIM induced CUR factorization", 2016 (arXiv 1407.5516); Mahoney, Drineas, "CUR matrix
    decompositions for improved data analysis", 2009; Dong, Martinsson, "Simpler is better", 2021 (arXiv 2104.05877).
    """

    name = "cur"
    promises = frozenset({"exact", "monotone", "columns", "rows", "nested", "refit", "idempotent", "homogeneous"})

    selection: Annotated[Literal["lupp", "deim", "leverage", "cpqr"], "how rows and columns are selected"] = "lupp"

    def __post_init__(self) -> None:
        if self.selection not in ("lupp", "deim", "leverage", "cpqr"):
            raise ValueError(f"selection must be lupp, deim, leverage or cpqr, not {self.selection!r}")
        if self.selection == "leverage":  # a draw may miss a direction, and ranks draw independently
            object.__setattr__(self, "promises", frozenset({"columns", "rows", "refit", "homogeneous"}))
        elif self.selection in ("deim", "cpqr"):
            object.__setattr__(self, "promises", type(self).promises | {"permutes"})

    @property
    def randomized(self) -> bool:
        """False for `deim` and `cpqr`."""
        return self.selection in ("lupp", "leverage")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One selection of rows and columns serves every rank, except for `leverage`."""
        if self.selection == "leverage":
            return _Sampled(weight, context)
        return _Nested(weight, *_nested_pivots(weight, self.selection, max(ranks), context))

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """k(m + n + k)."""
        return rank * (sum(shape) + rank)


def _nested_pivots(
    W: torch.Tensor, selection: str, k: int, context: lrbench.Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (k,) and rows (k,), best first."""
    if selection == "cpqr":
        G = context.once(linalg.short_gram, W)  # (s, s), of the rows if m <= n, else of the columns
        wide = W.shape[0] <= W.shape[1]
        return linalg.cpqr_pivots(W, k, None if wide else G), linalg.cpqr_pivots(W.T, k, G if wide else None)
    if selection == "deim":
        U, V = _singular_vectors(W, context)  # (m, s), (n, s)
        return linalg.lupp_pivots(V[:, :k], k), linalg.lupp_pivots(U[:, :k], k)
    with linalg.full_precision():
        Y = W.T @ linalg.gaussian(W.shape[0], k, context.generator, like=W)  # (n, k)
    columns = linalg.lupp_pivots(Y, k)
    return columns, linalg.lupp_pivots(W.index_select(1, columns), k)


def _singular_vectors(W: torch.Tensor, context: lrbench.Context) -> tuple[torch.Tensor, torch.Tensor]:
    """The left (m, s) and right (n, s) singular vectors, s = min(m, n), up to signs."""
    spectrum = linalg.Spectrum(W, once=context.once)
    short = spectrum.vectors
    # Wᵀ U = V Σ has orthogonal columns; QR normalizes them, also where sigma is zero.
    long = torch.linalg.qr((W.T if spectrum.wide else W).double() @ short).Q
    return (short, long) if spectrum.wide else (long, short)


class _Nested(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> None:
        self.W, self.columns, self.rows = weight, columns, rows  # (m, n), (r,), (r,)
        self.core = linalg.Core(weight, columns, rows)

    def at_rank(self, rank: int) -> lrbench.CUR:
        J, I = self.columns[:rank], self.rows[:rank]  # noqa: E741
        C, R = self.W.index_select(1, J), self.W.index_select(0, I)  # (m, k), (k, n)
        return lrbench.CUR(C, self.core.at_rank(rank), R, columns=J, rows=I)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [self.core.error(rank) for rank in ranks]


class _Sampled(lrbench.Prepared):
    def __init__(self, weight: torch.Tensor, context: lrbench.Context) -> None:
        self.W, generator = weight, context.generator  # (m, n)
        self.U, self.V = _singular_vectors(weight, context)  # (m, s), (n, s)
        self.row_uniforms = torch.rand(weight.shape[0], generator=generator, dtype=torch.float64).to(weight.device)
        self.column_uniforms = torch.rand(weight.shape[1], generator=generator, dtype=torch.float64).to(weight.device)

    def at_rank(self, rank: int) -> lrbench.CUR:
        columns = linalg.weighted_sample(linalg.leverage_scores(self.V[:, :rank]), self.column_uniforms, rank)
        rows = linalg.weighted_sample(linalg.leverage_scores(self.U[:, :rank]), self.row_uniforms, rank)
        return _Nested(self.W, columns, rows).at_rank(rank)


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [CURDecomposition]
