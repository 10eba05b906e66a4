"""What torch lacks or is slower at on a CPU: LAPACK and BLAS of scipy, on torch's own memory and with as many threads.

On an AMD EPYC (Zen 4) and one thread (`benchmarks/decompose.py --crossovers`) a symmetric product takes half the time
of `W @ W.T`, and eigenvectors three quarters of `torch.linalg.eigh`'s. Torch has no pivoted Cholesky.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1024  # columns made float64 at a time: enough for a product at full speed, and little memory
_MIRRORED = 256  # rows copied to columns at a time, a block that caches hold

#: Rows from which they are worth it with several threads: theirs are another pool than torch's, whose threads hold the
#: cores for a while after each product. Of 192 rows and two threads a product takes nine times as long as torch's.
SEVERAL_THREADS_FROM = 1024


def serves(A: Tensor) -> bool:
    """Whether the functions of this module can take a tensor: it is on the CPU."""
    return A.device.type == "cpu"


def pays(A: Tensor) -> bool:
    """Whether they take it and are sooner done than torch's own."""
    return serves(A) and (torch.get_num_threads() == 1 or len(A) >= SEVERAL_THREADS_FROM)


@cache
def _scipy() -> tuple[Any, Any, Any]:
    """(BLAS, LAPACK, their threads): imported when first used, since it takes a while."""
    import scipy.linalg.blas as blas
    import scipy.linalg.lapack as lapack
    import threadpoolctl

    return blas, lapack, threadpoolctl.ThreadpoolController().select(internal_api="openblas")


@contextmanager
def _libraries(size: int) -> Iterator[tuple[Any, Any]]:
    """BLAS and LAPACK for a matrix of `size` rows, held to the number of threads that torch is held to."""
    blas, lapack, pools = _scipy()
    with pools.limit(limits=torch.get_num_threads() if size >= SEVERAL_THREADS_FROM else 1):
        yield blas, lapack


def symmetric_product(W: Tensor, dtype: torch.dtype) -> Tensor:
    """W Wᵀ (m, m) for W (m, n) on the CPU, computed in float32 or float64: one triangle, and the other copied."""
    whole = W.dtype == dtype and (W.is_contiguous() or W.T.is_contiguous())
    size = max(W.shape[1], 1) if whole else max(_CHUNK, len(W) // 2)
    G = torch.zeros(len(W), len(W), dtype=dtype)
    with _libraries(len(W)) as (blas, _):
        product = blas.dsyrk if dtype == torch.float64 else blas.ssyrk
        for part in W.detach().split(size, dim=1) if W.numel() else ():
            A = part.to(dtype)
            # Fortran's (n, m), transposed, is C's (m, n): either way of lying in memory is taken without a copy.
            a, transposed = (A.numpy(), 0) if A.T.is_contiguous() else (A.contiguous().numpy().T, 1)
            done = product(1.0, a, beta=1.0, c=G.numpy().T, trans=transposed, lower=0, overwrite_c=1)
            G = torch.from_numpy(done.T)  # the same memory; C's lower triangle is Fortran's upper one
    for start in range(0, len(G), _MIRRORED):
        end = min(start + _MIRRORED, len(G))
        corner = G[start:end, start:end]
        corner += corner.tril(-1).T
        G[start:end, end:] = G[end:, start:end].T
    return G


def eigenvectors(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (s,), ascending, and eigenvectors, the rows of (s, s), of a symmetric G on the CPU (LAPACK's syevd).

    Raises:
        torch.linalg.LinAlgError: they could not be found.
    """
    with _libraries(len(G)) as (_, lapack):
        solve = lapack.dsyevd if G.dtype == torch.float64 else lapack.ssyevd
        values, vectors, info = solve(G.detach().numpy().T, compute_v=1, lower=1)
    if info:
        raise torch.linalg.LinAlgError(f"the eigenvalues of a {len(G)} x {len(G)} matrix did not converge")
    return torch.from_numpy(values), torch.from_numpy(vectors.T)


def pivoted_cholesky(G: Tensor, overwrite: bool) -> tuple[Tensor, Tensor]:
    """Pivots (r,) and Lᵀ (r, s) in their order, of a semidefinite float64 G on the CPU, r its rank (LAPACK's dpstrf).

    Args:
        G: (s, s).
        overwrite: whether its memory may be used.
    """
    if not len(G):
        return torch.empty(0, dtype=torch.int64), G.new_zeros(0, 0)
    with _libraries(len(G)) as (_, lapack):
        # A negative tolerance is LAPACK's own: s eps times the largest entry of the diagonal.
        factor, pivots, rank, _ = lapack.dpstrf(
            G.detach().contiguous().numpy().T, tol=-1.0, lower=1, overwrite_a=overwrite
        )
    # Of zeros LAPACK says rank 0 or 1, as versions go; a pivot of zero is none.
    rank = int(rank) if factor[0, 0] > 0 else 0
    return torch.from_numpy(pivots).long() - 1, torch.from_numpy(factor.T)[:rank].triu_()
