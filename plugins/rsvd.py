"""Randomized singular value decomposition (Halko, Martinsson, Tropp, 2011)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

import lrbench
from lrbench import linalg


class RandomizedSVD(lrbench.LowRankReducer):
    """A ≈ Q (QᵀA)_k, with Q an orthonormal basis of the range of (A Aᵀ)^q A Ω, and (·)_k the truncated SVD.

    A is W, or Wᵀ where m > n. Halko, Martinsson, Tropp, "Finding structure with randomness", 2011 (arXiv 0909.4061),
    algorithms 4.4 and 5.1. With oversampling p >= 2 and no power iteration (q = 0) the expected Frobenius error
    ‖A − Q QᵀA‖, before truncation to rank k, is at most sqrt(1 + k/(p−1)) times the optimum of rank k (theorem 10.5,
    for k >= 2). `oversample: 0, power_iterations: 2` is LASER's own `torch.svd_lowrank(q=k, niter=2)`.

    Two algorithms compute the same Q, up to rounding: `sketch` multiplies by A and Aᵀ, `gram` by G = A Aᵀ. `auto` takes
    the faster one. If the tail is too small for the digits of G, `auto` and `gram` fall back to `sketch`.
    """

    name = "rsvd"
    promises = frozenset({"exact", "monotone", "transposes", "idempotent", "homogeneous"})
    randomized = True

    oversample: Annotated[int, "sketch columns beyond the rank"] = 8
    power_iterations: Annotated[int, "number of multiplications of the sketch by W Wᵀ"] = 2
    algorithm: Annotated[Literal["auto", "gram", "sketch"], "matrix by which the sketch is multiplied"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversample < 0 or self.power_iterations < 0:
            raise ValueError("oversample and power_iterations must not be negative")
        if self.algorithm not in ("auto", "gram", "sketch"):
            raise ValueError(f"algorithm must be auto, gram or sketch, not {self.algorithm!r}")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One sketch, of the largest rank, serves every rank."""
        return _Sketched(weight, max(ranks), self, context)


class _Sketched(lrbench.Prepared):
    """One sketch serves every rank: rank k uses the span of its first l = k + p columns."""

    def __init__(self, weight: torch.Tensor, rank: int, reducer: RandomizedSVD, context: lrbench.Context) -> None:
        self.reducer = reducer
        self.wide = weight.shape[0] <= weight.shape[1]
        self.A = weight if self.wide else weight.T  # (a, b), a <= b
        self.oversample, self.power = reducer.oversample, reducer.power_iterations
        self.squares = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2  # ‖A‖²
        shape, columns = (self.A.shape[0], self.A.shape[1]), self.columns(rank)
        use_gram = reducer.algorithm == "gram" or (
            reducer.algorithm == "auto" and linalg.gram_pays(shape, columns, self.power)
        )
        self.algorithm = "gram" if use_gram else "sketch"
        if use_gram and not self._by_gram(weight, columns, rank, context):
            self.algorithm = "sketch"
        if self.algorithm == "sketch":
            self._by_sketch(columns, context)

    def columns(self, rank: int) -> int:
        """l, the number of sketch columns for a rank."""
        return min(rank + self.oversample, self.A.shape[0])

    def _by_gram(self, weight: torch.Tensor, columns: int, rank: int, context: lrbench.Context) -> bool:
        """Computes Q with a Gram matrix in A's dtype; returns whether that resolves the tail of `rank`."""
        G = context.once(linalg.short_gram, weight, weight.dtype)  # (a, a)
        self.Q = linalg.range_finder(self.A, columns, self.power, context.fork().generator, G)  # (a, l)
        with linalg.full_precision():
            self.T = self.Q.T @ (G @ self.Q)  # QᵀA AᵀQ (l, l)
        self.ritz = (columns, *linalg.eigenvectors(self.T))  # of the largest rank, which is used again
        return self._tail(rank) >= linalg.gate(weight.dtype) * self.squares**0.5

    def _by_sketch(self, columns: int, context: lrbench.Context) -> None:
        self.Q = linalg.range_finder(self.A, columns, self.power, context.fork().generator)  # (a, l)
        with linalg.full_precision():
            self.B = self.Q.T @ self.A  # (l, b)
        self.T = linalg.gram(self.B)  # (l, l) float64

    def eigenvectors(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(l,) squared singular values of QᵀA, largest first, and (l, l) its left singular vectors as rows."""
        if self.algorithm == "gram" and columns == self.ritz[0]:
            return self.ritz[1:]
        return linalg.eigenvectors(self.T[:columns, :columns])

    def at_rank(self, rank: int) -> lrbench.Factors:
        columns = self.columns(rank)
        Q, T = self.Q[:, :columns], self.T[:columns, :columns]  # (a, l), (l, l)
        with linalg.full_precision():
            if self.algorithm == "gram":
                left = Q @ self.eigenvectors(columns)[1][:rank].T  # (a, k)
                right = left.T @ self.A  # (k, b)
            else:
                B = self.B[:columns]  # (l, b)
                U = linalg.Spectrum(B, T, rank=rank).leading(rank).to(B.dtype)  # (l, k)
                left, right = Q @ U, U.T @ B  # (a, k), (k, b)
        if not self.wide:
            left, right = right.T.contiguous(), left.T.contiguous()  # (m, k), (k, n)
        return self.reducer.stored(left, right)

    def _tail(self, rank: int) -> float:
        """‖A − Q (QᵀA)_k‖ = sqrt(‖A‖² − ‖(QᵀA)_k‖²), with the absolute accuracy of ‖A‖²."""
        eigenvalues = self.eigenvectors(self.columns(rank))[0][:rank]  # (k,)
        return max(self.squares - float(eigenvalues.double().sum()), 0.0) ** 0.5

    def errors(self, ranks: Sequence[int]) -> list[float]:
        return [self._error(rank) for rank in ranks]

    def _error(self, rank: int) -> float:
        error = self._tail(rank)
        if error >= linalg.gate(self.A.dtype) * self.squares**0.5:
            return error
        W = self.A if self.wide else self.A.T  # a difference of squares has too few digits
        return float(torch.linalg.vector_norm(W - self.at_rank(rank).dense(), dtype=torch.float64))

    def chosen(self, rank: int) -> dict[str, str]:
        return {"algorithm": self.algorithm}


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [RandomizedSVD]
