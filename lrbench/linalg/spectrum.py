"""Singular values and vectors at every rank, from one Gram where it can be trusted and from an SVD where it cannot."""

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


def at_once(make: Callable[..., Any], *arguments: Any) -> Any:
    """`make(*arguments)`: what stands for `Context.once` where nothing is shared."""
    return make(*arguments)


class Spectrum:
    """The singular values of W and the singular vectors of its shorter side, in float64.

    The eigenvectors of the shorter side's Gram give both at every rank. Singular vectors of the longer side are not
    offered: `Wᵀ U / sigma` loses orthogonality where sigma is small, and `U_k (U_kᵀ W)` needs none. Ranks whose
    relative tail is under `GATE` are answered from an SVD of W in float64, which is computed only if there are such
    ranks among those asked for. All of it is done when the object is made; nothing is computed later and kept.

    Attributes:
        wide: whether m <= n, so that the vectors are left ones, of size m; else right ones, of size n.
        size: min(m, n).
        rank: the largest rank that can be asked.
    """

    def __init__(
        self, W: Tensor, G: Tensor | None = None, *, rank: int | None = None, once: Callable[..., Any] = at_once
    ) -> None:
        """Factorizes W.

        Args:
            W: (m, n).
            G: (s, s) float64, the Gram of its shorter side, s = min(m, n), where the caller already has it.
            rank: the largest rank that will be asked, at most s; by default s.
            once: `Context.once`, where the parts (Gram, eigenvectors, SVD) are to be shared with other reducers of W.

        Raises:
            torch.linalg.LinAlgError: no eigenvalues could be found, as where W holds NaN or Inf.
        """
        self.wide = W.shape[0] <= W.shape[1]
        self.size = min(W.shape)
        self.rank = self.size if rank is None else rank
        self._short = W if self.wide else W.T  # (s, l)
        exponent = 0
        if G is None:
            W, exponent = in_range(W)
            once = at_once if exponent else once  # nobody else has this copy
        squares, self._rows = once(eigenvectors, once(short_gram, W) if G is None else G)  # (s,), (s, s)
        errors = tail_errors(squares)  # (s + 1,)
        relative = errors / errors[0].clamp(min=torch.finfo(torch.float64).tiny)
        # At full rank the vectors are a whole orthonormal basis, whatever their accuracy.
        self._trusted: list[bool] = [*(relative[:-1] >= GATE).tolist(), True][: self.rank + 1]
        self._errors: list[float] = errors.tolist()[: self.rank + 1]
        self._exact = self._rows  # (s, s), the vectors for ranks under the gate
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
        self._refuse_above(k)
        return (self._rows if self._trusted[k] else self._exact)[:k].T

    def coordinates(self, k: int) -> Tensor:
        """W on the basis `leading(k)`: U_kᵀ W (k, n) where wide, else V_kᵀ Wᵀ (k, m); in the dtype of W.

        Raises:
            ValueError: k is above `rank`.
        """
        basis = self.leading(k).to(self._short.dtype)  # (s, k)
        with full_precision():
            # Of a tall W this is the transpose of `W V_k`, so that the factor lies in memory as it is used.
            return basis.T @ self._short if self.wide else (self._short.T @ basis).T

    def trusts(self, k: int) -> bool:
        """Whether rank k is answered from the Gram; else from an SVD of W."""
        self._refuse_above(k)
        return self._trusted[k]

    @property
    def vectors(self) -> Tensor:
        """All singular vectors of the shorter side, (min(m, n), min(m, n)), float64.

        As exact as they can be had, where `rank` was left at its default.
        """
        return self._exact.T

    def errors(self) -> list[float]:
        """The Eckart-Young optimum ‖W − W_k‖_F at k = 0 ... `rank`."""
        return self._errors

    def _refuse_above(self, k: int) -> None:
        if k > self.rank:
            raise ValueError(f"rank {k} was asked of a spectrum made for ranks up to {self.rank}")


def exact_vectors(W: Tensor) -> tuple[Tensor, Tensor]:
    """By an SVD of W in float64: the shorter side's singular vectors, the rows of (s, s), and tail errors (s + 1,)."""
    short = W if W.shape[0] <= W.shape[1] else W.T  # (s, l)
    # The triangle of an LQ has the same left vectors, and is square: the SVD never sees the long side.
    triangle = torch.linalg.qr(short.double().T, mode="r").R.T  # (s, s)
    driver = "gesvd" if triangle.is_cuda else None  # the default on CUDA, Jacobi, is less exact in the tail
    U, S, _ = torch.linalg.svd(triangle, driver=driver)
    return U.T.contiguous(), tail_errors(S.square())


def optimal_errors(W: Tensor, *, once: Callable[..., Any] = at_once) -> list[float]:
    """The Eckart-Young optimum ‖W − W_k‖_F at k = 0 ... min(m, n), for W (m, n).

    Args:
        W: finite.
        once: as in `Spectrum`.

    Raises:
        torch.linalg.LinAlgError: no eigenvalues could be found, as where W holds NaN or Inf.
    """
    return Spectrum(W, once=once).errors()
