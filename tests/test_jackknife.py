import math
import random

import numpy as np
import pytest

from lrbench.stats import jackknife_stderr


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
