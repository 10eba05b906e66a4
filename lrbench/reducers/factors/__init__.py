"""Factors: structured approximations of a weight `W` of shape (out, in), with their size and cost.

Conventions: `out, in = W.shape`, `y = W x`; `k` is the rank. Floating tensors hold parameters, integer tensors hold row
or column positions; only floating tensors count as parameters, are cast by `to`, and are trained in a `module`.
"""

from lrbench.reducers.factors.base import INDEX_BYTES, Factors
from lrbench.reducers.factors.blocks import BlockDiagonalProduct, ClusteredLowRank
from lrbench.reducers.factors.elementary import CUR, ColumnSubset, Dense, Interpolative, LowRank

__all__ = [
    "CUR",
    "INDEX_BYTES",
    "BlockDiagonalProduct",
    "ClusteredLowRank",
    "ColumnSubset",
    "Dense",
    "Factors",
    "Interpolative",
    "LowRank",
]
