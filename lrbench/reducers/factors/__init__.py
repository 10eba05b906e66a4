"""Factors: structured stand-ins for a weight `W` of shape (out, in), which know their own size and cost.

Conventions: `out, in = W.shape`, `y = W x`; `k` is the rank. Tensors of numbers are floating, tensors of positions are
integer, and only the first are counted as numbers, cast by `to`, or trained in a `module`.
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
