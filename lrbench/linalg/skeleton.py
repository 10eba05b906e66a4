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
    order = rows_after(swaps, m).to(A.device)
    rows, others = order[:k], order[k:]
    # L_2 L_1⁻¹, solved from the right; the strict upper part of `factored` is U, and is not read.
    X = torch.linalg.solve_triangular(factored[:k], factored[k:], upper=False, left=False, unitriangular=True)
    while X.numel():
        i, j = divmod(int(X.abs().argmax()), k)
        if abs(float(X[i, j])) <= DOMINANCE:
            break
        X, rows, others = _exchanged(X, rows, others, i, j)
    ascending = others.argsort()
    return rows, X[ascending]


def _exchanged(X: Tensor, rows: Tensor, others: Tensor, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, rows and others once the j-th chosen row and the i-th other one have changed places."""
    pivot, row, column = X[i, j].clone(), X[i].clone(), X[:, j].clone()
    row[j] -= 1
    column[i] += 1
    X = X - torch.outer(column, row / pivot)
    rows, others = rows.clone(), others.clone()
    rows[j], others[i] = others[i].clone(), rows[j].clone()
    return X, rows, others
