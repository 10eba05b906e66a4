"""Interpolative decomposition: k rows (or columns) of W, and the others as their combinations."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench
from lrbench import linalg


class InterpolativeDecomposition(lrbench.Reducer):
    """W ≈ P [I; T] W[I, :]: k rows of W, and the other rows as least-squares combinations of them; or columns likewise.

    `selection` selects the skeleton:

    - `cholesky`: greedily, by pivoted Cholesky of W Wᵀ, with the pivots of QR with column pivoting; nested in k. With
      m candidate rows, the spectral error is at most 2^k sqrt(m − k) sigma_{k+1}.
    - `lupp`: LU with partial pivoting of a sketch W Ω of k columns; fast, random, nested in k.
    - `cpqr`: QR with column pivoting of a sketch of k + 8 columns; random, selected anew at each rank.

    Coefficients are always fitted to W by least squares; those of a sketch have larger errors.

    `calibrated: true` uses the output error, with H = E[x xᵀ] = L Lᵀ. Rows are selected from W L, and coefficients
    minimize E‖W x − Ŵ x‖²: the same method with the Gram matrix W H Wᵀ. Columns are selected from W diag(sqrt(H_jj)),
    with unchanged coefficients, which are the least-squares coefficients for W and for W L alike.

    Cheng, Gimbutas, Martinsson, Rokhlin, "On the compression of low rank matrices", 2005; Dong, Martinsson, "Simpler is
    better", 2021 (arXiv 2104.05877), for LU. The bound is that of QR with column pivoting, in Gu, Eisenstat, "Efficient
    algorithms for computing a strong rank-revealing QR factorization", 1996. Their exchange of pivots, which is not
    implemented here, improves it to sqrt(1 + f² k (m − k)) sigma_{k+1} for some f > 1.
    """

    name = "id"
    promises = frozenset(
        {"exact", "monotone", "nested", "refit", "transposes", "permutes", "idempotent", "homogeneous"}
    )

    selection: Annotated[Literal["cholesky", "lupp", "cpqr"], "how the skeleton is selected"] = "cholesky"
    side: Annotated[Literal["rows", "columns", "auto"], "rows or columns as skeleton; auto: the shorter side"] = "auto"
    calibrated: Annotated[bool, "minimize the output error, not the error of W; auto then means rows"] = False

    def __post_init__(self) -> None:
        if self.selection not in ("cholesky", "lupp", "cpqr"):
            raise ValueError(f"selection must be cholesky, lupp or cpqr, not {self.selection!r}")
        if self.side not in ("rows", "columns", "auto"):
            raise ValueError(f"side must be rows, columns or auto, not {self.side!r}")
        broken = {"monotone", "nested"} if self.selection == "cpqr" else set()
        # A sketch depends on the order of the columns.
        broken |= {"permutes"} if self.selection != "cholesky" else set()
        broken |= {"transposes"} if self.side != "auto" else set()
        gained = {self.side} if self.side != "auto" else set()
        if self.calibrated:
            broken |= {"monotone", "refit", "transposes", "permutes"}  # the output error is minimized instead
            object.__setattr__(self, "needs", frozenset({"second_moment"}))
        object.__setattr__(self, "promises", (type(self).promises - broken) | gained)

    @property
    def randomized(self) -> bool:
        """False for `cholesky`."""
        return self.selection != "cholesky"

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One pivoted factorization serves every rank, except for `cpqr`."""
        m, n = weight.shape
        side = self.side if self.side != "auto" else "rows" if m <= n or self.calibrated else "columns"
        A = weight if side == "rows" else weight.T  # (a, b): rows of A are selected
        if self.calibrated:
            H = context.statistics["second_moment"]  # (n, n)
            return _Calibrated(A, side, H, context.once(linalg.root, H), max(ranks), self.selection, context.generator)
        if self.selection == "cholesky":
            # The Gram matrix of the shorter side is shared with other methods.
            short = m <= n if side == "rows" else n < m
            G = context.once(linalg.short_gram, weight) if short else None  # A Aᵀ (a, a)
            return _Greedy(A, side, max(ranks), G)
        return _Sketched(A, side, max(ranks), self.selection, context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """k(m + n − k): the identity part is not stored."""
        return rank * (sum(shape) - rank)


class _Skeletons(lrbench.Prepared):
    def __init__(self, A: torch.Tensor, side: str) -> None:
        self.A, self.side = A, side  # (a, b)

    def choose(self, rank: int) -> torch.Tensor:
        """(k,) the rows of the skeleton."""
        raise NotImplementedError

    def fit(self, rank: int, chosen: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(a - k, k) least-squares coefficients of the other rows on the skeleton."""
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
    def __init__(self, A: torch.Tensor, side: str, rank: int, G: torch.Tensor | None) -> None:
        super().__init__(A, side)
        self.pivots = linalg.greedy_rows(A, rank, G)
        # Where a Gram cannot resolve the tail, the coefficients come from a QR of W.
        self.refit = linalg.RowRefit(A, self.pivots.order) if rank > self.pivots.trusted else None

    def choose(self, rank: int) -> torch.Tensor:
        return self.pivots.order[:rank]

    def fit(self, rank: int, chosen: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        if self.refit is None or rank <= self.pivots.trusted:
            return self.pivots.coefficients(rank, others)
        return self.refit.coefficients(rank, others)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [self.pivots.errors[rank] for rank in ranks]

    def chosen(self, rank: int) -> dict[str, str]:
        return {"algorithm": self.pivots.algorithm}


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

    def errors(self, ranks: Sequence[int]) -> list[float] | None:
        if not self.nested:  # each rank has its own skeleton and fit
            return None
        errors = self.refit.errors()
        return [errors[rank] for rank in ranks]


class _Calibrated(_Skeletons):
    """Selects and fits as the uncalibrated methods do, but on a weighted matrix."""

    def __init__(
        self,
        A: torch.Tensor,
        side: str,
        H: torch.Tensor,
        L: torch.Tensor,
        rank: int,
        selection: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__(A, side)
        M = linalg.weighted(A, L) if side == "rows" else A.double() * H.double().diagonal().sqrt()[:, None]  # (a, b)
        self.chooser = (
            _Greedy(M, side, rank, None) if selection == "cholesky" else _Sketched(M, side, rank, selection, generator)
        )
        self.fits = side == "rows"

    def choose(self, rank: int) -> torch.Tensor:
        return self.chooser.choose(rank)

    def fit(self, rank: int, chosen: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        if self.fits:
            return self.chooser.fit(rank, chosen, others)
        return linalg.RowRefit(self.A, chosen).coefficients(rank, others)


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [InterpolativeDecomposition]
