"""Skeleton rows of a thin matrix: all other rows are combinations of them with small coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from lrbench.linalg.pivots import permutation_of_swaps

#: Upper bound on the absolute value of a coefficient. A smaller bound reduces the error of rounding skeleton and
#: coefficients: at 1.2 it is a quarter less than with LU pivots alone, for about ten exchanges (512 to 1024 rows).
DOMINANCE = 1.2


def skeleton_rows(A: Tensor) -> tuple[Tensor, Tensor]:
    """k rows of A (m, k), k <= m, such that all rows of A are combinations of them, whatever the rank of A.

    LU with partial pivoting, `A = P L U`, selects rows and gives a unit triangle `L_1` that is invertible even if A is
    singular: `A[others] = (L_2 L_1⁻¹) A[rows]`. Then rows are exchanged while an exchange multiplies the volume of the
    selected rows of L by more than `DOMINANCE`, which bounds the coefficients; LU alone does not.

    Returns:
        Positions (k,) of the skeleton rows, and coefficients (m - k, k), float64, of the other rows in ascending order,
        none larger than `DOMINANCE` in absolute value.

    Source: Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin, "How to find a good submatrix", 2010 (maxvol).
    """
    m, k = A.shape
    factored, swaps, _ = torch.linalg.lu_factor_ex(A.double())  # accepts a singular matrix
    L = factored.tril(-1) + torch.eye(m, k, dtype=torch.float64, device=A.device)  # (m, k), rows in LU's order
    chosen, others = torch.arange(k, device=A.device), torch.arange(k, m, device=A.device)
    X = torch.linalg.solve_triangular(L[:k], L[k:], upper=False, left=False, unitriangular=True)  # (m - k, k)
    before = X
    while X.numel():
        i, j = divmod(int(X.abs().argmax()), k)
        if abs(float(X[i, j])) <= DOMINANCE:
            break
        X, chosen, others = _exchanged(X, chosen, others, i, j)
    if X is not before:  # solve again: the exchanges have spread the rounding errors of large coefficients
        X = torch.linalg.solve(L[chosen], L[others], left=False)
    order = permutation_of_swaps(swaps, m).to(A.device)
    return order[chosen], X[order[others].argsort()]


def _exchanged(X: Tensor, chosen: Tensor, others: Tensor, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, skeleton rows and other rows after the j-th skeleton row and the i-th other row change places."""
    pivot, row, column = X[i, j].clone(), X[i].clone(), X[:, j].clone()
    row[j] -= 1
    column[i] += 1
    X = X - torch.outer(column, row / pivot)
    chosen, others = chosen.clone(), others.clone()
    chosen[j], others[i] = others[i].clone(), chosen[j].clone()
    return X, chosen, others
