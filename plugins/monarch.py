"""Monarch: two block-diagonal matrices with a permutation between them, found block by block (Dao and others, 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch.nn.functional import pad

import lrbench
from lrbench import linalg


class Monarch(lrbench.Reducer):
    """W[l·J + j, k·I + i] ≈ Σ_s U[j, l, k, s] V[k, j, s, i]: a truncated SVD of rank r of each of J·K blocks of W.

    Block (j, k) holds every J-th output from the j-th on, and the k-th run of I inputs: `'(l j) (k i) -> k j l i'`. The
    blocks are disjoint and cover W, and each has factors of its own, so ‖W − Ŵ‖² is the sum of their squared errors and
    is least where each is: by Eckart and Young, the truncated SVDs are the best Monarch matrix there is. It may have
    full rank, however small r is; in return its blocks share nothing.

    `blocks: b` takes J = K = b and `blocks: [J, K]` what it says; the rank asked is then r. `auto` tries all powers of
    two from 2 up to the square root of each side. There the rank asked is that of 2 x 2 blocks, and every shape may
    have as many numbers as those store: each takes the largest r that fits, and the shape of the least error is chosen.
    What it was stands in the row's params. Numbers stored are r·(K·m + J·n) where J divides m and K divides n, and
    those of the sizes rounded up to multiples where they do not.

    Dao and others, "Monarch: expressive structured matrices for efficient and accurate training", 2022 (arXiv
    2204.00595), section 3 and algorithm 1, there with r = 1.
    """

    name = "monarch"
    promises = frozenset({"exact", "monotone", "idempotent", "homogeneous"})
    rank_of = "each block"
    one_preparation = True

    blocks: Annotated[
        int | tuple[int, int] | Literal["auto"], "blocks of outputs and inputs: b, [J, K], or the best for the size"
    ] = "auto"

    def __post_init__(self) -> None:
        counts = (self.blocks,) if isinstance(self.blocks, int) else self.blocks
        if self.blocks != "auto" and not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError(f"blocks must be auto, or counts of at least 1, not {self.blocks!r}")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """The singular values of all blocks, in each shape, serve every rank."""
        return _Blocks(self, weight)

    def layouts(self, shape: tuple[int, int]) -> list["Layout"]:
        """What may be chosen from, fewest blocks first."""
        m, n = shape
        if self.blocks == "auto":
            return [Layout(m, n, J, K) for J in _powers_of_two(m) for K in _powers_of_two(n)]
        J, K = (self.blocks, self.blocks) if isinstance(self.blocks, int) else self.blocks
        return [Layout(m, n, min(J, m), min(K, n))]  # the minimum for warming up on a corner; see `supports`

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """r J K (L + I), of the layout with the fewest blocks; no more in the others."""
        return rank * self.layouts(shape)[0].numbers

    def max_rank(self, shape: tuple[int, int]) -> int:
        """min(L, I), of the layout with the fewest blocks."""
        return self.layouts(shape)[0].max_rank

    def supports(self, slot: lrbench.Slot) -> str | None:
        """A weight must have as many rows and columns as blocks are asked for."""
        if self.blocks == "auto":
            return None
        J, K = (self.blocks, self.blocks) if isinstance(self.blocks, int) else self.blocks
        m, n = slot.shape
        return f"{J} x {K} blocks were asked of a weight of {m} x {n}" if m < J or n < K else None


@dataclass(frozen=True)
class Layout:
    """J x K blocks of an (m, n) matrix, of L x I entries each."""

    m: int
    n: int
    J: int
    K: int

    @property
    def L(self) -> int:
        """Outputs of a block."""
        return -(-self.m // self.J)

    @property
    def I(self) -> int:  # noqa: E743
        """Inputs of a block."""
        return -(-self.n // self.K)

    @property
    def max_rank(self) -> int:
        """The rank at which every block is exact."""
        return min(self.L, self.I)

    @property
    def numbers(self) -> int:
        """Stored for each unit of rank."""
        return self.J * self.K * (self.L + self.I)

    def cut(self, W: torch.Tensor) -> torch.Tensor:
        """The blocks of W (m, n), filled up with zeros: (J, K, L, I)."""
        J, K, L, I = self.J, self.K, self.L, self.I  # noqa: E741
        whole = pad(W, (0, K * I - self.n, 0, J * L - self.m))  # (L J, K I)
        return whole.reshape(L, J, K, I).permute(1, 2, 0, 3)


class _Blocks(lrbench.Prepared):
    def __init__(self, reducer: Monarch, weight: torch.Tensor) -> None:
        self.W = weight  # (m, n)
        self.layouts = reducer.layouts((weight.shape[0], weight.shape[1]))
        self.tails = [linalg.block_errors(layout.cut(weight)) for layout in self.layouts]

    def best(self, rank: int) -> tuple[float, Layout, int]:
        """The least error for as many numbers as the first layout stores at a rank, its layout, and its r."""
        budget = rank * self.layouts[0].numbers
        fitting = []
        for place, (layout, tails) in enumerate(zip(self.layouts, self.tails, strict=True)):
            r = min(budget // layout.numbers, layout.max_rank)
            if r >= 1:
                fitting.append((tails[r], place, r))
        error, place, r = min(fitting)
        return error, self.layouts[place], r

    def at_rank(self, rank: int) -> lrbench.BlockDiagonalProduct:
        _, layout, r = self.best(rank)
        U, V = linalg.block_truncations(layout.cut(self.W), r)  # (J, K, L, r), (J, K, r, I)
        left, right = U.transpose(1, 2).contiguous(), V.transpose(0, 1).contiguous()  # (J, L, K, r), (K, J, r, I)
        return lrbench.BlockDiagonalProduct(left, right, out_features=layout.m, in_features=layout.n)

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [self.best(rank)[0] for rank in ranks]

    def chosen(self, rank: int) -> dict[str, Any]:
        _, layout, r = self.best(rank)
        return {"blocks": f"{layout.J}x{layout.K}", "block_rank": r}


def _powers_of_two(size: int) -> list[int]:
    """2, 4, ... up to the square root of a size, and at least one of them, but 1 of 1."""
    return [1] if size == 1 else [2**i for i in range(1, max(1, size.bit_length())) if i == 1 or 4**i <= size]


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """The reducers of this file."""
    return [Monarch]
