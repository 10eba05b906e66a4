"""Standard errors, and differences between two models on the same documents."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lrbench.stats import Difference, jackknife_stderr, paired_difference, sign_test, stratified

# --- paired differences


def test_the_paired_error_is_the_spread_of_the_differences_over_the_root_of_n():
    a, b = [1, 0, 1, 1, 0], [1, 1, 0, 1, 1]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / 5
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)), "acc")
    assert (found.value, found.n) == (pytest.approx(mean), 5)
    assert found.stderr == pytest.approx(spread / math.sqrt(5))


def test_documents_are_paired_by_index_and_those_of_one_side_only_are_left_out():
    assert paired_difference({0: 1.0, 1: 0.0, 7: 1.0}, {1: 1.0, 0: 1.0}, "acc").value == pytest.approx(-0.5)
    assert paired_difference({0: 1.0}, {1: 1.0}, "acc") is None


def test_the_same_scores_differ_by_nothing_with_no_error():
    values = dict(enumerate([1.0, 0.0, 1.0]))
    assert paired_difference(values, values, "acc") == Difference(0.0, 0.0, 3, (0, 0))


def test_one_document_has_a_difference_but_no_error():
    assert paired_difference({0: 1.0}, {0: 0.0}, "acc") == Difference(1.0, None, 1, (1, 0))


@pytest.mark.parametrize("bad", [math.nan, None, "x", [1.0], [1.0, math.inf], [-1.0, 0.0]])
def test_a_value_that_is_missing_or_not_finite_gives_no_difference(bad):
    assert paired_difference({0: bad}, {0: 1.0}, "word_perplexity") is None


def test_the_error_of_a_perplexity_is_that_of_many_resampled_corpora():
    dice = random.Random(1)
    words = [dice.randint(20, 60) for _ in range(300)]
    base = [(-w * (2 + 0.4 * dice.random()), w) for w in words]
    ours = [(x - w * 0.3 * dice.random(), w) for x, w in base]

    def perplexity(pairs):
        return math.exp(-sum(x for x, _ in pairs) / sum(w for _, w in pairs))

    found = paired_difference(dict(enumerate(ours)), dict(enumerate(base)), "word_perplexity")
    assert found.value == pytest.approx(perplexity(ours) - perplexity(base))
    draws = []
    for _ in range(400):
        picked = [dice.randrange(300) for _ in range(300)]
        draws.append(perplexity([ours[i] for i in picked]) - perplexity([base[i] for i in picked]))
    mean = sum(draws) / len(draws)
    spread = math.sqrt(sum((draw - mean) ** 2 for draw in draws) / (len(draws) - 1))
    assert found.stderr == pytest.approx(spread, rel=0.15)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_a_difference_turns_its_sign_with_its_sides(pairs):
    a, b = dict(enumerate(x for x, _ in pairs)), dict(enumerate(y for _, y in pairs))
    there, back = paired_difference(a, b, "acc"), paired_difference(b, a, "acc")
    assert there.value == pytest.approx(-back.value, abs=1e-12)
    assert there.stderr == pytest.approx(back.stderr, abs=1e-12)


def test_a_group_weighs_its_tasks_as_its_own_difference_says():
    parts = [Difference(0.1, 0.02, 100), Difference(0.4, 0.04, 300)]
    assert stratified(parts, 0.325).stderr == pytest.approx(math.hypot(0.25 * 0.02, 0.75 * 0.04))
    assert stratified(parts, 0.25).stderr == pytest.approx(math.hypot(0.02, 0.04) / 2)
    assert stratified(parts, 0.9) is None


# --- significance


def changed(rose, fell, n=200):
    """The difference of two models that disagree on `rose + fell` of `n` documents."""
    ours = [1.0] * rose + [0.0] * fell + [1.0] * (n - rose - fell)
    theirs = [0.0] * rose + [1.0] * fell + [1.0] * (n - rose - fell)
    return paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)), "acc")


def test_four_losses_against_no_win_are_not_significant_though_beyond_two_standard_errors():
    found = changed(0, 4)
    assert abs(found.value) > 2 * found.stderr
    assert found.discordant == (0, 4)
    assert found.significant is False


def test_six_losses_against_no_win_are_significant_and_so_are_six_wins_of_ten_documents():
    assert changed(0, 6).significant is True
    assert changed(6, 0, 10).significant is True
    assert changed(0, 5).significant is False


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_the_binomial_test_of_scipy(rose, fell):
    expected = binomtest(rose, rose + fell).pvalue if rose + fell else 1.0
    assert sign_test(rose, fell) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_takes_thousands_of_documents():
    assert sign_test(3000, 3200) == pytest.approx(binomtest(3000, 6200).pvalue, rel=1e-9)
    assert sign_test(0, 5000) == 0.0


def test_under_no_effect_the_sign_test_rejects_at_most_one_in_twenty():
    for n in range(1, 80):
        rejected = sum(math.comb(n, k) for k in range(n + 1) if sign_test(k, n - k) <= 0.05)
        assert rejected / 2**n <= 0.05


def test_what_is_not_zero_or_one_is_significant_beyond_two_standard_errors_from_thirty_documents_on():
    def shifted(n, by):
        base = [0.25 + 0.5 * (i % 2) for i in range(n)]
        ours = [x + by * (1 + (i % 3)) for i, x in enumerate(base)]
        return paired_difference(dict(enumerate(ours)), dict(enumerate(base)), "f1")

    assert shifted(30, 0.01).discordant is None
    assert shifted(30, 0.01).significant is True
    assert shifted(29, 0.01).significant is False
    assert shifted(30, 0.0).significant is False
    assert Difference(0.1, None, 50).significant is None


def test_a_group_counts_the_documents_that_changed_over_its_tasks():
    parts = [changed(0, 3), changed(0, 3, 100)]
    whole = stratified(parts, -6 / 300)
    assert whole.discordant == (0, 6)
    assert whole.significant is True
    assert not any(part.significant for part in parts)
    assert stratified([parts[0], Difference(0.0, 0.0, 100)], -3 / 300).discordant is None


def test_a_difference_that_goes_against_its_counts_is_not_significant():
    # 1 of 2 documents better in the small task, 20 of 2000 worse in the large one, both weighing the same
    whole = stratified([changed(1, 0, 2), changed(0, 20, 2000)], (0.5 - 0.01) / 2)
    assert whole.value > 0
    assert whole.discordant == (1, 20)
    assert whole.significant is False


# --- the jackknife


def mean(values):
    return sum(values) / len(values)


def test_the_jackknife_of_a_mean_is_the_textbook_standard_error():
    values = np.random.default_rng(0).normal(size=73).tolist()

    assert jackknife_stderr(values, mean) == pytest.approx(np.std(values, ddof=1) / math.sqrt(73))


@pytest.mark.parametrize("n", [1000, 1037])
def test_blocks_of_any_size_estimate_the_standard_error_of_a_mean(n):
    estimates = [jackknife_stderr(np.random.default_rng(seed).normal(size=n).tolist(), mean) for seed in range(20)]

    assert np.mean(estimates) == pytest.approx(1 / math.sqrt(n), rel=0.05)


def test_the_jackknife_of_a_perplexity_is_the_spread_of_perplexities():
    draw = random.Random(0)

    def documents():
        return [(-draw.gauss(30, 8), draw.randint(8, 12)) for _ in range(200)]

    def perplexity(pairs):
        return math.exp(-sum(ll for ll, _ in pairs) / sum(words for _, words in pairs))

    spread = np.std([perplexity(documents()) for _ in range(400)], ddof=1)
    estimates = [jackknife_stderr(documents(), perplexity) for _ in range(20)]

    assert np.mean(estimates) == pytest.approx(spread, rel=0.1)


def test_what_cannot_be_estimated_is_none():
    assert jackknife_stderr([], mean) is None
    assert jackknife_stderr([1.0], mean) is None
    assert jackknife_stderr([1.0, 2.0], lambda values: math.exp(1000)) is None
    assert jackknife_stderr([1.0, 2.0], lambda values: math.inf) is None
