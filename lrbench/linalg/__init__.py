"""Matrix algorithms that the reducers share. Functions take plain tensors and return results on the same device.

Notation: `W` is (m, n), `G` is a Gram matrix, `k` and `rank` count vectors. Row and column positions are int64.
"""

from lrbench.linalg.blocks import block_errors, block_truncations
from lrbench.linalg.cholesky import PivotedCholesky, pivoted_cholesky
from lrbench.linalg.gram import (
    GATE,
    eigenvectors,
    full_precision,
    gate,
    gram,
    in_range,
    short_gram,
    tail_errors,
    times_power,
)
from lrbench.linalg.pivots import (
    RowPivots,
    cpqr_pivots,
    greedy_rows,
    leverage_scores,
    lupp_pivots,
    weighted_sample,
)
from lrbench.linalg.refit import Core, RowRefit, solve_upper
from lrbench.linalg.skeleton import DOMINANCE, skeleton_rows
from lrbench.linalg.sketch import gaussian, gram_pays, range_finder
from lrbench.linalg.spectrum import Spectrum, exact_vectors, optimal_errors
from lrbench.linalg.subspaces import k_subspaces
from lrbench.linalg.weighted import (
    FeatureRefit,
    TwoSidedSpectrum,
    WeightedSpectrum,
    output_error,
    predicted_loss,
    predicted_losses,
    root,
    shrunk,
    weighted,
)

__all__ = [
    "DOMINANCE",
    "GATE",
    "Core",
    "FeatureRefit",
    "PivotedCholesky",
    "RowPivots",
    "RowRefit",
    "Spectrum",
    "TwoSidedSpectrum",
    "WeightedSpectrum",
    "block_errors",
    "block_truncations",
    "cpqr_pivots",
    "eigenvectors",
    "exact_vectors",
    "full_precision",
    "gate",
    "gaussian",
    "gram",
    "gram_pays",
    "greedy_rows",
    "in_range",
    "k_subspaces",
    "leverage_scores",
    "lupp_pivots",
    "optimal_errors",
    "output_error",
    "pivoted_cholesky",
    "predicted_loss",
    "predicted_losses",
    "range_finder",
    "root",
    "short_gram",
    "shrunk",
    "skeleton_rows",
    "solve_upper",
    "tail_errors",
    "times_power",
    "weighted",
    "weighted_sample",
]
