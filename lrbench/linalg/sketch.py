"""Gaussian sketches whose columns do not depend on how many are drawn, and the randomized range finder."""

from __future__ import annotations

import torch
from torch import Tensor

from lrbench.linalg.gram import full_precision

#: Columns drawn at a time. Torch's normal generator redraws the tail of a tensor whose size is not a multiple of 16,
#: so that a plain `randn(n, l)` is not the beginning of `randn(n, l + 1)`; whole blocks of columns are.
_BLOCK = 16


def gaussian(size: int, columns: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Ω (size, columns) of independent standard normals, in the dtype and on the device of `like`.

    Drawn in float32 on the CPU, so that every device and dtype sees the same numbers; the first columns of a wider Ω
    are those of a narrower one, for a generator in the same state.
    """
    blocks = [torch.randn(_BLOCK, size, generator=generator, dtype=torch.float32) for _ in range(-(-columns // _BLOCK))]
    return torch.cat(blocks)[:columns].T.to(device=like.device, dtype=like.dtype)


def range_finder(W: Tensor, columns: int, power_iterations: int, generator: torch.Generator) -> Tensor:
    """Q (m, columns), orthonormal, whose span nearly holds that of W's leading singular vectors.

    QR keeps spans nested: the first l columns of Q span what a sketch of l columns would have given.

    Args:
        W: (m, n).
        columns: of the sketch, at most min(m, n).
        power_iterations: how often `W Wᵀ` is applied; QR stands between all products, or the small directions drown
            in rounding.
        generator: a CPU generator; see `gaussian`.

    Source: Halko, Martinsson, Tropp, 2011 (arXiv 0909.4061), algorithm 4.4.
    """
    with full_precision():
        Q = torch.linalg.qr(W @ gaussian(W.shape[1], columns, generator, like=W)).Q  # (m, l)
        for _ in range(power_iterations):
            P = torch.linalg.qr(W.T @ Q).Q  # (n, l)
            Q = torch.linalg.qr(W @ P).Q  # (m, l)
    return Q
