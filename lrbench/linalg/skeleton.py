"""Rows of a thin matrix that all the others are small combinations of: they store a product in fewer numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lrbench.linalg.pivots import rows_after

#: What no coefficient exceeds in size. The smaller, the less is lost when skeleton and coefficients are rounded; at 1.2
#: a quarter less than pivots of LU alone lose, for some ten exchanges at any size tried (of 512 to 1024 rows).
DOMINANCE = 1.2


def skeleton_rows(A: Tensor) -> tuple[Tensor, Tensor]:
    """k rows of A (m, k), k <= m, that all its rows are combinations of, whatever the rank of A.

    LU with partial pivoting, `A = P L U`, gives rows and a unit triangle `L_1` that is invertible even where A, and so
    U, is singular: `A[others] = (L_2 L_1⁻¹) A[rows]`. Rows are then exchanged as long as that multiplies the volume of
    the chosen part of L by more than `DOMINANCE`; that bounds the coefficients, which LU alone does not.

    Returns:
        rows (k,) positions, and coefficients (m - k, k) float64 of the other rows in ascending order, none larger than
        `DOMINANCE`.

    Source: Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin, "How to find a good submatrix", 2010 (maxvol).
    """
    m, k = A.shape
    factored, swaps, _ = torch.linalg.lu_factor_ex(A.double())  # does not refuse a singular matrix
    L = factored.tril(-1) + torch.eye(m, k, dtype=torch.float64, device=A.device)  # (m, k), rows as exchanged
    chosen, others = torch.arange(k, device=A.device), torch.arange(k, m, device=A.device)
    X = torch.linalg.solve_triangular(L[:k], L[k:], upper=False, left=False, unitriangular=True)  # (m - k, k)
    before = X
    while X.numel():
        i, j = divmod(int(X.abs().argmax()), k)
        if abs(float(X[i, j])) <= DOMINANCE:
            break
        X, chosen, others = _exchanged(X, chosen, others, i, j)
    if X is not before:  # what large coefficients have left of rounding in the small ones
        X = torch.linalg.solve(L[chosen], L[others], left=False)
    order = rows_after(swaps, m).to(A.device)
    return order[chosen], X[order[others].argsort()]


def _exchanged(X: Tensor, chosen: Tensor, others: Tensor, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, positions chosen and others, once the j-th chosen and the i-th other row have changed places."""
    pivot, row, column = X[i, j].clone(), X[i].clone(), X[:, j].clone()
    row[j] -= 1
    column[i] += 1
    X = X - torch.outer(column, row / pivot)
    chosen, others = chosen.clone(), others.clone()
    chosen[j], others[i] = others[i].clone(), chosen[j].clone()
    return X, chosen, others
