"""Approximations with the smallest output error: ‖(W − Ŵ) L‖_F² = E‖W x − Ŵ x‖², where L Lᵀ = E[x xᵀ].

L is never inverted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrbench.linalg.gram import full_precision, tail_errors
from lrbench.linalg.spectrum import Spectrum


def root(H: Tensor) -> Tensor:
    """L (n, n), float64, with L Lᵀ = H: the Cholesky factor, or Q sqrt(Λ) of H = Q Λ Qᵀ if H is singular.

    Args:
        H: (n, n), symmetric positive semidefinite; eigenvalues negative by rounding count as zero.
    """
    H64 = H.double()
    L, failed = torch.linalg.cholesky_ex(H64)
    if not int(failed):
        return L
    values, vectors = torch.linalg.eigh(H64)
    return vectors * values.clamp(min=0).sqrt()


def weighted(W: Tensor, L: Tensor) -> Tensor:
    """W L (m, n) in float64, for W (m, n) and L (n, n), or L (n,) for a diagonal one."""
    return W.double() * L if L.ndim == 1 else W.double() @ L


def output_error(W: Tensor, approximation: Tensor, H: Tensor) -> float:
    """Relative output error sqrt(E‖W x − Ŵ x‖² / E‖W x‖²), for W and Ŵ (m, n) and H = E[x xᵀ] (n, n).

    If W x is always zero, the numerator's root alone.
    """
    H64 = H.double()

    def size(E: Tensor) -> float:
        return float(((E @ H64) * E).sum().clamp(min=0).sqrt())

    total, lost = size(W.double()), size(W.double() - approximation.double())
    return lost / total if total else lost


class WeightedSpectrum:
    """The best approximation of W at every rank in the norm ‖(W − Ŵ) L‖_F.

    By Eckart and Young the best rank-k approximation of W L is U_k U_kᵀ W L, with U_k the leading left singular vectors
    of W L; so Ŵ = U_k (U_kᵀ W), without an inverse of L. If m > n, U_k = orth(W L V_k) avoids the m × m Gram matrix.
    """

    def __init__(self, W: Tensor, L: Tensor) -> None:
        """Factorizes W L, for W (m, n) and L (n, n), or (n,) for a diagonal L."""
        self._W = W
        self._product = weighted(W, L)  # (m, n)
        self._spectrum = Spectrum(self._product)

    def leading(self, k: int) -> Tensor:
        """U_k (m, k), orthonormal, float64, for k up to min(m, n)."""
        vectors = self._spectrum.leading(k)
        return vectors if self._spectrum.wide else torch.linalg.qr(self._product @ vectors).Q

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        """U_k (m, k) and U_kᵀ W (k, n), in the dtype of W."""
        U = self.leading(k).to(self._W.dtype)
        with full_precision():
            return U.contiguous(), U.T @ self._W

    def weighted_errors(self) -> list[float]:
        """‖(W − Ŵ_k) L‖_F at k = 0 ... min(m, n), the smallest of any matrix of rank k."""
        return self._spectrum.errors()

    def errors(self) -> list[float]:
        """‖W − Ŵ_k‖_F at k = 0 ... min(m, n)."""
        size = min(self._W.shape)
        coordinates = self.leading(size).T @ self._W.double()  # (s, n)
        return tail_errors(coordinates.square().sum(1)).tolist()


class FeatureRefit:
    """Coefficients of W on a nested selection of input features: `W x ≈ B x_J` with `B = W H[:, J] H[J, J]⁻¹`.

    This B minimizes E‖W x − B x_J‖² (Nyström). One Cholesky factor of H, with its features in the order of selection,
    serves every rank: the factor of a leading block is the leading block of the factor.
    """

    def __init__(self, W: Tensor, H: Tensor, order: Tensor) -> None:
        """Factorizes H = E[x xᵀ] (n, n) on the features `order` (r,), best first, for W (m, n).

        Raises:
            ValueError: H is singular on the selected features; use damping.
        """
        self._dtype = W.dtype
        H64 = H.double()
        self._WH = W.double() @ H64.index_select(1, order)  # (m, r)
        self._factor, failed = torch.linalg.cholesky_ex(H64.index_select(0, order).index_select(1, order))
        if int(failed):
            raise ValueError("the second moment is singular on the features chosen; set a damping above 0")

    def coefficients(self, k: int) -> Tensor:
        """B (m, k), in the dtype of W."""
        return torch.cholesky_solve(self._WH[:, :k].T, self._factor[:k, :k]).T.to(self._dtype).contiguous()
