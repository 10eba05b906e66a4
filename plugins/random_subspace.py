"""Random subspace: a projection independent of W, the control for low-rank methods."""

from collections.abc import Sequence

import torch

import lrbench
from lrbench import linalg


class RandomSubspace(lrbench.LowRankReducer):
    """W ≈ Q QᵀW, with Q an orthonormal basis of a random k-dimensional subspace of the outputs; of the inputs if m > n.

    The subspace is uniformly distributed (Haar): it is the span of k independent Gaussian vectors. With s = min(m, n),
    E‖W − Q QᵀW‖² = (1 − k/s) ‖W‖², whatever the spectrum of W, since E Q Qᵀ = (k/s) I.

    Halko, Martinsson, Tropp, "Finding structure with randomness", 2011 (arXiv 0909.4061), use the span of W Ω for a
    Gaussian Ω; this method uses that of Ω.
    """

    name = "random-subspace"
    promises = frozenset({"monotone", "idempotent", "homogeneous"})
    randomized = True

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """One random basis serves every rank."""
        return _Projections(self, weight, max(ranks), context.generator)


class _Projections(lrbench.Prepared):
    """Rank k keeps the first k vectors of one random basis, which equal those of a QR of k Gaussian columns."""

    def __init__(self, reducer: RandomSubspace, weight: torch.Tensor, rank: int, generator: torch.Generator) -> None:
        self.reducer, self.wide = reducer, weight.shape[0] <= weight.shape[1]
        short = weight if self.wide else weight.T  # (s, l)
        self.Q = torch.linalg.qr(linalg.gaussian(len(short), rank, generator, like=weight).double()).Q.to(weight.dtype)
        with linalg.full_precision():
            self.B = self.Q.T @ short  # (r, l)

    def at_rank(self, rank: int) -> lrbench.Factors:
        Q, B = self.Q[:, :rank], self.B[:rank]  # (s, k), (k, l)
        return self.reducer.stored(Q, B) if self.wide else self.reducer.stored(B.T, Q.T)  # (m, k), (k, n)


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [RandomSubspace]
