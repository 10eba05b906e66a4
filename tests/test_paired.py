"""Differences between two models on the same documents, and their standard errors."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrbench.paired import Difference, paired_difference, stratified


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
    assert paired_difference(values, values, "acc") == Difference(0.0, 0.0, 3)


def test_one_document_has_a_difference_but_no_error():
    assert paired_difference({0: 1.0}, {0: 0.0}, "acc") == Difference(1.0, None, 1)


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
