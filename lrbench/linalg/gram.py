"""The float64 Gram matrix, how far it can be trusted, and products that keep their digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Relative tail error ‖W − W_k‖ / ‖W‖ under which a float64 Gram no longer tells the tail from rounding: squaring
#: leaves half of float64's sixteen digits, and sums over thousands of directions take some of those. Below it, use an
#: SVD or QR of W itself. On both sides tests/test_linalg.py holds the errors to within two percent of the optimum.
GATE = 1e-6


def gram(W: Tensor) -> Tensor:
    """G = W Wᵀ in float64.

    Args:
        W: (m, n); pass the transpose where n < m and the smaller Gram serves.

    Returns:
        (m, m), symmetric to the last bit where the BLAS is.
    """
    W64 = W.double()
    return W64 @ W64.T


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
