"""CPU routines that torch lacks or runs more slowly: scipy's BLAS and LAPACK on torch's memory, with torch's threads.

On an AMD EPYC (Zen 4) with one thread (`benchmarks/decompose.py --crossovers`), a symmetric product takes half the time
of `W @ W.T`, and an eigendecomposition three quarters of `torch.linalg.eigh`. Torch has no pivoted Cholesky.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1024  # columns converted to float64 at a time: enough for a product at full speed, in little memory
_MIRRORED = 256  # rows copied to columns at a time, a block that fits in cache

#: Minimum number of rows with several threads. OpenBLAS has its own thread pool, and torch's threads occupy the cores
#: for a while after each product: with 192 rows and two threads a product takes nine times as long as torch's.
SEVERAL_THREADS_FROM = 1024


def supports(A: Tensor) -> bool:
    """Whether the functions of this module accept a tensor: it must be on the CPU."""
    return A.device.type == "cpu"


def is_faster(A: Tensor) -> bool:
    """Whether they accept it and are faster than torch's."""
    return supports(A) and (torch.get_num_threads() == 1 or len(A) >= SEVERAL_THREADS_FROM)


@cache
def _scipy() -> tuple[Any, Any, Any]:
    """(BLAS, LAPACK, their thread pools), imported at first use because the import is slow."""
    import scipy.linalg.blas as blas
    import scipy.linalg.lapack as lapack
    import threadpoolctl

    return blas, lapack, threadpoolctl.ThreadpoolController().select(internal_api="openblas")


@contextmanager
def _libraries(size: int) -> Iterator[tuple[Any, Any]]:
    """BLAS and LAPACK for a matrix of `size` rows, limited to torch's number of threads."""
    blas, lapack, pools = _scipy()
    with pools.limit(limits=torch.get_num_threads() if size >= SEVERAL_THREADS_FROM else 1):
        yield blas, lapack


def symmetric_product(W: Tensor, dtype: torch.dtype) -> Tensor:
    """W Wᵀ (m, m) for W (m, n) on the CPU, in float32 or float64: computes one triangle and copies it to the other."""
    direct = W.dtype == dtype and (W.is_contiguous() or W.T.is_contiguous())
    size = max(W.shape[1], 1) if direct else max(_CHUNK, len(W) // 2)
    G = torch.zeros(len(W), len(W), dtype=dtype)
    with _libraries(len(W)) as (blas, _):
        product = blas.dsyrk if dtype == torch.float64 else blas.ssyrk
        for part in W.detach().split(size, dim=1) if W.numel() else ():
            A = part.to(dtype)
            # A C-ordered (m, n) is a Fortran-ordered (n, m): both memory layouts are passed without a copy.
            a, transposed = (A.numpy(), 0) if A.T.is_contiguous() else (A.contiguous().numpy().T, 1)
            result = product(1.0, a, beta=1.0, c=G.numpy().T, trans=transposed, lower=0, overwrite_c=1)
            G = torch.from_numpy(
                result.T
            )  # the same memory; the lower triangle in C order is the upper in Fortran order
    for start in range(0, len(G), _MIRRORED):
        end = min(start + _MIRRORED, len(G))
        corner = G[start:end, start:end]
        corner += corner.tril(-1).T
        G[start:end, end:] = G[end:, start:end].T
    return G


def eigenvectors(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (s,), ascending, and eigenvectors as rows of (s, s), of a symmetric G on the CPU (LAPACK's syevd).

    Raises:
        torch.linalg.LinAlgError: the solver did not converge.
    """
    with _libraries(len(G)) as (_, lapack):
        solve = lapack.dsyevd if G.dtype == torch.float64 else lapack.ssyevd
        values, vectors, info = solve(G.detach().numpy().T, compute_v=1, lower=1)
    if info:
        raise torch.linalg.LinAlgError(f"the eigenvalues of a {len(G)} x {len(G)} matrix did not converge")
    return torch.from_numpy(values), torch.from_numpy(vectors.T)


def pivoted_cholesky(G: Tensor, overwrite: bool) -> tuple[Tensor, Tensor]:
    """Pivots (r,), and Lᵀ (r, s) with columns in pivot order, of a float64 G on the CPU (LAPACK's dpstrf).

    Args:
        G: (s, s), positive semidefinite, of numerical rank r.
        overwrite: whether G may be overwritten.
    """
    if not len(G):
        return torch.empty(0, dtype=torch.int64), G.new_zeros(0, 0)
    with _libraries(len(G)) as (_, lapack):
        # A negative tolerance selects LAPACK's default: s eps times the largest diagonal entry.
        factor, pivots, rank, _ = lapack.dpstrf(
            G.detach().contiguous().numpy().T, tol=-1.0, lower=1, overwrite_a=overwrite
        )
    # For a zero matrix LAPACK returns rank 0 or 1, depending on its version; a zero pivot does not count.
    rank = int(rank) if factor[0, 0] > 0 else 0
    return torch.from_numpy(pivots).long() - 1, torch.from_numpy(factor.T)[:rank].triu_()
