"""Gaussian sketches with nested columns, and the randomized range finder."""

from __future__ import annotations

import torch
from torch import Tensor

from lrbench.linalg.gram import full_precision

#: Columns drawn at a time. Torch's normal generator redraws the end of a tensor whose size is not a multiple of 16, so
#: `randn(n, l)` is not the beginning of `randn(n, l + 1)`; whole blocks of columns are nested.
_BLOCK = 16


def gaussian(size: int, columns: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Ω (size, columns) of independent standard normals, in the dtype and on the device of `like`.

    Drawn in float32 on the CPU, so that every device and dtype gets the same values. From the same generator state, a
    wider Ω begins with the columns of a narrower one.
    """
    blocks = [torch.randn(_BLOCK, size, generator=generator, dtype=torch.float32) for _ in range(-(-columns // _BLOCK))]
    return torch.cat(blocks)[:columns].T.to(device=like.device, dtype=like.dtype)


def range_finder(
    W: Tensor, columns: int, power_iterations: int, generator: torch.Generator, G: Tensor | None = None
) -> Tensor:
    """Q (m, columns), an orthonormal basis of the range of `(W Wᵀ)^q W Ω`, which approximates W's leading subspace.

    A QR or LU after every product keeps small directions from being lost in rounding. Both keep ranges nested: the
    first l columns of Q span the range that a sketch of l columns would have given.

    Args:
        W: (m, n).
        columns: of the sketch, at most min(m, n).
        power_iterations: q, the number of products with `W Wᵀ`.
        generator: a CPU generator; see `gaussian`.
        G: (m, m), `W Wᵀ` in the dtype of W, used in place of W and Wᵀ. It squares the singular values, so directions
            below the square root of the dtype's precision are lost.

    Source: Halko, Martinsson, Tropp, 2011 (arXiv 0909.4061), algorithm 4.4; Li, Linderman, Szlam, Stanton, Kluger,
    Tygert, "Algorithm 971", 2017, for LU between the products.
    """
    with full_precision():
        Y = W @ gaussian(W.shape[1], columns, generator, like=W)  # (m, l)
        for _ in range(power_iterations):
            Y = (
                G @ _well_conditioned(Y) if G is not None else W @ _well_conditioned(W.T @ _well_conditioned(Y))
            )  # (m, l)
        return torch.linalg.qr(Y).Q


def _well_conditioned(Y: Tensor) -> Tensor:
    """A well-conditioned basis of the nested spans of Y's columns: P L of its LU, in a third of QR's time on a CPU."""
    if Y.is_cuda:  # where partial pivoting is slower than QR
        return torch.linalg.qr(Y).Q
    factored, swaps, _ = torch.linalg.lu_factor_ex(Y)
    L = factored.tril(-1)  # (m, l)
    L.diagonal().fill_(1)
    return torch.empty_like(L).index_copy_(0, permutation_of_swaps(swaps, len(L)), L)


def permutation_of_swaps(swaps: Tensor, size: int) -> Tensor:
    """The permutation (size,) that LAPACK's row exchanges make: step i exchanges rows i and swaps[i] - 1."""
    rows = list(range(size))
    for i, other in enumerate(swaps.tolist()):
        rows[i], rows[other - 1] = rows[other - 1], rows[i]
    return torch.tensor(rows, dtype=torch.int64, device=swaps.device)


#: Time per floating-point operation with a Gram matrix over time per operation without, which includes LUs, slower than
#: products. Measured by `benchmarks/decompose.py --crossovers` on an AMD EPYC (Zen 4), one thread.
GRAM_WORTH = 1.2


def gram_pays(shape: tuple[int, int], columns: int, power_iterations: int) -> bool:
    """Whether sketching an (m, n) matrix, m <= n, is faster with a Gram matrix, including the time to compute it."""
    by_gram = gram_operations(shape, columns, power_iterations)
    return by_gram < GRAM_WORTH * sketch_operations(shape, columns, power_iterations)


def sketch_operations(shape: tuple[int, int], columns: int, power_iterations: int) -> int:
    """Floating-point operations of `range_finder` and of one projection onto its range."""
    (m, n), q = shape, power_iterations
    return 2 * m * n * columns * (2 + 2 * q) + q * (m + n) * columns**2  # products, plus LUs on both sides


def gram_operations(shape: tuple[int, int], columns: int, power_iterations: int) -> int:
    """The same with a Gram matrix, including those to compute and to project it."""
    (m, n), q = shape, power_iterations
    return m * m * n + 2 * m * n * columns * 2 + 2 * m * m * columns * (1 + q) + q * m * columns**2
