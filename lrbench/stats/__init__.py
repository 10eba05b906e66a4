"""Statistics of scores: standard errors, and paired differences between two models on the same documents.

The documents are the same, so their difficulty cancels: the error of a difference comes from the differences per
document and is smaller than that of two independent scores. `docs/statistics.md` has every formula and its source,
`docs/damage.md` those of rank correlations.

    totals.py        a metric as a ratio of sums over resampling units (documents, or groups of them)
    bootstrap.py     resampled units, BCa intervals
    signflips.py     exact tests: McNemar's for zeros and ones, sign flips for anything
    multiplicity.py  Holm: many tests at once
    paired.py        the difference between two models
    pooled.py        the same over several tasks
    jackknife.py     standard errors of what has no closed form
    rank_correlation.py
                     Spearman's rho of cells, some of which share their weights
"""

from lrbench.stats.bootstrap import COVERAGE, RESAMPLES, bca_interval
from lrbench.stats.jackknife import jackknife_stderr
from lrbench.stats.multiplicity import LEVEL, holm
from lrbench.stats.paired import Difference, Estimate, Pair, differences, paired_difference, tied
from lrbench.stats.pooled import geometric, independent, stratified, weighted
from lrbench.stats.rank_correlation import LEAST_CELLS, LEAST_SUBJECTS, RankCorrelation, spearman
from lrbench.stats.signflips import sign_flip_test, sign_test
from lrbench.stats.totals import PerDocument, Scores, agree

__all__ = [
    "COVERAGE", "LEAST_CELLS", "LEAST_SUBJECTS", "LEVEL", "RESAMPLES",
    "Difference", "Estimate", "Pair", "PerDocument", "RankCorrelation", "Scores",
    "agree", "bca_interval", "differences", "geometric", "holm", "independent", "jackknife_stderr",
    "paired_difference", "sign_flip_test", "sign_test", "spearman", "stratified", "tied", "weighted",
]  # fmt: skip
