"""Rank correlations: against scipy, against the formulas written out, and against simulations of their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lrbench.stats import MIN_CELLS, MIN_SUBJECTS, spearman

VALUES = st.lists(st.integers(0, 6), min_size=MIN_CELLS, max_size=30)


@given(VALUES, st.randoms(use_true_random=False))
def test_rho_is_scipys_ties_and_all(x: list[int], dice: object) -> None:
    y = [dice.randint(0, 6) for _ in x]  # type: ignore[attr-defined]
    found = spearman(x, y).rho
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


@given(VALUES, VALUES, st.randoms(use_true_random=False))
def test_within_strata_only_the_order_within_each_counts(one: list[int], other: list[int], dice: object) -> None:
    x = [*one, *other]
    y = [dice.randint(0, 6) for _ in x]  # type: ignore[attr-defined]
    strata = ["a"] * len(one) + ["b"] * len(other)
    plain = spearman(x, y, strata=strata).rho
    assert spearman([*one, *(value + 1000 for value in other)], y, strata=strata).rho == plain
    # By hand: ranks of each stratum, scipy's, as shares of it, and their product-moment correlation.
    residuals = [
        np.concatenate(
            [
                (2 * scipy.stats.rankdata(part) - len(part) - 1) / len(part)
                for part in (values[: len(one)], values[len(one) :])
            ]
        )
        for values in (x, y)
    ]
    if plain is None:
        assert not all(values.any() for values in residuals)
    else:
        assert plain == pytest.approx(np.corrcoef(*residuals)[0, 1], abs=1e-12)


def test_an_order_that_only_the_strata_make_is_no_correlation_within_them() -> None:
    """Of low ranks all errors and all damages are large; which matrix of one rank hurts, the error does not tell."""
    x, y, rank = [1, 2, 3, 11, 12, 13], [1, 2, 1, 12, 11, 12], [1, 1, 1, 2, 2, 2]
    assert spearman(x, y).rho == pytest.approx(0.8, abs=0.1)
    assert spearman(x, y, strata=rank).rho == pytest.approx(0, abs=1e-12)


def test_of_independent_cells_the_interval_is_bonett_and_wrights() -> None:
    x, y = list(range(10)), [1, 0, 3, 2, 5, 4, 9, 6, 8, 7]
    found = spearman(x, y)
    rho = scipy.stats.spearmanr(x, y).statistic
    half = scipy.stats.norm.ppf(0.975) * math.sqrt((1 + rho**2 / 2) / 7)
    assert found.interval == pytest.approx((math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)))
    assert (found.cells, found.subjects, found.sign) == (10, 10, 1)
    assert spearman(x, [-value for value in y]).sign == -1


def test_of_cells_that_share_subjects_it_is_the_jackknifes_over_subjects() -> None:
    dice = np.random.default_rng(1)
    subjects = np.repeat(np.arange(6), 4)
    x = dice.normal(size=24) + 2 * dice.normal(size=6)[subjects]
    y = dice.normal(size=24) + 2 * dice.normal(size=6)[subjects]
    found = spearman(x.tolist(), y.tolist(), subjects.tolist())
    left_out = [math.atanh(scipy.stats.spearmanr(x[subjects != s], y[subjects != s]).statistic) for s in range(6)]
    error = math.sqrt(5 / 6 * sum((z - np.mean(left_out)) ** 2 for z in left_out))
    assert error > math.sqrt(1.5 / 21)
    half = scipy.stats.t.ppf(0.975, 5) * error
    z = math.atanh(found.rho or 0)
    assert found.interval == pytest.approx((math.tanh(z - half), math.tanh(z + half)))


def test_cells_copied_under_the_same_subjects_are_no_more_evidence() -> None:
    x, y = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 8, 5, 7]
    once = spearman(x, y)
    often = spearman(x * 20, y * 20, list(range(8)) * 20)
    assert often.rho == pytest.approx(once.rho)
    assert often.interval is not None
    assert once.interval is not None
    assert often.interval[1] - often.interval[0] > 0.7 * (once.interval[1] - once.interval[0])
    as_if_new = spearman(x * 20, y * 20)
    assert as_if_new.interval is not None
    assert as_if_new.interval[1] - as_if_new.interval[0] < 0.4 * (often.interval[1] - often.interval[0])


def test_few_subjects_have_no_interval_and_few_cells_no_correlation() -> None:
    four = MIN_SUBJECTS - 1
    found = spearman([*range(four)] * 5, [*range(four)] * 5, [*range(four)] * 5)
    assert found.rho == pytest.approx(1)
    assert (found.interval, found.subjects, found.cells, found.sign) == (None, four, 20, 0)
    assert spearman([1, 2], [1, 2]).rho is None
    assert spearman([], []).rho is None
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4], strata=[1, 2, 3, 4]).cells == 0


def test_a_perfect_order_of_few_has_an_interval_that_is_no_point() -> None:
    found = spearman(list(range(6)), list(range(6)))
    assert found.rho == 1
    assert found.interval is not None
    assert found.interval[0] < 0.9
    assert found.interval[1] == 1
    assert spearman(list(range(6)) * 3, list(range(6)) * 3, list(range(6)) * 3).interval is not None


def test_a_correlation_that_hangs_on_one_subject_has_no_interval() -> None:
    subjects = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    found = spearman([0, 1, *[5] * 8], [0, 1, *range(8)], subjects)
    assert found.rho is not None
    assert found.interval is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        spearman([1, 2, bad], [1, 2, 3])
    with pytest.raises(ValueError, match="2 and 3 values"):
        spearman([1, 2], [1, 2, 3])


@pytest.mark.parametrize(("subjects", "each"), [(8, 1), (8, 4), (16, 3)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(subjects: int, each: int) -> None:
    """Without any true correlation, and with much of each value being its subject's own."""
    dice = np.random.default_rng(subjects * each)
    names = np.repeat(np.arange(subjects), each)
    trials, held = 200, 0
    for _ in range(trials):
        x, y = (2 * dice.normal(size=subjects)[names] + dice.normal(size=subjects * each) for _ in range(2))
        low, high = spearman(x.tolist(), y.tolist(), names.tolist()).interval or (math.nan, math.nan)
        held += low <= 0 <= high
    assert held / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
