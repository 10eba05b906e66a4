"""Singular values and vectors at every rank, from one Gram matrix where it is accurate enough, else from an SVD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrbench.linalg.gram import (
    GATE,
    eigenvectors,
    full_precision,
    in_range,
    short_gram,
    tail_errors,
    times_power,
)


def call_directly(make: Callable[..., Any], *arguments: Any) -> Any:
    """`make(*arguments)`: a substitute for `Context.once` that shares nothing."""
    return make(*arguments)


class Spectrum:
    """The singular values of W and the singular vectors of its shorter side, in float64.

    The eigenvectors of the shorter side's Gram matrix give both at every rank. Singular vectors of the longer side are
    not offered: `Wᵀ U / sigma` loses orthogonality where sigma is small, and `U_k (U_kᵀ W)` does not need them. Ranks
    whose relative error is below `GATE` use an SVD of W in float64, computed only if there are such ranks up
    to `rank`. All of it is computed in the constructor.

    Attributes:
        wide: whether m <= n; the vectors are then left singular vectors, of size m, else right ones, of size n.
        size: min(m, n).
        rank: the largest rank available.
    """

    def __init__(
        self, W: Tensor, G: Tensor | None = None, *, rank: int | None = None, once: Callable[..., Any] = call_directly
    ) -> None:
        """Factorizes W.

        Args:
            W: (m, n).
            G: (s, s) float64, the Gram matrix of W's shorter side, s = min(m, n), if the caller already has it.
            rank: the largest rank needed, at most s; by default s.
            once: `Context.once`, to share Gram matrix, eigenvectors and SVD with other reducers of W.

        Raises:
            torch.linalg.LinAlgError: W holds NaN or Inf, or the eigenvalue solver did not converge.
        """
        self.wide = W.shape[0] <= W.shape[1]
        self.size = min(W.shape)
        self.rank = self.size if rank is None else rank
        self._short = W if self.wide else W.T  # (s, l)
        exponent = 0
        if G is None:
            W, exponent = in_range(W)
            once = call_directly if exponent else once  # no other reducer sees this scaled copy
        squares, self._rows = once(eigenvectors, once(short_gram, W) if G is None else G)  # (s,), (s, s)
        errors = tail_errors(squares)  # (s + 1,)
        relative = errors / errors[0].clamp(min=torch.finfo(torch.float64).tiny)
        # At full rank the vectors are a complete orthonormal basis, whatever their accuracy.
        self._trusted: list[bool] = [*(relative[:-1] >= GATE).tolist(), True][: self.rank + 1]
        self._errors: list[float] = errors.tolist()[: self.rank + 1]
        self._exact = self._rows  # (s, s), the vectors for ranks that the Gram does not resolve
        if not all(self._trusted):
            self._exact, errors = once(exact_vectors, W)
            pairs = zip(self._trusted, self._errors, errors.tolist(), strict=False)
            self._errors = [by_gram if trusted else by_svd for trusted, by_gram, by_svd in pairs]
        if exponent:
            self._errors = [times_power(error, exponent) for error in self._errors]

    def leading(self, k: int) -> Tensor:
        """The first k singular vectors of the shorter side: (min(m, n), k), orthonormal, float64.

        Raises:
            ValueError: k is above `rank`.
        """
        self._check_rank(k)
        return (self._rows if self._trusted[k] else self._exact)[:k].T

    def coordinates(self, k: int) -> Tensor:
        """W in the basis `leading(k)`: U_kᵀ W (k, n) if wide, else V_kᵀ Wᵀ (k, m); in the dtype of W.

        Raises:
            ValueError: k is above `rank`.
        """
        basis = self.leading(k).to(self._short.dtype)  # (s, k)
        with full_precision():
            # For a tall W, transpose `W V_k`, so that the factor W V_k is contiguous.
            return basis.T @ self._short if self.wide else (self._short.T @ basis).T

    def trusts(self, k: int) -> bool:
        """Whether rank k uses the Gram matrix, rather than an SVD of W.

        Raises:
            ValueError: k is above `rank`.
        """
        self._check_rank(k)
        return self._trusted[k]

    @property
    def vectors(self) -> Tensor:
        """All singular vectors of the shorter side: (min(m, n), min(m, n)), float64.

        Fully accurate only if `rank` was left at its default.
        """
        return self._exact.T

    def errors(self) -> list[float]:
        """The smallest error of each rank (Eckart, Young): ‖W − W_k‖_F at k = 0 ... `rank`."""
        return self._errors

    def _check_rank(self, k: int) -> None:
        if k > self.rank:
            raise ValueError(f"rank {k} is above {self.rank}, the largest rank of this spectrum")


def exact_vectors(W: Tensor) -> tuple[Tensor, Tensor]:
    """Singular vectors of W's shorter side, as rows of (s, s), and tail errors (s + 1,), from an SVD in float64."""
    short = W if W.shape[0] <= W.shape[1] else W.T  # (s, l)
    # The triangle of an LQ has the same left vectors and is square, so the SVD does not depend on the longer side.
    triangle = torch.linalg.qr(short.double().T, mode="r").R.T  # (s, s)
    driver = "gesvd" if triangle.is_cuda else None  # CUDA's default, Jacobi, computes small values less exactly
    U, S, _ = torch.linalg.svd(triangle, driver=driver)
    return U.T.contiguous(), tail_errors(S.square())


def optimal_errors(W: Tensor, *, once: Callable[..., Any] = call_directly) -> list[float]:
    """The smallest error of each rank (Eckart, Young): ‖W − W_k‖_F at k = 0 ... min(m, n), for W (m, n).

    Args:
        W: finite.
        once: as in `Spectrum`.

    Raises:
        torch.linalg.LinAlgError: W holds NaN or Inf, or the eigenvalue solver did not converge.
    """
    return Spectrum(W, once=once).errors()
