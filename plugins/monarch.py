"""Monarch: two block-diagonal matrices with a permutation between them, fitted by blocks (Dao and others, 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch.nn.functional import pad

import lrbench
from lrbench import linalg


class Monarch(lrbench.Reducer):
    """W[l·J + j, k·I + i] ≈ Σ_s U[j, l, k, s] V[k, j, s, i]: a truncated SVD of rank r of each of J·K blocks of W.

    Block (j, k) holds every J-th output from the j-th on, and the k-th group of I inputs: `'(l j) (k i) -> k j l i'`.
    The blocks are disjoint, cover W and have separate factors, so ‖W − Ŵ‖² is the sum of their squared errors. By
    Eckart and Young, truncated SVDs of the blocks give the best Monarch matrix. It may have full rank for any r.

    `blocks: b` sets J = K = b, and `blocks: [J, K]` sets both; the requested rank is then r. `auto` tries all powers of
    two from 2 to the square root of each side. The requested rank is then that of 2 x 2 blocks, whose parameters are
    the budget: each layout takes the largest r that fits, and the layout with the smallest error is used and recorded
    in the row's params. It stores r·(K·m + J·n) parameters, with m and n rounded up to multiples of J and K.

    Dao and others, "Monarch: expressive structured matrices for efficient and accurate training", 2022 (arXiv
    2204.00595), section 3 and algorithm 1, with r = 1.
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
        """The singular values of the blocks of each layout serve every rank."""
        return _Blocks(self, weight)

    def layouts(self, shape: tuple[int, int]) -> list["BlockLayout"]:
        """The candidate layouts, fewest blocks first."""
        m, n = shape
        if self.blocks == "auto":
            return [BlockLayout(m, n, J, K) for J in _powers_of_two(m) for K in _powers_of_two(n)]
        J, K = (self.blocks, self.blocks) if isinstance(self.blocks, int) else self.blocks
        # The minimum, since warm-up uses a small matrix; see `supports`.
        return [BlockLayout(m, n, min(J, m), min(K, n))]

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """r J K (L + I) for the layout with the fewest blocks, an upper bound for the others."""
        return rank * self.layouts(shape)[0].parameters

    def max_rank(self, shape: tuple[int, int]) -> int:
        """min(L, I) for the layout with the fewest blocks."""
        return self.layouts(shape)[0].max_rank

    def supports(self, slot: lrbench.Slot) -> str | None:
        """A weight needs at least as many rows and columns as blocks."""
        if self.blocks == "auto":
            return None
        J, K = (self.blocks, self.blocks) if isinstance(self.blocks, int) else self.blocks
        m, n = slot.shape
        return f"{J} x {K} blocks do not fit a weight of {m} x {n}" if m < J or n < K else None


@dataclass(frozen=True)
class BlockLayout:
    """J x K blocks of an (m, n) matrix, of L x I entries each."""

    m: int
    n: int
    J: int
    K: int

    @property
    def L(self) -> int:
        """The number of outputs of a block."""
        return -(-self.m // self.J)

    @property
    def I(self) -> int:  # noqa: E743
        """The number of inputs of a block."""
        return -(-self.n // self.K)

    @property
    def max_rank(self) -> int:
        """The rank at which every block is exact."""
        return min(self.L, self.I)

    @property
    def parameters(self) -> int:
        """The parameters stored per unit of rank."""
        return self.J * self.K * (self.L + self.I)

    def cut(self, W: torch.Tensor) -> torch.Tensor:
        """The blocks of W (m, n), padded with zeros: (J, K, L, I)."""
        J, K, L, I = self.J, self.K, self.L, self.I  # noqa: E741
        padded = pad(W, (0, K * I - self.n, 0, J * L - self.m))  # (L J, K I)
        return padded.reshape(L, J, K, I).permute(1, 2, 0, 3)


class _Blocks(lrbench.Prepared):
    def __init__(self, reducer: Monarch, weight: torch.Tensor) -> None:
        self.W = weight  # (m, n)
        self.layouts = reducer.layouts((weight.shape[0], weight.shape[1]))
        self.tails = [linalg.block_errors(layout.cut(weight)) for layout in self.layouts]

    def best(self, rank: int) -> tuple[float, BlockLayout, int]:
        """The smallest error within the parameters of the first layout at `rank`, with its layout and r."""
        budget = rank * self.layouts[0].parameters
        fitting = []
        for place, (layout, tails) in enumerate(zip(self.layouts, self.tails, strict=True)):
            r = min(budget // layout.parameters, layout.max_rank)
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
    """2, 4, ... up to the square root of `size`, but at least [2], and [1] for size 1."""
    return [1] if size == 1 else [2**i for i in range(1, max(1, size.bit_length())) if i == 1 or 4**i <= size]


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [Monarch]
