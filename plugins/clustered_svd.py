"""Clustered SVD: rows of W in clusters around several subspaces, each cluster with a truncated SVD of its own."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch

import lrbench
from lrbench import linalg


class ClusteredSVD(lrbench.Reducer):
    """W[I_c, :] ≈ U_c (U_cᵀ W[I_c, :]) for K clusters I_c of rows, found by k-subspaces.

    k-subspaces looks for K subspaces of dimension q, the rank asked, with the least sum of squared distances of rows to
    the nearest of them. From a seed, it goes between putting each row to the nearest subspace and taking the q leading
    right singular vectors of each cluster, until nothing changes; neither step can make the sum larger. A seed is a row
    drawn in proportion to its squared distance from the subspaces so far, with those rows that make the least angles
    with it. The best of some restarts is taken. It is a local optimum; the problem is NP-hard.

    The ranks of the clusters share the numbers that q each would store, q (m + K n):

    - `ranks: energy`: components of all clusters are taken in the order of sigma² per number, a component of a cluster
      of m_c rows being m_c + n of them, as long as they fit. Clusters of large rows, or of many directions, have more.
      Least error for the numbers, but for the last component that does not fit; where `equal` errs less, it is taken.
    - `ranks: equal`: q each.

    Sreeram, Maalouf, Sharma, Rus, "Compress to impress", 2025 (arXiv 2510.20800), decompose clusters of rows apart;
    Maalouf and others, "Deep learning meets projective clustering", 2020 (arXiv 2010.04290), do it with embeddings.
    k-subspaces: Tseng, "Nearest q-flat to m points", 2000. Seeds: as in Arthur, Vassilvitskii, "k-means++", 2007.
    """

    name = "clustered-svd"
    promises = frozenset({"exact", "homogeneous"})
    randomized = True
    rank_of = "each cluster"

    clusters: Annotated[int, "clusters of rows; 1 gives the truncated SVD"] = 4
    ranks: Annotated[Literal["energy", "equal"], "how clusters share the numbers"] = "energy"
    iterations: Annotated[int, "of k-subspaces, at most; 0 keeps the seeds' clusters"] = 20
    restarts: Annotated[int, "seeds tried"] = 3

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.restarts < 1 or self.iterations < 0:
            raise ValueError("clusters and restarts must be at least 1, iterations at least 0")
        if self.ranks not in ("energy", "equal"):
            raise ValueError(f"ranks must be energy or equal, not {self.ranks!r}")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """Only the draws serve every rank: the clusters around subspaces of another dimension are others."""
        return _Clustered(self, weight, context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """q (m + K n); less where clusters have fewer rows than q, or their components do not fill it."""
        m, n = shape
        return rank * (m + min(self.clusters, m) * n)


class _Clustered(lrbench.Prepared):
    def __init__(self, reducer: ClusteredSVD, weight: torch.Tensor, generator: torch.Generator) -> None:
        self.reducer, self.W = reducer, weight  # (m, n)
        self.K = min(reducer.clusters, weight.shape[0])
        self.draws = torch.rand(reducer.restarts, self.K, generator=generator, dtype=torch.float64).tolist()
        self.shares: dict[int, dict[str, Any]] = {}  # what `chosen` says, of the ranks built

    def at_rank(self, rank: int) -> lrbench.ClusteredLowRank:
        _, members, parts, ranks = min(
            (self.clustered(rank, draws) for draws in self.draws), key=lambda found: found[0]
        )
        lefts, bases = [], []
        for part, r in zip(parts, ranks, strict=True):
            U, B = part.leading(r).to(self.W.dtype), part.coordinates(r)  # (m_c, r), (r, n); of W[rows]ᵀ if m_c > n
            left, basis = (U, B) if part.wide else (B.T, U.T)
            lefts.append(left.flatten())
            bases.append(basis)
        sizes = tuple(len(rows) for rows in members)
        self.shares[rank] = {"cluster_sizes": _listed(sizes), "cluster_ranks": _listed(ranks)}
        return lrbench.ClusteredLowRank(torch.cat(lefts), torch.cat(bases), torch.cat(members), sizes, tuple(ranks))

    def clustered(
        self, rank: int, draws: list[float]
    ) -> tuple[float, list[torch.Tensor], list[linalg.Spectrum], list[int]]:
        """From one seed: the squared error, and rows, spectrum and rank of each cluster that has rows."""
        m, n = self.W.shape
        labels, _ = linalg.k_subspaces(self.W, self.K, rank, draws, self.reducer.iterations)  # (m,)
        members = [rows for c in range(self.K) if len(rows := (labels == c).nonzero().flatten())]  # (m_c,) each
        parts = [linalg.Spectrum(self.W[rows]) for rows in members]
        ranks, tails = [min(rank, part.size) for part in parts], [part.errors() for part in parts]
        if self.reducer.ranks == "energy":
            ranks = _shared(tails, [len(rows) + n for rows in members], ranks, rank * (m + self.K * n))
        return _left(tails, ranks), members, parts, ranks

    def chosen(self, rank: int) -> dict[str, Any]:
        return self.shares.get(rank, {})


def _listed(counts: Sequence[int]) -> str:
    return " + ".join(map(str, counts))


def _shared(errors: list[list[float]], costs: list[int], equal: list[int], budget: int) -> list[int]:
    """The rank of each cluster, so that little error is left for a budget of numbers.

    Args:
        errors: of each cluster, with its first 0, 1, ... components kept.
        costs: numbers of one component of each.
        equal: ranks that fit, and that the result shall not be worse than.
        budget: numbers in all.
    """
    components = [
        (-(before**2 - after**2) / cost, c)
        for c, (tails, cost) in enumerate(zip(errors, costs, strict=True))
        for before, after in pairwise(tails)
    ]
    ranks, closed = [0] * len(costs), set()
    for _, c in sorted(components):  # of one cluster in descending order, whichever they are: only their number counts
        if costs[c] > budget:
            closed.add(c)
        if c not in closed:
            ranks[c] += 1
            budget -= costs[c]
    return ranks if _left(errors, ranks) <= _left(errors, equal) else equal


def _left(errors: list[list[float]], ranks: list[int]) -> float:
    """The squared error of all clusters at their ranks."""
    return sum(tails[r] ** 2 for tails, r in zip(errors, ranks, strict=True))


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """The reducers of this file."""
    return [ClusteredSVD]
