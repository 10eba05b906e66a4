"""Small float64 test matrices of the kinds on which methods differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor


@cache
def kinds() -> dict[str, Tensor]:
    """Test matrices by name. Haar-random ones alone would not tell column selections apart."""
    generator = torch.Generator().manual_seed(20250611)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def with_spectrum(m: int, n: int, decay: Callable[[Tensor], Tensor]) -> Tensor:
        s = min(m, n)
        U, V = torch.linalg.qr(normal(m, s)).Q, torch.linalg.qr(normal(n, s)).Q
        return (U * decay(torch.arange(1, s + 1, dtype=torch.float64))) @ V.T

    heavy = normal(12, 20) * normal(12, 1).exp() * (1.5 * normal(1, 20)).exp()
    outliers = with_spectrum(20, 12, lambda j: j**-0.5)
    outliers[3, 7], outliers[15, 2] = 12.0, -9.0
    coherent = with_spectrum(12, 20, lambda j: 0.1 / j)
    coherent[:, 4] += 3 * normal(12)
    coherent[5] += 2 * normal(20)
    return {
        "wide, slow decay": with_spectrum(12, 20, lambda j: j**-0.7),
        "tall, fast decay": with_spectrum(20, 12, lambda j: 0.5**j),
        "square, slow decay": with_spectrum(14, 14, lambda j: j**-0.7),
        "heavy rows and columns": heavy,
        "outliers": outliers,
        "coherent": coherent,
        "Haar": with_spectrum(12, 20, lambda j: 1 + 0.01 * j),
    }


def deficient() -> Iterator[tuple[str, Tensor, int]]:
    """Rank-deficient matrices: (name, matrix, rank)."""
    generator = torch.Generator().manual_seed(7)
    for m, n in ((12, 20), (20, 12), (14, 14)):
        left = torch.randn(m, 4, generator=generator, dtype=torch.float64)
        right = torch.randn(4, n, generator=generator, dtype=torch.float64)
        yield f"{m}x{n} of rank 4", left @ right, 4


def odd() -> Iterator[tuple[str, Tensor]]:
    """Edge cases: single rows, columns and entries, zeros, and rank-deficient matrices."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((1, 9), (9, 1), (1, 1), (2, 2))
    edges = {f"{m}x{n}": torch.randn(m, n, generator=generator, dtype=torch.float64) for m, n in shapes}
    edges |= {"zeros 6x9": torch.zeros(6, 9), "zeros 9x6": torch.zeros(9, 6)}
    edges |= {name: W for name, W, _ in deficient()}
    edges["one entry 6x9"] = torch.zeros(6, 9)
    edges["one entry 6x9"][2, 5] = 3
    yield from edges.items()


def second_moment(n: int, seed: int, dead: bool = False) -> Tensor:
    """The second moment (n, n) of correlated vectors with entries of very different sizes; some zero if `dead`."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64) + 2 * torch.eye(n, dtype=torch.float64)
    mixing *= torch.randn(n, generator=generator, dtype=torch.float64).exp()[:, None]
    if dead:
        mixing[:: max(2, n // 3)] = 0
    return mixing @ mixing.T / n
