"""Which rows to keep: greedy pivots of W itself, pivots of a sketch or of singular vectors, and leverage sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrbench.linalg.cholesky import faster, pivoted_cholesky, pivoted_cholesky_by_rows
from lrbench.linalg.gram import GATE, gram
from lrbench.linalg.sketch import rows_after


@dataclass(frozen=True, eq=False)
class RowPivots:
    """Greedy rows of W, best first: the first k are the choice at rank k.

    Attributes:
        order: (r,) positions.
        errors: r + 1 floats, ‖W − W_I⁺-fit‖_F with the first k = 0 ... r rows kept and least-squares coefficients.
        factor: (t, m) Lᵀ of the Gram's pivoted Cholesky for the first t rows, those above the accuracy gate.
        trusted: t, the largest rank whose coefficients the factor gives.
        algorithm: what found the first of them: an algorithm of `pivoted_cholesky`, or "rows" without a Gram matrix.
    """

    order: Tensor
    errors: list[float]
    factor: Tensor
    algorithm: str = ""

    @property
    def trusted(self) -> int:  # noqa: D102  (documented with the attributes)
        return len(self.factor)

    def coefficients(self, k: int, others: Tensor) -> Tensor:
        """Least-squares coefficients of the rows `others` on the first k pivots: one triangular solve.

        Returns:
            (len(others), k) float64.

        Raises:
            ValueError: k is above `trusted`; `RowRefit` serves there.
        """
        if k > self.trusted:
            raise ValueError(f"the Gram gives coefficients up to rank {self.trusted}, not {k}; use RowRefit")
        lead = self.factor[:k].index_select(1, self.order[:k]).triu()  # (k, k) L_kᵀ
        rest = self.factor[:k].index_select(1, others)  # (k, m - k)
        return torch.linalg.solve_triangular(lead, rest, upper=True).T


def greedy_rows(W: Tensor, rank: int, G: Tensor | None = None) -> RowPivots:
    """Pivots of W by pivoted Cholesky of `W Wᵀ`: the same rows as QR of Wᵀ with column pivoting, in exact arithmetic.

    A float64 Gram sees six digits of tail (`GATE`). Where W has more, the rows found so far are projected off W
    itself, and the Gram of what remains gives the next six digits, until all ranks are served or only rounding is left.

    Args:
        W: (m, n).
        rank: how many rows, at most m.
        G: (m, m) float64, W Wᵀ, where the caller has it.

    Returns:
        Exactly `rank` rows; past the numerical rank of W, the ones not chosen yet in ascending order.
    """
    m, n = W.shape
    total = float(torch.linalg.vector_norm(W, dtype=torch.float64))
    rounding = total * max(m, n) * torch.finfo(torch.float64).eps

    order = torch.empty(0, dtype=torch.int64, device=W.device)
    errors, factor = [total], W.new_zeros(0, m, dtype=torch.float64)
    residual, algorithm = W, "rows"
    while len(order) < rank:
        missing = rank - len(order)
        if m <= n or G is not None:
            own = G is None or len(order) > 0
            schur = gram(residual) if own else G
            assert schur is not None
            algorithm = faster(schur, missing) if not len(order) else algorithm
            step = pivoted_cholesky(schur, missing, floor=GATE**2, overwrite=own)
        else:  # the Gram of the long side would be larger than W
            residual = residual.double()
            step = pivoted_cholesky_by_rows(
                lambda p, A=residual: A @ A.index_select(0, p)[0],  # type: ignore[misc]
                residual.square().sum(1),
                missing,
                floor=GATE**2,
            )
        if not len(step.pivots):
            break
        if not len(order):
            factor = step.factor
        order = torch.cat([order, step.pivots])
        errors.extend(step.traces[1:].sqrt().tolist())
        if len(order) == rank:
            break
        W64 = W.double()
        Q = torch.linalg.qr(W64[order].T).Q  # (n, r)
        residual = W64 - (W64 @ Q) @ Q.T
        residual = residual - (residual @ Q) @ Q.T  # twice is enough (Kahan, Parlett)
        residual[order] = 0
        errors[-1] = float(torch.linalg.matrix_norm(residual))
        if errors[-1] <= rounding:
            break
    if len(order) < rank:
        free = torch.ones(m, dtype=torch.bool, device=W.device)
        free[order] = False
        errors.extend([errors[-1]] * (rank - len(order)))
        order = torch.cat([order, free.nonzero().flatten()[: rank - len(order)]])
    if rank == m:
        errors[-1] = 0.0
    return RowPivots(order=order, errors=errors, factor=factor, algorithm=algorithm)


def cpqr_pivots(A: Tensor, rank: int, G: Tensor | None = None) -> Tensor:
    """The first columns that QR with column pivoting (LAPACK's geqp3) chooses of A (m, n): (rank,), rank <= n.

    Args:
        A: (m, n).
        rank: how many.
        G: (n, n) float64, Aᵀ A, where the caller has it.
    """
    return greedy_rows(A.T, rank, G).order


def lupp_pivots(Y: Tensor, rank: int) -> Tensor:
    """The rows that LU with partial pivoting chooses of Y, best first.

    Column j decides pivot j, so the pivots of the first k columns are the first k pivots: one factorization of a
    sketch serves every rank. On the leading singular vectors these are the DEIM points.

    Args:
        Y: (m, l), a sketch `W Ω` or singular vectors of W.
        rank: how many rows, at most min(m, l).

    Returns:
        (rank,) different positions.

    Source: Dong, Martinsson, "Simpler is better", 2021 (arXiv 2104.05877); Sorensen, Embree, "A DEIM
    induced CUR factorization", 2016 (arXiv 1407.5516).
    """
    # The plain lu_factor refuses a singular sketch; its pivots are good all the same.
    return rows_after(torch.linalg.lu_factor_ex(Y).pivots, len(Y))[:rank]


def leverage_scores(U: Tensor) -> Tensor:
    """Leverage of each row of an orthonormal U (m, k), as probabilities (m,): ‖U_i‖² / k.

    Source: Mahoney, Drineas, "CUR matrix decompositions for improved data analysis", 2009, equation 3.
    """
    return U.square().sum(1) / U.shape[1]


def weighted_sample(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """Draws `count` different positions, one after another, each with probability in proportion to its weight.

    Args:
        weights: (m,), not negative; positions of zero weight come last.
        uniforms: (m,) in [0, 1), the randomness; the same for all ranks where ranks are to resemble each other.
        count: at most m.

    Returns:
        (count,) positions.

    Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", 2006: the largest `log(u) / w`.
    """
    tiny = torch.finfo(torch.float64).tiny
    keys = uniforms.double().clamp(min=tiny).log() / weights.double().clamp(min=tiny)
    return keys.argsort(descending=True, stable=True)[:count]
