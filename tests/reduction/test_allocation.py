"""Budgets shared out among weights: the arithmetic, against an exhaustive oracle."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrbench.reduction.allocation.knapsack import Options, convex, equal_fractions, least_loss, lower_hull


def options(sizes, losses):
    return Options(np.array(sizes, dtype=np.int64), np.array(losses, dtype=np.float64))


def best_by_dynamic_programming(weights, budget):
    """The least summed loss of any choice that fits: exact, by size."""
    reached = np.full(budget + 1, np.inf)
    reached[0] = 0.0
    for one in weights:
        following = np.full(budget + 1, np.inf)
        for size, loss in zip(one.sizes.tolist(), one.losses.tolist(), strict=True):
            if size <= budget:
                following[size:] = np.minimum(following[size:], reached[: budget + 1 - size] + loss)
        reached = following
    return float(reached.min())


@st.composite
def weights(draw, most=5):
    """A few weights: curves that fall, convex or not, or wander; the weight itself loses nothing."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        steps = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
        sizes = np.cumsum(steps)
        losses = draw(st.lists(st.integers(0, 60), min_size=len(steps) - 1, max_size=len(steps) - 1))
        if draw(st.booleans()):
            losses = sorted(losses, reverse=True)
        found.append(options(sizes, [*losses, 0]))
    return found


def sum_of(weights, choice, what):
    return sum(getattr(one, what)[place] for one, place in zip(weights, choice, strict=True))


@given(weights(), st.integers(0, 200))
@settings(max_examples=150, deadline=None)
def test_the_least_loss_is_within_one_step_of_the_optimum_and_of_the_budget(weights, budget):
    smallest = sum(int(one.sizes[0]) for one in weights)
    if budget < smallest:
        with pytest.raises(ValueError, match=f"store {smallest} parameters, the budget is {budget}"):
            least_loss(weights, budget)
        return
    found = least_loss(weights, budget)
    best = best_by_dynamic_programming(weights, budget)
    assert found.size == sum_of(weights, found.choice, "sizes") <= budget
    assert found.loss == pytest.approx(sum_of(weights, found.choice, "losses"))
    assert found.bound <= best + 1e-9
    assert best - 1e-9 <= found.loss <= found.bound + found.step + 1e-9


@given(st.integers(0, 10**6), st.floats(0.05, 0.98))
@settings(max_examples=15, deadline=None)
def test_of_many_convex_curves_the_sum_is_within_a_step_of_the_bound_and_near_it(seed, share):
    random = np.random.default_rng(seed)
    weights = []
    for _ in range(40):
        m, n = random.integers(20, 60, 2)
        spectrum = np.exp(-random.uniform(0.02, 0.2) * np.arange(min(m, n))) * random.uniform(0.1, 10)
        tails = np.append(np.cumsum(spectrum[::-1] ** 2)[::-1], 0.0)
        ranks = np.arange(1, m * n // (m + n))
        weights.append(options([*(ranks * (m + n)), m * n], [*tails[ranks], 0.0]))
    smallest = sum(int(one.sizes[0]) for one in weights)
    budget = max(smallest, int(share * sum(one.whole for one in weights)))
    found = least_loss(weights, budget)
    assert found.size <= budget
    assert found.loss - found.bound <= found.step + 1e-9
    # Budgets that hardly buy more than rank 1 everywhere are the worst: 0.054 in 4,800 draws.
    assert found.loss - found.bound <= 0.1 * sum(one.losses[0] for one in weights)


def test_ranks_that_no_budget_should_buy_are_not_bought():
    # From 6 numbers on, the weight itself is the cheaper way to lose less: 7 and 8 lie above the hull.
    one = options([2, 4, 6, 7, 8, 10], [19, 12, 10, 9.9, 9.8, 0])
    other = options([1, 100], [1000, 0])
    assert least_loss([one, other], 11).choice == (5, 0)
    assert least_loss([one, one], 12).choice in ((0, 5), (5, 0))


def test_an_exchange_finds_what_going_down_the_hulls_alone_does_not():
    # By gain for size the first weight takes 6 of 10 numbers, and nothing else fits; the second's step gains more.
    small, large = options([0, 6], [9.0, 0]), options([0, 10], [12.0, 0])
    found = least_loss([small, large], 10)
    assert (found.choice, found.loss) == ((0, 1), 9.0)
    assert best_by_dynamic_programming([small, large], 10) == 9.0


def test_a_budget_is_filled_up_where_nothing_is_gained_by_it():
    flat = options([1, 2, 3, 4, 9], [0, 0, 0, 0, 0])
    assert least_loss([flat, flat], 10).size == 2
    filled = least_loss([flat, flat], 7, at_least=6)
    assert 6 <= filled.size <= 7


@given(weights(), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_equal_shares_are_as_equal_as_options_allow_and_use_the_budget_up(weights, budget):
    if budget < sum(int(one.sizes[0]) for one in weights):
        return
    found = equal_fractions(weights, budget)
    assert found.size <= budget
    for one, place in zip(weights, found.choice, strict=True):
        if place + 1 < len(one.sizes):  # nothing more fits
            assert found.size - one.sizes[place] + one.sizes[place + 1] > budget
    # Who was given a larger share than another's next one was given it only because that did not fit.
    for (one, a), (other, b) in itertools.permutations(zip(weights, found.choice, strict=True), 2):
        if a > 0 and b + 1 < len(other.sizes) and other.sizes[b + 1] / other.whole < one.sizes[a] / one.whole:
            assert found.size - other.sizes[b] + other.sizes[b + 1] > budget


def test_equal_shares_of_equal_weights_differ_by_one_option_at_most():
    one = options(np.arange(1, 21) * 5, np.zeros(20))
    for budget in range(15, 301, 7):
        choice = equal_fractions([one] * 3, budget).choice
        assert max(choice) - min(choice) <= 1
        assert budget - 5 < sum_of([one] * 3, choice, "sizes") <= budget


def test_the_hull_runs_below_every_point_and_through_its_own():
    random = np.random.default_rng(0)
    x, y = np.arange(50.0), random.normal(size=50)
    hull = lower_hull(x, y)
    assert hull[0] == 0
    assert hull[-1] == 49
    curve = convex(x, x, y)
    assert (curve <= y + 1e-12).all()
    assert np.allclose(curve[hull], y[hull])
    assert (np.diff(curve, 2) >= -1e-12).all()


def test_a_convex_curve_is_met_between_the_ranks_that_were_built():
    ranks, built = np.arange(1.0, 101), np.array([1.0, 4, 20, 60, 100])
    curve = convex(ranks, built, 1 / built)
    assert np.allclose(curve[built.astype(int) - 1], 1 / built)
    assert (curve >= 1 / ranks - 1e-12).all()  # chords lie above a convex curve


@pytest.mark.parametrize(
    ("sizes", "losses"), [([], []), ([1, 2], [0]), ([2, 2], [1, 0]), ([3, 2], [1, 0]), ([1, 2], [float("nan"), 0])]
)
def test_options_that_are_none_are_refused(sizes, losses):
    with pytest.raises(ValueError, match=r"sizes|finite"):
        options(sizes, losses)
