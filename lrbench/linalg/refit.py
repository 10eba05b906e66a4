"""Least squares on chosen rows and columns, through QR and never through an inverse or a Gram."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def solve_upper(R: Tensor, B: Tensor, cutoff: float) -> Tensor:
    """X that minimizes ‖R X − B‖_F, for an upper triangular R (k, k) that may be singular, and B (k, p).

    Back substitution where that gives sane numbers; else the solution of least norm, with the singular values of R
    under `cutoff` times the largest taken as zero.

    Returns:
        (k, p), in the dtype of R.
    """
    X = torch.linalg.solve_triangular(R, B, upper=True)
    # Entries of such size are division by rounding, and would drown the rest when they are stored in fewer digits.
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
    """Coefficients of all rows of W on a nested choice of its rows: one QR serves every rank.

    With `W_I ᵀ = Q R`, the first k rows of the choice have the leading parts of Q and R, and the least-squares
    coefficients are `(W Q_k) R_k⁻ᵀ`.
    """

    def __init__(self, W: Tensor, order: Tensor) -> None:
        """Takes W (m, n) and the choice (r,), best first."""
        self._order = order
        self._cutoff = torch.finfo(W.dtype).eps * max(W.shape)
        W64 = W.double()
        Q, self._R = torch.linalg.qr(W64.index_select(0, order).T)  # (n, r), (r, r)
        self._WQ = W64 @ Q  # (m, r)
        self._norm = float(torch.linalg.matrix_norm(W64))

    def errors(self) -> list[float]:
        """‖W − W_I⁺-fit‖_F with the first k = 0 ... r rows kept: what the projections leave of ‖W‖².

        A difference of squares: exact to a hundred-millionth of ‖W‖.
        """
        taken = self._WQ.square().sum(0)  # (r,)
        rest = max(self._norm**2 - float(taken.sum()), 0.0)
        tails = torch.cat([taken.flip(0).cumsum(0).flip(0), taken.new_zeros(1)]) + rest  # (r + 1,)
        errors: list[float] = tails.sqrt().tolist()
        return errors + [errors[-1]] * (len(self._order) + 1 - len(errors))

    def coefficients(self, k: int, others: Tensor) -> Tensor:
        """Least-squares coefficients of the rows `others` on the first k of the choice, k <= r.

        Returns:
            (len(others), k) float64; zeros for chosen rows beyond the n that can be independent.
        """
        size = min(k, self._R.shape[0])  # more rows than W has columns depend on the first ones
        solution = solve_upper(self._R[:size, :size], self._WQ[:, :size].index_select(0, others).T, self._cutoff)
        return torch.cat([solution, solution.new_zeros(k - size, len(others))]).T


class Core:
    """The middle factor of a CUR, `U = C⁺ W R⁺`, at every rank of nested columns and rows.

    With `C = Q_C T_C` and `Rᵀ = Q_R T_R`, one product `M = Q_Cᵀ W Q_R` serves every rank: the leading parts of all
    five belong to the leading columns and rows, and `U_k = T_C⁻¹ M_k T_R⁻ᵀ`. (The cross `W[I,J]⁻¹` in place of this U
    only interpolates: its error is never smaller, and grows as W[I,J] nears a singular matrix.)
    """

    def __init__(self, W: Tensor, columns: Tensor, rows: Tensor) -> None:
        """Takes W (m, n), and positions (r,) of columns and rows, best first, r <= min(m, n)."""
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
        """‖W − C U R‖_F at rank k, with what U loses by being rounded.

        A difference of squares: exact to a hundred-millionth of ‖W‖.
        """
        kept = float(self._M[:k, :k].square().sum())
        return math.sqrt(max(self._norm**2 - kept, 0.0) + self._fitted(k)[1] ** 2)

    def _fitted(self, k: int) -> tuple[Tensor, float]:
        """U (k, k), and what `C U R` loses by it.

        Where C or R is nearly singular, U's entries are huge and cancel in `C U R`, which they do only as far as U's
        dtype has digits. What U loses in `C U R` once rounded is `‖M − T_C U T_Rᵀ‖`, a k×k computation: the cut-off
        of small singular values that loses least is taken.
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
