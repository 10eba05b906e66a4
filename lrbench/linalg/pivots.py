"""Selection of rows: greedy pivots of W, LU pivots of a sketch or of singular vectors, and leverage-score sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrbench.linalg.cholesky import faster_algorithm, pivoted_cholesky, pivoted_cholesky_by_rows
from lrbench.linalg.gram import GATE, gram
from lrbench.linalg.sketch import permutation_of_swaps


@dataclass(frozen=True, eq=False)
class RowPivots:
    """Greedily selected rows of W, best first: the first k rows are the selection at rank k.

    Attributes:
        order: (r,) positions.
        errors: r + 1 floats, the Frobenius error of W's least-squares fit on its first k = 0 ... r selected rows.
        factor: (t, m) Lᵀ of the Gram's pivoted Cholesky for the first t rows, which the Gram resolves.
        trusted: t, the largest rank whose coefficients the factor gives.
        algorithm: of the first rows: an algorithm of `pivoted_cholesky`, or "rows" without a Gram matrix.
    """

    order: Tensor
    errors: list[float]
    factor: Tensor
    algorithm: str = ""

    @property
    def trusted(self) -> int:  # noqa: D102  (documented with the attributes)
        return len(self.factor)

    def coefficients(self, k: int, others: Tensor) -> Tensor:
        """Least-squares coefficients of the rows `others` on the first k pivots, by one triangular solve.

        Returns:
            (len(others), k) float64.

        Raises:
            ValueError: k is above `trusted`; use `RowRefit` there.
        """
        if k > self.trusted:
            raise ValueError(f"the Gram gives coefficients up to rank {self.trusted}, not {k}; use RowRefit")
        leading = self.factor[:k].index_select(1, self.order[:k]).triu()  # (k, k) L_kᵀ
        trailing = self.factor[:k].index_select(1, others)  # (k, m - k)
        return torch.linalg.solve_triangular(leading, trailing, upper=True).T


def greedy_rows(W: Tensor, rank: int, G: Tensor | None = None) -> RowPivots:
    """Pivots of W by pivoted Cholesky of `W Wᵀ`: in exact arithmetic, those of QR of Wᵀ with column pivoting.

    A float64 Gram resolves relative errors down to `GATE`. If W needs more, the rows selected so far are
    projected out of W, and the Gram of the residual gives six more digits, until enough rows are selected or the
    residual is rounding error.

    Args:
        W: (m, n).
        rank: the number of rows, at most m.
        G: (m, m) float64, W Wᵀ, if the caller has it.

    Returns:
        Exactly `rank` rows; beyond the numerical rank of W, the remaining rows in ascending order.
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
            recomputed = G is None or len(order) > 0
            schur = gram(residual) if recomputed else G
            assert schur is not None
            algorithm = faster_algorithm(schur, missing) if not len(order) else algorithm
            step = pivoted_cholesky(schur, missing, floor=GATE**2, overwrite=recomputed)
        else:  # the Gram of the longer side would be larger than W
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
        unselected = torch.ones(m, dtype=torch.bool, device=W.device)
        unselected[order] = False
        errors.extend([errors[-1]] * (rank - len(order)))
        order = torch.cat([order, unselected.nonzero().flatten()[: rank - len(order)]])
    if rank == m:
        errors[-1] = 0.0
    return RowPivots(order=order, errors=errors, factor=factor, algorithm=algorithm)


def cpqr_pivots(A: Tensor, rank: int, G: Tensor | None = None) -> Tensor:
    """The first `rank` columns of A that QR with column pivoting (LAPACK's geqp3) selects: (rank,).

    Args:
        A: (m, n).
        rank: the number of columns, at most n.
        G: (n, n) float64, Aᵀ A, if the caller has it.
    """
    return greedy_rows(A.T, rank, G).order


def lupp_pivots(Y: Tensor, rank: int) -> Tensor:
    """The rows of Y that LU with partial pivoting selects, best first.

    Pivot j depends on the first j columns only, so one factorization of a sketch serves every rank. Applied to the
    leading singular vectors, it gives the DEIM points.

    Args:
        Y: (m, l), a sketch `W Ω` or singular vectors of W.
        rank: the number of rows, at most min(m, l).

    Returns:
        (rank,) distinct positions.

    Source: Dong, Martinsson, "Simpler is better", 2021 (arXiv 2104.05877); Sorensen, Embree, "A DEIM
    induced CUR factorization", 2016 (arXiv 1407.5516).
    """
    # lu_factor rejects a singular sketch, although its pivots are usable.
    return permutation_of_swaps(torch.linalg.lu_factor_ex(Y).pivots, len(Y))[:rank]


def leverage_scores(U: Tensor) -> Tensor:
    """Leverage score of each row of an orthonormal U (m, k), as probabilities (m,): ‖U_i‖² / k.

    Source: Mahoney, Drineas, "CUR matrix decompositions for improved data analysis", 2009, equation 3.
    """
    return U.square().sum(1) / U.shape[1]


def weighted_sample(weights: Tensor, uniforms: Tensor, count: int) -> Tensor:
    """Draws `count` positions without replacement, each time with probability proportional to weight.

    Args:
        weights: (m,), non-negative; positions of zero weight come last.
        uniforms: (m,) in [0, 1), the source of randomness; reuse it to make the draws of different ranks similar.
        count: at most m.

    Returns:
        (count,) positions.

    Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", 2006: take the largest `log(u) / w`.
    """
    tiny = torch.finfo(torch.float64).tiny
    keys = uniforms.double().clamp(min=tiny).log() / weights.double().clamp(min=tiny)
    return keys.argsort(descending=True, stable=True)[:count]
