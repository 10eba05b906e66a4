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


def range_finder(
    W: Tensor, columns: int, power_iterations: int, generator: torch.Generator, G: Tensor | None = None
) -> Tensor:
    """Q (m, columns), orthonormal, whose span is that of `(W Wᵀ)^q W Ω`: it nearly holds W's leading singular vectors.

    The columns are made independent again after every product, or the small directions drown in rounding. QR and LU
    keep spans nested: the first l columns of Q span what a sketch of l columns would have given.

    Args:
        W: (m, n).
        columns: of the sketch, at most min(m, n).
        power_iterations: q, how often `W Wᵀ` is applied.
        generator: a CPU generator; see `gaussian`.
        G: (m, m), `W Wᵀ` in the dtype of W: to apply in place of W and Wᵀ. It squares the singular values, so that
            directions under the square root of the dtype's precision are lost.

    Source: Halko, Martinsson, Tropp, 2011 (arXiv 0909.4061), algorithm 4.4; Li, Linderman, Szlam, Stanton, Kluger,
    Tygert, "Algorithm 971", 2017, for LU between the products.
    """
    with full_precision():
        Y = W @ gaussian(W.shape[1], columns, generator, like=W)  # (m, l)
        for _ in range(power_iterations):
            Y = G @ _independent(Y) if G is not None else W @ _independent(W.T @ _independent(Y))  # (m, l)
        return torch.linalg.qr(Y).Q


def _independent(Y: Tensor) -> Tensor:
    """A well-conditioned basis of the nested spans of Y's columns: P L of its LU, a third of QR's time on a CPU."""
    if Y.is_cuda:  # where partial pivoting is the slow one
        return torch.linalg.qr(Y).Q
    factored, swaps, _ = torch.linalg.lu_factor_ex(Y)
    L = factored.tril(-1)  # (m, l)
    L.diagonal().fill_(1)
    return torch.empty_like(L).index_copy_(0, rows_after(swaps, len(L)), L)


def rows_after(swaps: Tensor, size: int) -> Tensor:
    """Where the rows (size,) come from after LAPACK's exchanges: row i was exchanged with row swaps[i] - 1."""
    rows = list(range(size))
    for i, other in enumerate(swaps.tolist()):
        rows[i], rows[other - 1] = rows[other - 1], rows[i]
    return torch.tensor(rows, dtype=torch.int64, device=swaps.device)


#: How many floating operations of a sketch take as long as one by a Gram matrix: the LUs on the way are slower than
#: products. Measured by `benchmarks/decompose.py --crossovers` on an AMD EPYC (Zen 4), one thread.
GRAM_WORTH = 1.2


def gram_pays(shape: tuple[int, int], columns: int, power_iterations: int) -> bool:
    """Whether a sketch of an (m, n) matrix, m <= n, is sooner done by a Gram matrix made for it alone than without."""
    by_gram = gram_operations(shape, columns, power_iterations)
    return by_gram < GRAM_WORTH * sketch_operations(shape, columns, power_iterations)


def sketch_operations(shape: tuple[int, int], columns: int, power_iterations: int) -> int:
    """Floating operations of `range_finder`, and of one projection on its range."""
    (m, n), q = shape, power_iterations
    return 2 * m * n * columns * (2 + 2 * q) + q * (m + n) * columns**2  # products; LUs of either side


def gram_operations(shape: tuple[int, int], columns: int, power_iterations: int) -> int:
    """The same with a Gram matrix, counting how it is made, and with the projection of the Gram."""
    (m, n), q = shape, power_iterations
    return m * m * n + 2 * m * n * columns * 2 + 2 * m * m * columns * (1 + q) + q * m * columns**2
