"""Betting on paired differences: what the capital may reach, and what is given up by it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrbench.stats.betting import FRACTIONS, Capital, PairwiseElimination
from tests.support.slow_cases import slow_cases

ALPHA = 0.1


def runs(values: np.ndarray, repeats: int, seed: int = 0) -> np.ndarray:
    """The population in random orders, (draws, repeats)."""
    order = np.random.default_rng(seed)
    return np.stack([order.permutation(values) for _ in range(repeats)], axis=1)


def ever(values: np.ndarray, mean: float) -> np.ndarray:
    """The largest capital that each run reaches against "the mean is at least `mean`"."""
    capital = Capital(values.shape[1:], mean, len(values))
    largest = np.ones(values.shape[1:])
    for value in values:
        capital.bet(value)
        largest = np.maximum(largest, capital.now)
    return largest


POPULATIONS = {
    "coins": np.repeat([0.0, 1.0], [60, 40]),
    "rare": np.repeat([0.0, 1.0], [97, 3]),
    "nearly all": np.repeat([0.0, 1.0], [3, 97]),
    "hardly any difference": np.repeat([0.0, 0.5, 1.0], [4, 190, 6]),
    "any values": np.random.default_rng(7).beta(0.5, 1.5, 150),
    "one": np.array([0.3]),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_true_mean_is_rejected_at_any_time_in_at_most_alpha_of_the_orders(name):
    values = POPULATIONS[name]
    repeats = 1500
    rejected = (ever(runs(values, repeats), float(values.mean())) >= 1 / ALPHA).mean()
    assert rejected <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repeats)


def test_the_bound_is_not_idle_rejections_of_the_true_mean_do_happen():
    values = np.repeat([0.0, 1.0], [500, 500])
    assert (ever(runs(values, 600), 0.5) >= 1 / ALPHA).mean() > 0.01


def test_the_capital_never_falls_below_zero_and_its_mean_over_orders_is_one():
    values = np.array([0.0, 0.1, 0.4, 0.8, 1.0])
    capital = Capital((120,), float(values.mean()), 5)
    import itertools

    orders = np.array(list(itertools.permutations(values))).T  # all orders: the expectation is exact
    for value in orders[:4]:
        capital.bet(value)
        assert (capital.now >= 0).all()
        assert capital.now.mean() == pytest.approx(1.0, rel=1e-9)


def test_a_mean_that_what_was_drawn_contradicts_is_rejected_for_certain():
    capital = Capital((1,), 0.5, 10)
    for _ in range(5):
        capital.bet(np.zeros(1))
        assert np.isfinite(capital.now).all()  # five ones may follow
    capital.bet(np.zeros(1))
    assert np.isinf(capital.now).all()


def test_a_mean_that_is_reached_already_is_never_rejected():
    capital = Capital((1,), 0.3, 10)
    for value in (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        capital.bet(np.array([value]))
        assert capital.now[0] < 1 / ALPHA
    with pytest.raises(ValueError, match="more values than the population has"):
        capital.bet(np.array([0.0]))


def test_the_capital_is_that_of_the_formula():
    rng = np.random.default_rng(3)
    values, mean = rng.random(30), 0.6
    capital, left, rest = Capital((), mean, 40), 40, 40 * mean
    parts = np.ones(len(FRACTIONS))
    for value in values:
        m = rest / left
        parts *= 1 - np.array(FRACTIONS) * (value - m) / (1 - m)
        rest, left = rest - value, left - 1
        capital.bet(np.array(value))
        assert float(capital.now) == pytest.approx(parts.mean(), rel=1e-9)


def raced(values: np.ndarray, margin: float, alpha: float, block: int = 16) -> tuple[int, int, PairwiseElimination]:
    """The candidate chosen, the values looked at, and the elimination, on (units, candidates) in the order given."""
    units, count = values.shape
    elimination, seen, start = PairwiseElimination(count, units, margin, alpha), 0, 0
    while start < units and len(elimination.remaining) > 1:
        end = min(units, start + max(block, start // 2))
        elimination.observe(values[start:end][:, elimination.remaining])
        seen += (end - start) * len(elimination.remaining)
        start = end
        if end < units:
            elimination.eliminate()
    seen += (units - start) * len(elimination.remaining)
    best = max(elimination.remaining, key=lambda one: values[:, one].sum())
    return int(best), seen, elimination


def population(rng: np.random.Generator, units: int, damages: np.ndarray) -> np.ndarray:
    """Right or wrong by candidate, which mostly agree: each spoils some of the answers and mends a few."""
    right = rng.random(units) < 0.8
    spoilt = rng.random((units, len(damages))) < damages
    mended = rng.random((units, len(damages))) < 0.05
    return np.where(right[:, None], ~spoilt, mended).astype(float)


@pytest.mark.parametrize(
    "damages", [np.linspace(0.0, 0.08, 8), *slow_cases(np.r_[0.05, np.full(7, 0.08)], np.full(6, 0.05))]
)
@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_the_choice_is_worse_than_the_best_by_the_margin_in_at_most_alpha_of_the_races(damages, margin):
    rng = np.random.default_rng(11)
    alpha, wrong, repeats = 0.2, 0, 150
    values = population(rng, 300, damages)
    best = values.mean(0).max()
    for _ in range(repeats):
        choice, _, _ = raced(rng.permutation(values), margin, alpha)
        wrong += values[:, choice].mean() <= best - max(margin, 1e-9)
    assert wrong <= alpha * repeats


def test_hopeless_candidates_are_given_up_early_and_the_best_is_chosen():
    rng = np.random.default_rng(5)
    values = population(rng, 4000, np.r_[0.0, 0.05, np.linspace(0.1, 0.9, 60)])
    choice, seen, elimination = raced(rng.permutation(values), 0.01, 0.05)
    assert choice == int(values.mean(0).argmax())
    assert seen < values.size / 10
    assert len(elimination.remaining) <= 3


def test_candidates_that_answer_alike_are_not_given_up_without_a_margin():
    values = np.repeat((np.random.default_rng(1).random(400) < 0.7).astype(float)[:, None], 4, axis=1)
    _, seen, elimination = raced(values, 0.0, 0.05)
    assert (seen, len(elimination.remaining)) == (1600, 4)
    _, seen, elimination = raced(values, 0.1, 0.05)
    assert seen < 1600
    assert len(elimination.remaining) == 1


def test_whatever_was_given_up_keeps_a_better_one_among_those_that_are_left():
    rng = np.random.default_rng(2)
    values = rng.permutation(population(rng, 600, np.linspace(0, 0.5, 20)))
    elimination, start = PairwiseElimination(20, 600, 0.02, 0.05), 0
    while start < 590:
        elimination.observe(values[start : start + 10][:, elimination.remaining])
        elimination.eliminate()
        start += 10
        for one in elimination.eliminated:
            assert elimination._no_better[one, elimination.remaining].any()
    assert sorted([*elimination.remaining, *elimination.eliminated]) == list(range(20))


def test_what_was_given_up_for_one_that_fails_is_in_question_again():
    values = np.zeros((60, 3))
    values[:, 0], values[::2, 1] = 1.0, 1.0
    elimination = PairwiseElimination(3, 60, 0.01, 0.05)
    elimination.observe(values[:40])
    assert elimination.eliminate() == [2, 1]
    assert elimination.remove(0) == [2, 1]
    assert (elimination.remaining.tolist(), elimination.eliminated) == ([], [])


def test_values_beyond_one_are_bet_on_in_units_of_their_bound():
    rng = np.random.default_rng(9)
    values = population(rng, 500, np.array([0.0, 0.6, 0.9]))
    plain, large = PairwiseElimination(3, 500, 0.02, 0.05), PairwiseElimination(3, 500, 0.06, 0.05, bound=3.0)
    plain.observe(values[:50])
    large.observe(3 * values[:50])
    assert plain.eliminate() == large.eliminate() != []
