"""Gram matrices, the limits of their accuracy, and matrix products in full precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from lrbench.linalg import lapack

_Scaled = TypeVar("_Scaled", Tensor, float)

#: Relative tail error ‖W − W_k‖ / ‖W‖ below which a float64 Gram cannot resolve the tail: squaring leaves half of
#: float64's sixteen digits, and sums over thousands of terms lose some of those. Below it, use an SVD or QR of W;
#: tests/linalg/test_linalg.py checks that errors on both sides are within two percent of the optimum.
GATE = 1e-6


def gate(dtype: torch.dtype) -> float:
    """The smallest relative tail error that a Gram in this dtype resolves: `GATE`, or 0.03 in float32.

    In float32, squares have a rounding error of about 1e-6 of the total, a thousandth of 0.03².
    """
    return GATE if dtype == torch.float64 else 3e-2


def in_range(W: Tensor) -> tuple[Tensor, int]:
    """`scaled` and `exponent` with W = scaled * 2^exponent, such that squares of `scaled` do not over- or underflow.

    Returns W itself and 0 if the exponent of its largest entry lies in the middle half of float32's range (float64's
    for a float64 W), so that sums of squares stay in range. Otherwise the largest entry is scaled to between 1 and 2;
    scaling by a power of two is exact, but for entries that become subnormal.

    Args:
        W: (m, n), any floating dtype, finite.
    """
    largest = float(W.abs().max()) if W.numel() else 0.0
    bound = math.frexp(torch.finfo(torch.float64 if W.dtype == torch.float64 else torch.float32).max)[1] // 4
    exponent = math.frexp(largest)[1] - 1
    if not 0 < largest < math.inf or abs(exponent) <= bound:
        return W, 0
    return times_power(W, -exponent), exponent


def times_power(value: _Scaled, exponent: int) -> _Scaled:
    """`value * 2^exponent`, for a tensor or a float, even if 2^exponent itself overflows its dtype."""
    half = exponent // 2
    return value * 2.0**half * 2.0 ** (exponent - half)


def gram(W: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """G = W Wᵀ, computed in `dtype`.

    Args:
        W: (m, n).
        dtype: float64, or float32 if the caller needs only half the digits.

    Returns:
        (m, m), exactly symmetric if the BLAS product is.
    """
    if lapack.is_faster(W):
        return lapack.symmetric_product(W, dtype)
    with full_precision():
        A = W.to(dtype)
        return A @ A.T


def short_gram(W: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The Gram of W's shorter side, (s, s) with s = min(m, n): W Wᵀ where m <= n, else Wᵀ W."""
    return gram(W if W.shape[0] <= W.shape[1] else W.T, dtype)


def eigenvectors(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (s,) of a symmetric G (s, s), largest first, and its eigenvectors as the rows of (s, s).

    Raises:
        torch.linalg.LinAlgError: G holds NaN or Inf, or the solver did not converge.
    """
    if not bool(G.isfinite().all()):
        raise torch.linalg.LinAlgError(
            f"a {len(G)} x {len(G)} Gram matrix holds NaN or Inf: so does its matrix, or squares overflow "
            f"{str(G.dtype).removeprefix('torch.')}"
        )
    if lapack.is_faster(G):
        values, rows = lapack.eigenvectors(G)
        return values.flip(0), rows.flip(0)
    values, vectors = torch.linalg.eigh(G)
    return values.flip(0), vectors.T.flip(0)


def tail_errors(squares: Tensor) -> Tensor:
    """Frobenius error of keeping only the first k of s orthogonal components, for k = 0 ... s.

    Args:
        squares: (s,) squared norms of the components; negative rounding errors count as zero.

    Returns:
        (s + 1,) `sqrt(sum(squares[k:]))`, non-increasing; the last is 0.
    """
    tails = squares.clamp(min=0).flip(0).cumsum(0).flip(0)  # from the small end, which keeps digits of small tails
    return torch.cat([tails, tails.new_zeros(1)]).sqrt()


@contextmanager
def full_precision() -> Iterator[None]:
    """Disables TF32 inside the block: its ten mantissa bits are too few for Grams, sketches and projections."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
