"""Clustered SVD: a truncated SVD for each cluster of W's rows around several subspaces."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch

import lrbench
from lrbench import linalg


class ClusteredSVD(lrbench.Reducer):
    """W[I_c, :] ≈ U_c (U_cᵀ W[I_c, :]) for K clusters I_c of rows, from k-subspaces.

    k-subspaces minimizes the sum of squared distances of rows from the nearest of K subspaces of dimension q, the
    requested rank. It alternates between assigning each row to the nearest subspace and taking the q leading right
    singular vectors of each cluster, until nothing changes; neither step increases the sum. An initial subspace is
    spanned by a row, drawn in proportion to its squared distance from the earlier subspaces, and the rows at the
    smallest angles to it. The best of several restarts is used. It is a local optimum; the problem is NP-hard.

    The ranks of the clusters share a budget of q (m + K n) parameters, as many as rank q for each would store:

    - `ranks: energy`: takes components of all clusters by sigma² per parameter, as long as they fit; a component of a
      cluster of m_c rows has m_c + n parameters. Up to the last component, the error is the smallest for the budget;
      `equal` is used if its error is smaller.
    - `ranks: equal`: q each.

    Sreeram, Maalouf, Sharma, Rus, "Compress to impress", 2025 (arXiv 2510.20800), decompose clusters of rows;
    Maalouf and others, "Deep learning meets projective clustering", 2020 (arXiv 2010.04290), do it with embeddings.
    k-subspaces: Tseng, "Nearest q-flat to m points", 2000. Initialization: Arthur, Vassilvitskii, "k-means++", 2007.
    """

    name = "clustered-svd"
    promises = frozenset({"exact", "homogeneous"})
    randomized = True
    rank_of = "each cluster"

    clusters: Annotated[int, "clusters of rows; 1 gives the truncated SVD"] = 4
    ranks: Annotated[Literal["energy", "equal"], "how clusters share the budget"] = "energy"
    iterations: Annotated[int, "at most so many of k-subspaces; 0 keeps the initial clusters"] = 20
    restarts: Annotated[int, "number of initializations"] = 3

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.restarts < 1 or self.iterations < 0:
            raise ValueError("clusters and restarts must be at least 1, iterations at least 0")
        if self.ranks not in ("energy", "equal"):
            raise ValueError(f"ranks must be energy or equal, not {self.ranks!r}")

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: lrbench.Context) -> lrbench.Prepared:
        """Only the random draws serve every rank; clusters depend on the dimension of the subspaces."""
        return _Clustered(self, weight, context.generator)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int:
        """q (m + K n), an upper bound: small clusters and a remainder of the budget store less."""
        m, n = shape
        return rank * (m + min(self.clusters, m) * n)


class _Clustered(lrbench.Prepared):
    def __init__(self, reducer: ClusteredSVD, weight: torch.Tensor, generator: torch.Generator) -> None:
        self.reducer, self.W = reducer, weight  # (m, n)
        self.K = min(reducer.clusters, weight.shape[0])
        self.draws = torch.rand(reducer.restarts, self.K, generator=generator, dtype=torch.float64).tolist()
        self.choices: dict[int, dict[str, Any]] = {}  # rank -> the result of `chosen`

    def at_rank(self, rank: int) -> lrbench.ClusteredLowRank:
        _, members, parts, ranks = min(
            (self.clustered(rank, draws) for draws in self.draws), key=lambda result: result[0]
        )
        lefts, bases = [], []
        for part, r in zip(parts, ranks, strict=True):
            U, B = part.leading(r).to(self.W.dtype), part.coordinates(r)  # (m_c, r), (r, n); of W[rows]ᵀ if m_c > n
            left, basis = (U, B) if part.wide else (B.T, U.T)
            lefts.append(left.flatten())
            bases.append(basis)
        sizes = tuple(len(rows) for rows in members)
        self.choices[rank] = {"cluster_sizes": _listed(sizes), "cluster_ranks": _listed(ranks)}
        return lrbench.ClusteredLowRank(torch.cat(lefts), torch.cat(bases), torch.cat(members), sizes, tuple(ranks))

    def clustered(
        self, rank: int, draws: list[float]
    ) -> tuple[float, list[torch.Tensor], list[linalg.Spectrum], list[int]]:
        """For one initialization: the squared error, and rows, spectrum and rank of each cluster that is not empty."""
        m, n = self.W.shape
        labels, _ = linalg.k_subspaces(self.W, self.K, rank, draws, self.reducer.iterations)  # (m,)
        members = [rows for c in range(self.K) if len(rows := (labels == c).nonzero().flatten())]  # (m_c,) each
        parts = [linalg.Spectrum(self.W[rows]) for rows in members]
        ranks, tails = [min(rank, part.size) for part in parts], [part.errors() for part in parts]
        if self.reducer.ranks == "energy":
            ranks = _ranks_by_energy(tails, [len(rows) + n for rows in members], ranks, rank * (m + self.K * n))
        return _squared_error(tails, ranks), members, parts, ranks

    def chosen(self, rank: int) -> dict[str, Any]:
        return self.choices.get(rank, {})


def _listed(counts: Sequence[int]) -> str:
    return " + ".join(map(str, counts))


def _ranks_by_energy(errors: list[list[float]], costs: list[int], equal: list[int], budget: int) -> list[int]:
    """Ranks of the clusters with a small total error within a budget.

    Args:
        errors: the error of each cluster when its first 0, 1, ... components are kept.
        costs: the parameters of a component of each cluster.
        equal: ranks within the budget, returned if their error is smaller.
        budget: the total number of parameters.
    """
    components = [
        (-(before**2 - after**2) / cost, c)
        for c, (tails, cost) in enumerate(zip(errors, costs, strict=True))
        for before, after in pairwise(tails)
    ]
    ranks, closed = [0] * len(costs), set()
    for _, c in sorted(components):  # in descending order within a cluster, so only their number counts
        if costs[c] > budget:
            closed.add(c)
        if c not in closed:
            ranks[c] += 1
            budget -= costs[c]
    return ranks if _squared_error(errors, ranks) <= _squared_error(errors, equal) else equal


def _squared_error(errors: list[list[float]], ranks: list[int]) -> float:
    """The squared error of all clusters at their ranks."""
    return sum(tails[r] ** 2 for tails, r in zip(errors, ranks, strict=True))


@lrbench.hookimpl
def lrbench_reducers() -> list[type[lrbench.Reducer]]:
    """Registers the reducer of this file."""
    return [ClusteredSVD]
