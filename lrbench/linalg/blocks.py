"""Singular values and truncated products of many small matrices of one shape, at every rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lrbench.linalg.gram import GATE, full_precision, tail_errors


def block_errors(blocks: Tensor) -> list[float]:
    """The smallest total error of all blocks when each keeps r = 0 ... s singular components, s = min(p, q).

    Computed from float64 Gram matrices; relative errors below `GATE` from SVDs of the blocks themselves.

    Args:
        blocks: (..., p, q).

    Returns:
        s + 1 floats, sqrt(Σ over blocks of Σ_{j > r} sigma_j²), non-increasing; the last is 0.
    """
    squares = torch.linalg.eigvalsh(_short_gram(blocks)).flip(-1)  # (..., s), largest first
    errors = tail_errors(squares.flatten(0, -2).sum(0))
    if bool((errors[:-1] < GATE * errors[0]).any()):
        exact = torch.linalg.svdvals(blocks.double(), driver=_driver(blocks)).square()
        errors = torch.where(errors < GATE * errors[0], tail_errors(exact.flatten(0, -2).sum(0)), errors)
    return [float(error) for error in errors]


def block_truncations(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of each block: factors (..., p, r) and (..., r, q), in the dtype of the blocks.

    The factors are U_r and U_rᵀ B, with U_r the leading singular vectors of the shorter side. They come from float64
    Gram matrices, or from SVDs of the blocks where the relative error is below `GATE`.

    Args:
        blocks: (..., p, q).
        rank: r, at most min(p, q).
    """
    wide = blocks.shape[-2] <= blocks.shape[-1]
    short = blocks if wide else blocks.mT  # (..., s, l)
    squares, vectors = torch.linalg.eigh(_short_gram(blocks))
    kept, rest = squares[..., squares.shape[-1] - rank :].sum(), squares[..., : squares.shape[-1] - rank].sum()
    if rank < squares.shape[-1] and float(rest) < GATE**2 * float(kept + rest):
        U = torch.linalg.svd(short.double(), full_matrices=False, driver=_driver(blocks)).U[..., :rank]
    else:
        U = vectors[..., squares.shape[-1] - rank :]  # (..., s, r)
    U = U.to(blocks.dtype).contiguous()
    with full_precision():
        coordinates = U.mT @ short  # (..., r, l)
    return (U, coordinates) if wide else (coordinates.mT, U.mT)


def _short_gram(blocks: Tensor) -> Tensor:
    """The Gram matrix of each block's shorter side: (..., s, s), float64."""
    B = blocks.double()
    return B @ B.mT if B.shape[-2] <= B.shape[-1] else B.mT @ B


def _driver(blocks: Tensor) -> str | None:
    return "gesvd" if blocks.is_cuda else None  # CUDA's default, Jacobi, computes small singular values less exactly
