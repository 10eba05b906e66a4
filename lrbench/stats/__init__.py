"""Statistics of scores: standard errors, and paired differences between two models on the same documents.

Both models answer the same documents, so the documents' difficulty cancels, and the standard error is smaller than that
of a difference of two independent scores. `docs/statistics.md` gives every formula with its source, `docs/damage.md`
those of rank correlations.

    totals.py        a metric as a ratio of sums over resampling units (documents, or groups of them)
    bootstrap.py     resampling of units, BCa intervals
    signflips.py     exact tests: McNemar's for 0/1 metrics, sign flips for all others
    multiplicity.py  Holm's correction for multiple tests
    paired.py        the difference between two models
    pooled.py        the difference between two models over several tasks
    jackknife.py     standard errors of statistics without a closed form
    rank_correlation.py
                     Spearman's rho of cells that may share their weights
"""

from lrbench.stats.bootstrap import COVERAGE, RESAMPLES, bca_interval
from lrbench.stats.jackknife import jackknife_stderr
from lrbench.stats.multiplicity import LEVEL, holm
from lrbench.stats.paired import Difference, Estimate, PairedValues, differences, p_value_between, paired_difference
from lrbench.stats.pooled import geometric, independent, stratified, weighted
from lrbench.stats.rank_correlation import MIN_CELLS, MIN_SUBJECTS, RankCorrelation, spearman
from lrbench.stats.signflips import sign_flip_test, sign_test
from lrbench.stats.totals import DocumentValues, PerDocument, nearly_equal

__all__ = [
    "COVERAGE", "LEVEL", "MIN_CELLS", "MIN_SUBJECTS", "RESAMPLES",
    "Difference", "DocumentValues", "Estimate", "PairedValues", "PerDocument", "RankCorrelation",
    "bca_interval", "differences", "geometric", "holm", "independent", "jackknife_stderr", "nearly_equal",
    "p_value_between", "paired_difference", "sign_flip_test", "sign_test", "spearman", "stratified", "weighted",
]  # fmt: skip
