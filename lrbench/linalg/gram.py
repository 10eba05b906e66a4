"""The float64 Gram matrix, how far it can be trusted, and products that keep their digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from lrbench.linalg import lapack

_Scaled = TypeVar("_Scaled", Tensor, float)

#: Relative tail error ‖W − W_k‖ / ‖W‖ under which a float64 Gram no longer tells the tail from rounding: squaring
#: leaves half of float64's sixteen digits, and sums over thousands of directions take some of those. Below it, use an
#: SVD or QR of W itself; tests/linalg/test_linalg.py holds errors on both sides to within two percent of the optimum.
GATE = 1e-6


def gate(dtype: torch.dtype) -> float:
    """The relative tail error down to which a Gram in a dtype serves: `GATE`, or 0.03 in float32.

    There the squares are rounded to some 1e-6 of the whole, a thousandth of a tail of 0.03, squared.
    """
    return GATE if dtype == torch.float64 else 3e-2


def in_range(W: Tensor) -> tuple[Tensor, int]:
    """W as `scaled * 2^exponent`, with squares of `scaled` that neither overflow nor vanish.

    W itself and 0 where its largest entry has an exponent in the middle half of what float32 has, or float64 for a W of
    float64: a square takes the whole range then, and a sum of many finds room. Else the largest entry is brought
    between 1 and 2; scaling by a power of two rounds nothing that counts.

    Args:
        W: (m, n), of any floating dtype; finite.
    """
    largest = float(W.abs().max()) if W.numel() else 0.0
    bound = math.frexp(torch.finfo(torch.float64 if W.dtype == torch.float64 else torch.float32).max)[1] // 4
    exponent = math.frexp(largest)[1] - 1
    if not 0 < largest < math.inf or abs(exponent) <= bound:
        return W, 0
    return times_power(W, -exponent), exponent


def times_power(value: _Scaled, exponent: int) -> _Scaled:
    """`value * 2^exponent`, of a tensor or a float, also where 2^exponent itself is beyond its dtype."""
    half = exponent // 2
    return value * 2.0**half * 2.0 ** (exponent - half)


def gram(W: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """G = W Wᵀ, computed in `dtype`.

    Args:
        W: (m, n).
        dtype: float64, or float32 where the caller knows that half the digits will do.

    Returns:
        (m, m), symmetric to the last bit where the BLAS is.
    """
    if lapack.pays(W):
        return lapack.symmetric_product(W, dtype)
    with full_precision():
        A = W.to(dtype)
        return A @ A.T


def short_gram(W: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The Gram of W's shorter side, (s, s) with s = min(m, n): W Wᵀ where m <= n, else Wᵀ W."""
    return gram(W if W.shape[0] <= W.shape[1] else W.T, dtype)


def eigenvectors(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (s,), largest first, and eigenvectors in the rows of (s, s), of a symmetric G.

    Raises:
        torch.linalg.LinAlgError: none could be found, as where G holds NaN or Inf.
    """
    if not bool(G.isfinite().all()):
        raise torch.linalg.LinAlgError(
            f"a {len(G)} x {len(G)} Gram matrix holds NaN or Inf: so does its matrix, or squares overflow "
            f"{str(G.dtype).removeprefix('torch.')}"
        )
    if lapack.pays(G):
        values, rows = lapack.eigenvectors(G)
        return values.flip(0), rows.flip(0)
    values, vectors = torch.linalg.eigh(G)
    return values.flip(0), vectors.T.flip(0)


def tail_errors(squares: Tensor) -> Tensor:
    """Frobenius errors of dropping all but the first k of some orthogonal parts, for k = 0 ... s.

    Args:
        squares: (s,) squared norms of the parts; rounding below zero is taken as zero.

    Returns:
        (s + 1,) `sqrt(sum(squares[k:]))`, never growing, the last one 0.
    """
    tails = squares.clamp(min=0).flip(0).cumsum(0).flip(0)  # summed from the small end, so that small tails keep digits
    return torch.cat([tails, tails.new_zeros(1)]).sqrt()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 within: its ten bits of mantissa are too few for Grams, sketches and projections."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
