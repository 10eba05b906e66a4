"""Pivoted Cholesky of a Gram matrix, which gives pivots, coefficients and error of a row ID at every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrbench.linalg import lapack


@dataclass(frozen=True, eq=False)
class PivotedCholesky:
    """G ≈ L Lᵀ of rank r, with greedy pivots.

    Attributes:
        pivots: (r,) positions, in the order chosen; the first k are the pivots of rank k.
        factor: (r, s) Lᵀ, float64; its columns `pivots` are upper triangular.
        traces: (r + 1,) trace of the Schur complement after k = 0 ... r pivots. With G = W Wᵀ it is the squared
            Frobenius error of the row ID of rank k with least-squares coefficients.
    """

    pivots: Tensor
    factor: Tensor
    traces: Tensor


#: LAPACK always factorizes the whole matrix. The loop below stops at the requested rank, but is slower per pivot; it is
#: faster up to about k = s^1.5 / 100: 16% of the rank at s = 256, 31% at 1024, 45% at 2048.
#: Measured by `benchmarks/decompose.py --crossovers` on an AMD EPYC (Zen 4), one thread.
LAPACK_FROM = 100


def pivoted_cholesky(
    G: Tensor,
    rank: int,
    *,
    floor: float = 0.0,
    algorithm: Literal["auto", "lapack", "blocked"] = "auto",
    block: int = 64,
    overwrite: bool = False,
) -> PivotedCholesky:
    """Cholesky with diagonal pivoting, which torch does not offer, on CPU or CUDA.

    `lapack` is LAPACK's dpstrf, on the CPU only. `blocked` runs on any device. Within a block it is left-looking: each
    new column is corrected by the earlier columns of the block. After each block, one matrix product updates the Schur
    complement of the rows not yet chosen; only then does the host wait for the device.

    Args:
        G: (s, s), symmetric positive semidefinite, float64.
        rank: the number of pivots, at most s.
        floor: stop early once the trace is at most `floor` times the trace of G.
        algorithm: `auto` takes the one that `faster_algorithm` names.
        block: columns per block.
        overwrite: whether G may be overwritten, to save a copy.

    Returns:
        The factorization. It has fewer than `rank` pivots if the floor was reached, or if the largest remaining
        diagonal entry is rounding error.

    Source: Higham, "Analysis of the Cholesky decomposition of a semi-definite matrix", 1990; Hammarling, Higham, Lucas,
    "LAPACK-style codes for pivoted Cholesky and QR updating", 2007 (LAPACK Working Note 161), for dpstrf.
    """
    if (faster_algorithm(G, rank) if algorithm == "auto" else algorithm) == "lapack":
        return _by_lapack(G, rank, floor, overwrite)
    schur = G if overwrite else G.clone()
    return _factorize(_Explicit(schur), schur.diagonal().clone(), rank, floor, block)


def faster_algorithm(G: Tensor, rank: int) -> Literal["lapack", "blocked"]:
    """The algorithm that computes the first `rank` pivots of G (s, s) faster."""
    return "lapack" if lapack.supports(G) and LAPACK_FROM * rank > len(G) ** 1.5 else "blocked"


def _by_lapack(G: Tensor, rank: int, floor: float, overwrite: bool) -> PivotedCholesky:
    total = G.diagonal().clamp(min=0).sum()[None]
    pivots, ordered = lapack.pivoted_cholesky(G, overwrite)  # (s,), (r, s)
    squares = ordered.square().sum(1)  # (r,), how much each pivot reduces the trace
    traces = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])  # summed from the small end
    traces[0] = total[0]
    above = traces[:-1] > floor * total
    taken = min(rank, len(ordered) if bool(above.all()) else int(above.int().argmin()))
    places = torch.empty_like(pivots).index_copy_(0, pivots, torch.arange(len(pivots)))
    return PivotedCholesky(
        pivots=pivots[:taken], factor=ordered[:taken].index_select(1, places), traces=traces[: taken + 1]
    )


def pivoted_cholesky_by_rows(
    row: Callable[[Tensor], Tensor], diagonal: Tensor, rank: int, *, floor: float = 0.0, block: int = 64
) -> PivotedCholesky:
    """`pivoted_cholesky` of a Gram matrix too large to form.

    Args:
        row: returns the row (s,) of G at a position, a (1,) tensor.
        diagonal: (s,) of G, float64.
        rank, floor, block: as in `pivoted_cholesky`.
    """
    return _factorize(_ByRows(row), diagonal.clone(), rank, floor, block)


class _Explicit:
    """The Schur complement as a matrix. Rows already chosen are removed once they are a quarter of it."""

    def __init__(self, schur: Tensor) -> None:
        self._schur = schur
        self.alive = torch.arange(schur.shape[0], device=schur.device)  # positions in G of the matrix's rows

    def row(self, p: Tensor, panel: Tensor) -> Tensor:
        """Row p of the Schur complement, where `panel` (j, alive) holds the columns of this block so far."""
        # The matrix is symmetric, and its rows, unlike its columns, are contiguous in memory.
        return torch.addmv(self._schur.index_select(0, p)[0], panel.T, panel.index_select(1, p)[:, 0], alpha=-1)

    def advance(self, panel: Tensor, keep: Tensor) -> bool:
        """Subtracts a finished block; returns whether the rows outside `keep` were removed."""
        self._schur.addmm_(panel.T, panel, alpha=-1)
        if 4 * len(keep) > 3 * len(self.alive):
            return False
        self._schur = self._schur.index_select(0, keep).index_select(1, keep)
        self.alive = self.alive[keep]
        return True


class _ByRows:
    """The Schur complement row by row: computes a row of G on demand and subtracts all columns so far."""

    def __init__(self, row: Callable[[Tensor], Tensor]) -> None:
        self._row = row
        self._panels: list[Tensor] = []

    def row(self, p: Tensor, panel: Tensor) -> Tensor:
        value = self._row(p)
        for columns in (*self._panels, panel):
            value = value - columns.T @ columns.index_select(1, p)[:, 0]
        return value

    def advance(self, panel: Tensor, keep: Tensor) -> bool:
        self._panels.append(panel)
        return False


def _factorize(source: _Explicit | _ByRows, diagonal: Tensor, rank: int, floor: float, block: int) -> PivotedCholesky:
    size = len(diagonal)
    schur = diagonal.clamp(min=0)  # (alive,) diagonal of the Schur complement; zero at chosen rows
    total = schur.sum()
    alive = torch.arange(size, device=schur.device)
    rounding = float(schur.max()) * size * torch.finfo(schur.dtype).eps if size else 0.0
    lowest = floor * float(total)

    factor = schur.new_zeros(min(rank, size), size)
    pivots: list[Tensor] = []
    traces = [total[None]]
    done = 0
    while done < len(factor):
        width = min(block, len(factor) - done)
        panel = schur.new_zeros(width, len(alive))
        local = torch.zeros(width, dtype=torch.int64, device=schur.device)
        heights, tails = schur.new_zeros(width), schur.new_zeros(width)
        for j in range(width):  # few small kernels, without a wait of the host for the device
            p = torch.argmax(schur, 0, keepdim=True, out=local[j : j + 1])  # (1,)
            height = torch.index_select(schur, 0, p, out=heights[j : j + 1])
            torch.mul(source.row(p, panel[:j]), height.rsqrt(), out=panel[j])
            schur.addcmul_(panel[j], panel[j], value=-1)
            schur.index_fill_(0, p, 0.0)
            torch.sum(schur, 0, keepdim=True, out=tails[j : j + 1])
        # The first pivot at rounding level, or trace under the floor, ends the factorization; later pivots are dropped.
        tails = tails.clamp(min=0)
        good = (heights > rounding) & (torch.cat([traces[-1][-1:], tails])[:-1] > lowest)
        taken = width if bool(good.all()) else int(good.int().argmin())
        panel, local, heights = panel[:taken], local[:taken], heights[:taken]
        # Below the diagonal of its own pivots a panel is zero, up to rounding.
        panel.index_copy_(1, local, panel.index_select(1, local).triu(1) + heights.sqrt().diag())
        factor[done : done + taken, alive] = panel
        pivots.append(alive[local])
        traces.append(tails[:taken])
        done += taken
        if taken < width:
            break
        if done < len(factor):
            living = torch.ones(len(alive), dtype=torch.bool, device=schur.device)
            living[local] = False
            # Rows chosen in earlier blocks may still be here, as zeros.
            keep = (living & (schur > 0)).nonzero().flatten()
            if source.advance(panel, keep):
                alive, schur = alive[keep], schur[keep]
                if not len(alive):
                    break
    return PivotedCholesky(pivots=torch.cat([*pivots, alive[:0]]), factor=factor[:done], traces=torch.cat(traces))
