"""Least squares on selected rows and columns by QR, without forming an inverse or a Gram matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def solve_upper(R: Tensor, B: Tensor, cutoff: float) -> Tensor:
    """The X that minimizes ‖R X − B‖_F, for an upper triangular R (k, k), possibly singular, and B (k, p).

    By back substitution if the result is finite and bounded; otherwise the minimum-norm solution, treating singular
    values of R below `cutoff` times the largest as zero.

    Returns:
        (k, p), in the dtype of R.
    """
    X = torch.linalg.solve_triangular(R, B, upper=True)
    # Entries above this bound come from division by rounding errors, and would swamp the rest in a shorter dtype.
    bound = float(B.abs().max()) / max(float(R.abs().max()) * cutoff, torch.finfo(R.dtype).tiny) if B.numel() else 0.0
    if bool(X.isfinite().all()) and float(X.abs().max() if X.numel() else 0.0) <= bound:
        return X
    return _pinv(R, cutoff) @ B


def _pinv(R: Tensor, cutoff: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    kept = S.gt(cutoff * S[:1])
    inverse = torch.where(kept, 1 / torch.where(kept, S, 1), 0)
    return (Vh.T * inverse) @ U.T


class RowRefit:
    """Coefficients of all rows of W on a nested selection of its rows: one QR serves every rank.

    With `W_Iᵀ = Q R`, the first k selected rows have the leading parts Q_k and R_k, and the least-squares coefficients
    are `(W Q_k) R_k⁻ᵀ`.
    """

    def __init__(self, W: Tensor, order: Tensor) -> None:
        """Factorizes the rows `order` (r,), best first, of W (m, n)."""
        self._order = order
        self._cutoff = torch.finfo(W.dtype).eps * max(W.shape)
        W64 = W.double()
        Q, self._R = torch.linalg.qr(W64.index_select(0, order).T)  # (n, r), (r, r)
        self._WQ = W64 @ Q  # (m, r)
        self._norm = float(torch.linalg.matrix_norm(W64))

    def errors(self) -> list[float]:
        """Frobenius error of W's least-squares fit on its first k = 0 ... r selected rows: r + 1 floats.

        A difference of squares, accurate to 1e-8 of ‖W‖.
        """
        captured = self._WQ.square().sum(0)  # (r,)
        remainder = max(self._norm**2 - float(captured.sum()), 0.0)
        tails = torch.cat([captured.flip(0).cumsum(0).flip(0), captured.new_zeros(1)]) + remainder  # (r + 1,)
        errors: list[float] = tails.sqrt().tolist()
        return errors + [errors[-1]] * (len(self._order) + 1 - len(errors))

    def coefficients(self, k: int, others: Tensor) -> Tensor:
        """Least-squares coefficients of the rows `others` on the first k selected rows, k <= r.

        Returns:
            (len(others), k) float64; zero on selected rows past the n-th, since at most n are independent.
        """
        size = min(k, self._R.shape[0])
        solution = solve_upper(self._R[:size, :size], self._WQ[:, :size].index_select(0, others).T, self._cutoff)
        return torch.cat([solution, solution.new_zeros(k - size, len(others))]).T


class Core:
    """The middle factor of a CUR, `U = C⁺ W R⁺`, at every rank of nested columns and rows.

    With `C = Q_C T_C` and `Rᵀ = Q_R T_R`, one product `M = Q_Cᵀ W Q_R` serves every rank: the first k columns and rows
    have the leading parts of these matrices, and `U_k = T_C⁻¹ M_k T_R⁻ᵀ`. (`U = W[I,J]⁻¹`, which interpolates W on the
    chosen rows and columns, never has a smaller error, and the error grows as W[I,J] approaches a singular matrix.)
    """

    def __init__(self, W: Tensor, columns: Tensor, rows: Tensor) -> None:
        """Factorizes W (m, n) on positions (r,) of its columns and rows, best first, r <= min(m, n)."""
        self._dtype = W.dtype
        W64 = W.double()
        Q_C, self._T_C = torch.linalg.qr(W64.index_select(1, columns))  # (m, r), (r, r)
        Q_R, self._T_R = torch.linalg.qr(W64.index_select(0, rows).T)  # (n, r), (r, r)
        self._M = Q_C.T @ (W64 @ Q_R)  # (r, r)
        self._norm = float(torch.linalg.matrix_norm(W64))

    def at_rank(self, k: int) -> Tensor:
        """U (k, k), in the dtype of W."""
        return self._fitted(k)[0]

    def error(self, k: int) -> float:
        """‖W − C U R‖_F at rank k, including the error of rounding U.

        A difference of squares, accurate to 1e-8 of ‖W‖.
        """
        kept = float(self._M[:k, :k].square().sum())
        return math.sqrt(max(self._norm**2 - kept, 0.0) + self._fitted(k)[1] ** 2)

    def _fitted(self, k: int) -> tuple[Tensor, float]:
        """U (k, k), and the error ‖M − T_C U T_Rᵀ‖_F that rounding U adds to `C U R`.

        If C or R is nearly singular, U has huge entries that cancel in `C U R` only to the precision of U's dtype.
        Several cut-offs for small singular values are tried, and the one with the smallest error is used.
        """
        T_C, T_R, M = self._T_C[:k, :k], self._T_R[:k, :k], self._M[:k, :k]
        eps = torch.finfo(self._dtype).eps
        goal = 10 * eps * float(torch.linalg.matrix_norm(self._M))
        best, least = None, float("inf")
        for cutoff in (eps * k, eps**0.75, eps**0.5):
            half = solve_upper(T_C, M, cutoff)  # (k, k)
            U = solve_upper(T_R, half.T, cutoff).T.to(self._dtype)  # (k, k)
            lost = float(torch.linalg.matrix_norm(M - T_C @ U.double() @ T_R.T))
            if best is None or lost < least:
                best, least = U, lost
            if least <= goal:
                break
        assert best is not None
        return best, least
