"""Approximations with the smallest error on one side or on both.

output error     ‖(W − Ŵ) L‖_F² = E‖W x − Ŵ x‖², L Lᵀ = H = E[x xᵀ]; L is never inverted
predicted loss   ½ tr(G Δ H Δᵀ) = ½ ‖Lgᵀ Δ L‖_F², Δ = W − Ŵ, Lg Lgᵀ = G = E[g gᵀ] of the loss's gradients g in y = W x
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


def shrunk(S: Tensor, amount: float) -> Tensor:
    """S + amount · mean(diag S) · I in float64, for a second moment S (n, n) that few samples estimate badly."""
    S64 = S.double().clone()
    S64.diagonal().add_(amount * float(S64.diagonal().mean()))
    return S64


def predicted_loss(change: Tensor, H: Tensor, G: Tensor) -> float:
    """½ tr(G Δ H Δᵀ): the loss that a change Δ of a weight adds, to second order.

    The curvature of the loss is taken as the Kronecker product of H = E[x xᵀ] and G = E[g gᵀ], x the weight's input and
    g the loss's gradient in its output: Martens, Grosse, "Optimizing neural networks with Kronecker-factored
    approximate curvature", 2015 (arXiv 1503.05671).

    Args:
        change: Δ (m, n).
        H: (n, n).
        G: (m, m).
    """
    E = change.double()
    return 0.5 * max(0.0, float(((G.double() @ E) * (E @ H.double())).sum()))


def predicted_losses(W: Tensor, left: Tensor, right: Tensor, H: Tensor, G: Tensor) -> list[float]:
    """½ tr(G Δ_k H Δ_kᵀ) at k = 0 ... r, for Δ_k = W minus the first k of the r products of left · right.

    With M = (leftᵀ G left) ∘ (right H rightᵀ), the quadratic part is the sum of the leading block of M, so all ranks
    take hardly more time than the last.

    Args:
        W: (m, n).
        left: (m, r).
        right: (r, n).
        H: (n, n).
        G: (m, m).
    """
    W64, A, B, H64, G64 = (tensor.double() for tensor in (W, left, right, H, G))
    weighted_rows, weighted_columns = B @ H64, G64 @ A  # (r, n), (m, r)
    total = ((G64 @ W64) * (W64 @ H64)).sum()
    linear = ((weighted_columns.T @ W64) * weighted_rows).sum(1).cumsum(0)  # (r,)
    quadratic = ((A.T @ weighted_columns) * (weighted_rows @ B.T)).cumsum(0).cumsum(1).diagonal()
    return torch.cat([total[None], total - 2 * linear + quadratic]).mul(0.5).clamp(min=0).tolist()


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


class TwoSidedSpectrum:
    """The best approximation of W at every rank in the norm ‖Lgᵀ (W − Ŵ) L‖_F.

    With U_k the leading left singular vectors of Lgᵀ W L, the best rank-k approximation of that product is
    U_k U_kᵀ Lgᵀ W L; so Ŵ = Lg⁻ᵀ U_k (U_kᵀ Lgᵀ W), without an inverse of L.
    """

    def __init__(self, W: Tensor, L: Tensor, Lg: Tensor) -> None:
        """Factorizes Lgᵀ W L.

        Args:
            W: (m, n).
            L: (n, n).
            Lg: (m, m), lower triangular, not singular.
        """
        self._W, self._Lg = W, Lg
        self._scaled = Lg.T @ W.double()  # (m, n)
        self._spectrum = WeightedSpectrum(self._scaled, L)

    def _products(self, k: int) -> tuple[Tensor, Tensor]:
        U = self._spectrum.leading(k)  # (m, k)
        return torch.linalg.solve_triangular(self._Lg.T, U, upper=True), U.T @ self._scaled

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        """Lg⁻ᵀ U_k (m, k) and U_kᵀ Lgᵀ W (k, n), in the dtype of W."""
        left, right = self._products(k)
        return left.to(self._W.dtype).contiguous(), right.to(self._W.dtype).contiguous()

    def weighted_errors(self) -> list[float]:
        """‖Lgᵀ (W − Ŵ_k) L‖_F at k = 0 ... min(m, n), the smallest of any matrix of rank k."""
        return self._spectrum.weighted_errors()

    def errors(self) -> list[float]:
        """‖W − Ŵ_k‖_F at k = 0 ... min(m, n); it may increase with k."""
        left, right = self._products(min(self._W.shape))
        products = (left.T @ left) * (
            right @ right.T
        )  # the error of rank k is the sum of its rows and columns from k on
        squares = products.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0).clamp(min=0)
        return [*squares.sqrt().tolist(), 0.0]


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
