"""Singular values and vectors at every rank, from one Gram where it can be trusted and from an SVD where it cannot."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lrbench.linalg.gram import GATE, full_precision, gram, tail_errors


class Spectrum:
    """The singular values of W and the singular vectors of its shorter side, in float64.

    `eigh(W Wᵀ)` gives both at every rank for the price of one Gram. Singular vectors of the longer side are not
    offered: `Wᵀ U / sigma` loses orthogonality where sigma is small, and `U_k (U_kᵀ W)` needs none. A rank whose
    relative tail is under `GATE` is answered from an SVD of W in float64, which is computed when first needed.

    Attributes:
        wide: whether m <= n, so that the vectors are left ones, of size m; else right ones, of size n.
        size: min(m, n).
    """

    def __init__(self, W: Tensor, G: Tensor | None = None) -> None:
        """Takes W (m, n), and the Gram of its shorter side (s, s) in float64 where the caller already has it."""
        self.wide = W.shape[0] <= W.shape[1]
        self.size = min(W.shape)
        self._short = W if self.wide else W.T  # (s, l)
        squares, vectors = torch.linalg.eigh(gram(self._short) if G is None else G)
        self._vectors = vectors.flip(1)  # (s, s), largest first
        self._errors = tail_errors(squares.flip(0))
        relative = self._errors / self._errors[0].clamp(min=torch.finfo(torch.float64).tiny)
        # At full rank the vectors are a whole orthonormal basis, whatever their accuracy.
        self._trusted: list[bool] = [*(relative[:-1] >= GATE).tolist(), True]
        self._coordinates: dict[bool, Tensor] = {}

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor]:
        """Vectors (s, s) and errors (s + 1,) from W itself."""
        # The triangle of an LQ has the same left vectors, and is square: the SVD never sees the long side.
        triangle = torch.linalg.qr(self._short.double().T, mode="r").R.T  # (s, s)
        driver = "gesvd" if triangle.is_cuda else None  # the default on CUDA, Jacobi, is less exact in the tail
        U, S, _ = torch.linalg.svd(triangle, driver=driver)
        return U, tail_errors(S.square())

    def leading(self, k: int) -> Tensor:
        """The first k singular vectors of the shorter side: (min(m, n), k), orthonormal, float64."""
        vectors = self._vectors if self._trusted[k] else self._svd[0]
        return vectors[:, :k]

    def coordinates(self, k: int) -> Tensor:
        """W on the basis `leading(k)`: U_kᵀ W (k, n) where wide, else V_kᵀ Wᵀ (k, m); in the dtype of W.

        Rows are computed when first asked for, and shared by the ranks that have them in common.
        """
        trusted = self._trusted[k]
        known = self._coordinates.get(trusted, self._short[:0])
        if k > len(known):
            basis = self.leading(k)[:, len(known) :].to(self._short.dtype)
            with full_precision():
                known = self._coordinates[trusted] = torch.cat([known, basis.T @ self._short])
        return known[:k]

    @property
    def vectors(self) -> Tensor:
        """All singular vectors of the shorter side, each as exact as it can be had: (min(m, n), min(m, n)), float64."""
        return self._vectors if all(self._trusted) else self._svd[0]

    def errors(self) -> list[float]:
        """The Eckart-Young optimum ‖W − W_k‖_F at k = 0 ... min(m, n)."""
        if all(self._trusted):
            return self._errors.tolist()
        pairs = zip(self._trusted, self._errors.tolist(), self._svd[1].tolist(), strict=True)
        return [by_gram if trusted else by_svd for trusted, by_gram, by_svd in pairs]


def optimal_errors(W: Tensor) -> list[float]:
    """The Eckart-Young optimum ‖W − W_k‖_F at k = 0 ... min(m, n), for W (m, n)."""
    return Spectrum(W).errors()
