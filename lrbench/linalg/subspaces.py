"""k-subspaces: clusters the rows of a matrix around linear subspaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrbench.linalg.gram import gram

#: Distances closer than this, relative to the row's squared norm, differ by rounding only.
_MARGIN = 1e-12


def k_subspaces(W: Tensor, count: int, dimension: int, draws: Sequence[float], iterations: int) -> tuple[Tensor, float]:
    """Clusters the rows of W (m, n) so that each row is close to the subspace of its cluster.

    Args:
        W: (m, n).
        count: the number of clusters, at most m.
        dimension: of each subspace.
        draws: `count` uniform numbers in [0, 1), which determine the initial subspaces.
        iterations: the maximum number; 0 assigns each row to the nearest initial subspace.

    Returns:
        labels (m,), each below `count` (a cluster may be empty if rows repeat), and the sum of the rows' squared
        distances from the best subspace of their cluster.

    Source: Tseng, "Nearest q-flat to m points", 2000.
    """
    W64 = W.double()
    squares = W64.square().sum(1)  # (m,)
    distances = squares.new_empty(count, len(squares))
    for c, draw in enumerate(draws):  # as in k-means++, with distances from subspaces
        weights = distances[:c].amin(0).clamp(min=0) if c else squares
        distances[c] = _distances(W64, squares, _around(W64, squares, _drawn(weights, draw), dimension))
    labels = _nearest(distances, squares)
    for _ in range(iterations):
        distances = _from_clusters(W64, squares, labels, count, dimension)
        stays = distances.gather(0, labels[None])[0] <= distances.amin(0) + _MARGIN * squares
        if bool(stays.all()):
            break
        labels = torch.where(stays, labels, _nearest(distances, squares))
    own = _from_clusters(W64, squares, labels, count, dimension).gather(0, labels[None])
    return labels, float(own.sum())


def _nearest(distances: Tensor, squares: Tensor) -> Tensor:
    """(m,) the nearest subspace of each row, from distances (count, m); the first if they differ by rounding only."""
    return (distances <= distances.amin(0) + _MARGIN * squares).to(torch.uint8).argmax(0)


def _from_clusters(W: Tensor, squares: Tensor, labels: Tensor, count: int, dimension: int) -> Tensor:
    """(count, m) squared distances of all rows from the best subspace of each cluster."""
    members = [labels == c for c in range(count)]
    distances = torch.stack([_distances(W, squares, _basis(W[rows], dimension)) for rows in members])
    own = distances.gather(0, labels[None])[0]  # (m,)
    for c, rows in enumerate(members):
        if not bool(rows.any()):  # restart an empty cluster around the row with the largest distance
            distances[c] = _distances(W, squares, _around(W, squares, int(own.argmax()), dimension))
    return distances


def _distances(W: Tensor, squares: Tensor, basis: Tensor) -> Tensor:
    """(m,) squared distances of the rows of W (m, n), with squared norms (m,), from the span of a basis (n, d)."""
    return (squares - (W @ basis).square().sum(1)).clamp(min=0)


def _basis(rows: Tensor, dimension: int) -> Tensor:
    """(n, d) the leading right singular vectors of rows (p, n), d = min(p, n, dimension)."""
    p, n = rows.shape
    if p > n:
        return torch.linalg.eigh(gram(rows.T)).eigenvectors[:, max(n - dimension, 0) :]
    U = torch.linalg.eigh(gram(rows)).eigenvectors[:, max(p - dimension, 0) :]  # (p, d)
    return torch.linalg.qr(rows.T @ U).Q


def _around(W: Tensor, squares: Tensor, row: int, dimension: int) -> Tensor:
    """(n, d) a basis of the span of one row of W (m, n) and its nearest rows by angle, d = min(m, n, dimension)."""
    cosines = (W @ W[row]).abs() / squares.sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    cosines[row] = torch.inf
    nearest = cosines.topk(min(*W.shape, dimension)).indices
    return torch.linalg.qr(W[nearest].T).Q


def _drawn(weights: Tensor, draw: float) -> int:
    """A position drawn in proportion to its weight, from a uniform number; uniformly if all weights are zero."""
    cumulative = weights.cumsum(0)
    total = float(cumulative[-1])
    if not total:
        return int(draw * len(weights))
    return min(int(torch.searchsorted(cumulative, draw * total, right=True)), len(weights) - 1)
