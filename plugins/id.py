"""Interpolative decomposition: k rows (or columns) of W, and all the others as combinations of them."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench
from lrbench import linalg


class InterpolativeDecomposition(lrbench.Reducer):
    """W ≈ P [I; T] W[I, :], k rows of W and least-squares coefficients T for the rest; or the same on columns.

    `selection` says how the k are found:

    - `cholesky`: greedily on W itself, by pivoted Cholesky of W Wᵀ; the choice of QR with column pivoting, nested in k.
      Of m rows to choose from, the spectral error is at most 2^k sqrt(m − k) sigma_{k+1}.
    - `lupp`: LU with partial pivoting of a sketch W Ω of k columns; fast, random, nested in k.
    - `cpqr`: QR with column pivoting of a sketch of k + 8 columns; random, chosen afresh at each rank.

    Coefficients are always refitted to W by least squares: those that a sketch gives by itself err more.

    Cheng, Gimbutas, Martinsson, Rokhlin, "On the compression of low rank matrices", 2005; Dong, Martinsson, "Simpler is
    better", 2021 (arXiv 2104.05877), for LU. The bound is that of QR with column pivoting, in Gu, Eisenstat, "Efficient
    algorithms for computing a strong rank-revealing QR factorization", 1996. Exchanging pivots as they do, which is not
    done here, would bring it down to sqrt(1 + f² k (m − k)) sigma_{k+1} for a chosen f > 1.
    """

    name = "id"
    promises = frozenset({"exact", "monotone", "idempotent", "homogeneous"})

    selection: Annotated[Literal["cholesky", "lupp", "cpqr"], "how the skeleton is chosen"] = "cholesky"
    side: Annotated[Literal["rows", "columns", "auto"], "what the skeleton is made of; auto: the shorter side"] = "auto"

    def __post_init__(self) -> None:
        if self.selection not in ("cholesky", "lupp", "cpqr"):
            raise ValueError(f"selection must be cholesky, lupp or cpqr, not {self.selection!r}")
        if self.side not in ("rows", "columns", "auto"):
            raise ValueError(f"side must be rows, columns or auto, not {self.side!r}")
        broken = {"monotone"} if self.selection == "cpqr" else set()
        gained = {"columns"} if self.side == "columns" else set()
        object.__setattr__(self, "promises", (type(self).promises - broken) | gained)

    @property
    def randomized(self) -> bool:
        """`cholesky` draws nothing."""
        return self.selection != "cholesky"

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One pivoted factorization serves every rank, but for `cpqr`."""
        m, n = weight.shape
        side = self.side if self.side != "auto" else "rows" if m <= n else "columns"
        A = weight if side == "rows" else weight.T  # (a, b): rows of A are chosen
        if self.selection == "cholesky":
            return _Greedy(A, side, max(ranks))
        return _Sketched(A, side, max(ranks), self.selection, context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """k(m + n − k): the identity part is not stored."""
        return rank * (sum(shape) - rank)


class _Skeletons(lrbench.Prepared):
    def __init__(self, A: torch.Tensor, side: str) -> None:
        self.A, self.side = A, side  # (a, b)

    def choose(self, rank: int) -> torch.Tensor:
        """(k,) the rows to keep."""
        raise NotImplementedError

    def fit(self, rank: int, chosen: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(a - k, k) least-squares coefficients of the others on the chosen."""
        raise NotImplementedError

    def at_rank(self, rank: int) -> lrbench.Interpolative:
        chosen = self.choose(rank)  # (k,)
        others = torch.ones(len(self.A), dtype=torch.bool, device=chosen.device).index_fill(0, chosen, False)
        T = self.fit(rank, chosen, others.nonzero().flatten()).to(self.A.dtype)  # (a - k, k)
        S = self.A.index_select(0, chosen)  # (k, b)
        if self.side == "columns":
            S, T = S.T, T.T  # (m, k), (k, n - k)
        return lrbench.Interpolative(S.contiguous(), chosen, T.contiguous(), self.side)


class _Greedy(_Skeletons):
    def __init__(self, A: torch.Tensor, side: str, rank: int) -> None:
        super().__init__(A, side)
        self.pivots = linalg.greedy_rows(A, rank)
        # Where the tail is below what a Gram can see, the coefficients come from a QR of W itself.
        self.refit = linalg.RowRefit(A, self.pivots.order) if rank > self.pivots.trusted else None

    def choose(self, rank: int) -> torch.Tensor:
        return self.pivots.order[:rank]

    def fit(self, rank: int, chosen: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        if self.refit is None or rank <= self.pivots.trusted:
            return self.pivots.coefficients(rank, others)
        return self.refit.coefficients(rank, others)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [self.pivots.errors[rank] for rank in ranks]


class _Sketched(_Skeletons):
    def __init__(self, A: torch.Tensor, side: str, rank: int, selection: str, generator: torch.Generator) -> None:
        super().__init__(A, side)
        self.nested = selection == "lupp"
        columns = rank if self.nested else rank + 8
        with linalg.full_precision():
            self.Y = A @ linalg.gaussian(A.shape[1], columns, generator, like=A)  # (a, l)
        if self.nested:
            self.order = linalg.lupp_pivots(self.Y, rank)  # (k,)
            self.refit = linalg.RowRefit(A, self.order)

    def choose(self, rank: int) -> torch.Tensor:
        return self.order[:rank] if self.nested else linalg.cpqr_pivots(self.Y[:, : rank + 8].T, rank)

    def fit(self, rank: int, chosen: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        refit = self.refit if self.nested else linalg.RowRefit(self.A, chosen)
        return refit.coefficients(rank, others)


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """The reducers of this file."""
    return [InterpolativeDecomposition]
