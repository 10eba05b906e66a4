"""Standard errors, and differences between two models on the same documents."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from lrbench.stats import (
    LEVEL,
    DocumentValues,
    PairedValues,
    differences,
    geometric,
    holm,
    jackknife_stderr,
    p_value_between,
    paired_difference,
    sign_flip_test,
    sign_test,
    stratified,
    weighted,
)
from lrbench.stats.signflips import saddlepoint_tails

# --- paired differences


def pair(ours, theirs):
    return PairedValues([DocumentValues.of(ours)], [DocumentValues.of(theirs)])


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
    found = paired_difference(values, values, "acc")
    assert (found.value, found.stderr, found.n, found.discordant) == (0.0, 0.0, 3, (0, 0))
    assert (found.interval, found.p_value) == ((0.0, 0.0), 1.0)


def test_one_document_has_a_difference_but_no_error():
    found = paired_difference({0: 1.0}, {0: 0.0}, "acc")
    assert (found.value, found.stderr, found.n, found.discordant) == (1.0, None, 1, (1, 0))
    assert (found.interval, found.p_value) == (None, 1.0)


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
    parts = [changed(15, 5, 100), changed(120, 0, 300)]
    values, errors = [part.value for part in parts], [part.stderr for part in parts]
    assert values == pytest.approx([0.1, 0.4])
    assert stratified(parts, 0.325).stderr == pytest.approx(math.hypot(0.25 * errors[0], 0.75 * errors[1]))
    assert stratified(parts, 0.25).stderr == pytest.approx(math.hypot(*errors) / 2)
    assert stratified(parts, 0.9) is None


# --- exact tests


def changed(rose, fell, n=200):
    """The difference of two models that disagree on `rose + fell` of `n` documents."""
    ours = [1.0] * rose + [0.0] * fell + [1.0] * (n - rose - fell)
    theirs = [0.0] * rose + [1.0] * fell + [1.0] * (n - rose - fell)
    return paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)), "acc")


def brute_force(steps):
    """The share of all sign flips that give a sum as large as the observed one."""
    sums = [abs(sum(s * x for s, x in zip(signs, steps, strict=True))) for signs in product((1, -1), repeat=len(steps))]
    return sum(value >= abs(sum(steps)) * (1 - 1e-9) for value in sums) / len(sums)


def test_four_losses_against_no_win_are_not_significant_though_beyond_two_standard_errors():
    found = changed(0, 4)
    assert abs(found.value) > 2 * found.stderr
    assert found.discordant == (0, 4)
    assert found.p_value == pytest.approx(1 / 8)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_test_of_zeros_and_ones_is_the_binomial_test_of_scipy(rose, fell):
    expected = binomtest(rose, rose + fell).pvalue if rose + fell else 1.0
    assert sign_test(rose, fell) == pytest.approx(expected, rel=1e-9)
    assert changed(rose, fell).p_value == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_takes_thousands_of_documents():
    assert sign_test(3000, 3200) == pytest.approx(binomtest(3000, 6200).pvalue, rel=1e-9)
    assert sign_test(0, 5000) == 0.0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=10))
def test_few_documents_are_tested_against_all_flips_of_signs(steps):
    assert sign_flip_test(np.array(steps)) == pytest.approx(brute_force(steps), abs=1e-9)


@given(st.lists(st.sampled_from([-3, -2, -1, 1, 2, 3, 6]), min_size=1, max_size=12))
def test_whole_steps_are_counted_exactly_and_so_are_thirds_of_them(steps):
    expected = brute_force(steps)
    assert sign_flip_test(np.array(steps, dtype=float)) == pytest.approx(expected, rel=1e-9)
    assert sign_flip_test(np.array(steps) / 1737) == pytest.approx(expected, rel=1e-9)


def test_a_long_series_of_whole_steps_is_counted_too():
    steps = np.array([1.0] * 40 + [-1.0] * 20 + [3.0] * 30 + [-3.0] * 20)
    flips = np.random.default_rng(0).choice([-1, 1], size=(200_000, len(steps)))
    share = (np.abs(flips @ np.abs(steps)) >= abs(steps.sum())).mean()
    assert sign_flip_test(steps) == pytest.approx(share, abs=4 * math.sqrt(share / 200_000))


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 0.5])
def test_many_documents_are_tested_as_a_sample_of_flips_would(shift):
    dice = np.random.default_rng(3)
    steps = dice.standard_t(3, size=80) + shift
    flips = dice.choice([-1.0, 1.0], size=(400_000, 80))
    share = (np.abs(flips @ np.abs(steps)) >= abs(steps.sum())).mean()
    assert sign_flip_test(steps) == pytest.approx(share, rel=0.03, abs=5 * math.sqrt(max(share, 1e-5) / 400_000))


def test_far_out_in_the_tail_the_approximation_is_right_to_a_few_percent():
    # 45 equal steps, and so small a change to one that they are no multiples: the binomial tail is the truth.
    steps = np.ones(45)
    steps[:3] = -1
    steps[-1] += 1e-4
    # of sums that lie on a lattice the smooth tail counts half of the observed value
    exact, beyond = binomtest(42, 45).pvalue, binomtest(43, 45).pvalue
    assert beyond < sign_flip_test(steps) < exact
    extreme = np.abs(np.random.default_rng(1).normal(size=40))
    assert sign_flip_test(extreme) == pytest.approx(2.0**-39)


def test_the_whole_sample_pointing_one_way_is_as_unlikely_as_two_of_all_flips():
    assert sign_flip_test(np.linspace(1, 2, 30)) == pytest.approx(2.0**-29)
    assert sign_flip_test(np.zeros(5)) == sign_flip_test(np.zeros(0)) == 1.0


def test_rounding_is_no_change():
    steps = np.array([0.5] * 8 + [1e-17, -1e-17, 1e-17])
    assert sign_flip_test(steps) == sign_test(8, 0)


def test_a_group_counts_the_documents_that_changed_over_its_tasks():
    parts = [changed(0, 3), changed(0, 3, 100)]
    whole = stratified(parts, -6 / 300)
    assert whole.discordant == (0, 6)
    assert whole.p_value == pytest.approx(sign_test(0, 6))
    assert all(part.p_value > 0.05 for part in parts)
    known = paired_difference({0: 0.5, 1: 0.25}, {0: 0.5, 1: 0.25}, "f1")
    assert weighted([parts[0], known], [0.5, 0.5]).discordant is None


def test_a_difference_that_goes_against_its_counts_is_not_significant():
    # 1 of 2 documents better in the small task, 20 of 2000 worse in the large one, both weighing the same
    whole = stratified([changed(1, 0, 2), changed(0, 20, 2000)], (0.5 - 0.01) / 2)
    assert whole.value > 0
    assert whole.discordant == (1, 20)
    assert whole.p_value > 0.9


def test_two_models_are_told_apart_by_what_each_differs_from_a_third():
    base = dict(enumerate([1.0, 0.0] * 50))
    worse, better = base | dict.fromkeys(range(0, 20, 2), 0.0), base | dict.fromkeys(range(1, 21, 2), 1.0)
    pairs = [pair(side, base) for side in (worse, better)]
    one, other = differences(pairs, "acc", "t")
    assert p_value_between(one, other) == pytest.approx(sign_test(20, 0))
    assert p_value_between(one, one) == 1.0
    elsewhere = differences([pair(worse, base)], "acc", "another task")[0]
    assert p_value_between(one, elsewhere) is None
    another = differences([pair(worse, better)], "acc", "t")[0]
    assert p_value_between(one, another) is None


# --- many tests at once


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p_values):
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for step, place in enumerate(order):  # the procedure as Holm states it
            if p_values[place] > level / (len(order) - step):
                break
            rejected.add(place)
        near = any(abs(p * (len(order) - i) - level) < 1e-12 for p in p_values for i in range(len(order)))
        assert near or {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_what_was_not_tested_takes_no_part():
    assert holm([None, 0.02, None, 0.04]) == [None, 0.04, None, 0.04]
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def claimed(p_values):
    """The share of tables in which some cell is called different after Holm: p-values (tables, cells)."""
    return np.mean([any(p <= LEVEL for p in holm(list(row))) for row in p_values])


def allowed(tables):
    """5 %, and three standard deviations of a share of so many tables."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / tables)


def test_with_no_effect_a_table_of_accuracies_claims_a_difference_in_one_of_twenty_at_most():
    dice = np.random.default_rng(11)
    tables, cells, documents = 1500, 20, 120
    difficulty = dice.uniform(0.5, 1, size=documents)
    base = dice.random((tables, 1, documents)) < difficulty
    edited = dice.random((tables, cells, documents)) < difficulty
    rose, fell = (edited & ~base).sum(axis=2), (~edited & base).sum(axis=2)
    tests = np.vectorize(sign_test, otypes=[float])(rose, fell)
    assert claimed(tests) <= allowed(tables)
    assert np.mean(tests <= 0.05, axis=None) > 0.005  # the test is not merely mute
    assert np.mean((tests <= 0.05).any(axis=1)) > allowed(tables)  # and without Holm the claim would be false


def test_with_no_effect_a_table_of_perplexities_claims_a_difference_in_one_of_twenty_at_most():
    dice = np.random.default_rng(12)
    tables, cells, documents = 600, 12, 60
    words = dice.integers(20, 80, size=documents)
    length = words * dice.gamma(2, 1, size=(tables, cells + 1, documents))  # of heavy tails, the same for all models
    steps = (length[:, :1] - length[:, 1:]).reshape(-1, documents)
    tests = saddlepoint_tails(steps).reshape(tables, cells)
    assert claimed(tests) <= allowed(tables)
    assert claimed(tests) > 0.005
    assert tests.mean() == pytest.approx(0.5, abs=0.03)


def test_a_true_effect_is_found():
    dice = np.random.default_rng(13)
    base = dice.random(400) < 0.8
    hurt = base & (dice.random(400) < 0.9)
    found = [paired_difference(dict(enumerate(map(float, side))), dict(enumerate(map(float, base))), "acc")
             for side in [hurt, *[base] * 30]]  # fmt: skip
    assert [p <= LEVEL for p in holm([one.p_value for one in found])] == [True, *[False] * 30]


# --- the bootstrap


def test_the_interval_of_a_mean_is_that_of_scipy():
    dice = np.random.default_rng(5)
    base, ours = dice.gamma(1, size=60), dice.gamma(1.3, size=60)
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(base)), "f1")
    expected = bootstrap((ours - base,), np.mean, method="BCa", n_resamples=20_000, rng=dice).confidence_interval
    width = expected.high - expected.low
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.05 * width)


def test_the_interval_of_a_perplexity_is_that_of_scipy():
    dice = np.random.default_rng(6)
    words = dice.integers(5, 60, size=50)
    base = -words * dice.gamma(4, 0.5, size=50)
    ours = base - words * dice.gamma(1, 0.4, size=50)

    def statistic(a, b, w, axis=-1):
        return np.exp(-a.sum(axis) / w.sum(axis)) - np.exp(-b.sum(axis) / w.sum(axis))

    pairs = [dict(enumerate(zip(side.tolist(), words.tolist(), strict=True))) for side in (ours, base)]
    found = paired_difference(*pairs, "word_perplexity")
    data = (ours, base, words.astype(float))
    expected = bootstrap(data, statistic, paired=True, method="BCa", n_resamples=20_000, rng=dice).confidence_interval
    width = expected.high - expected.low
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.05 * width)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    dice, held = np.random.default_rng(7), 0
    for trial in range(300):
        steps = dice.exponential(size=40)
        found = differences([pair(dict(enumerate(steps)), dict.fromkeys(range(40), 0.0))],
                            "f1", str(trial))[0]  # fmt: skip
        held += found.interval[0] <= 1 <= found.interval[1]
    assert held / 300 == pytest.approx(0.94, abs=0.045)


def test_the_same_documents_are_drawn_again_for_every_model_and_run():
    values = dict(enumerate(np.random.default_rng(0).random(50).tolist()))
    shifted = {doc: value + 0.25 for doc, value in values.items()}
    first = paired_difference(shifted, values, "f1")
    assert first.interval == pytest.approx((0.25, 0.25))
    assert first.interval == paired_difference(shifted, values, "f1").interval
    together = differences([pair(side, values) for side in (shifted, values)], "f1", "")
    assert together[0].ours.draws.tolist() == first.ours.draws.tolist()


def test_documents_of_one_group_are_drawn_together_and_flipped_together():
    ours, theirs = dict.fromkeys(range(40), 1.0), dict.fromkeys(range(40), 0.0) | dict.fromkeys(range(20, 40), 1.0)
    alone = paired_difference(ours, theirs, "acc")
    groups = {doc: doc // 10 for doc in ours}
    grouped = paired_difference(ours, theirs, "acc", groups)
    assert alone.p_value == pytest.approx(sign_test(20, 0))
    assert grouped.p_value == pytest.approx(sign_test(2, 0))
    assert grouped.value == alone.value
    assert grouped.stderr == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)
    assert grouped.interval[1] - grouped.interval[0] > 1.5 * (alone.interval[1] - alone.interval[0])


def test_a_mean_over_seeds_is_one_model():
    base = dict.fromkeys(range(30), 0.5)
    seeds = [dict(enumerate(np.random.default_rng(seed).random(30).tolist())) for seed in range(3)]
    found = differences(
        [PairedValues([DocumentValues.of(side) for side in seeds], [DocumentValues.of(base)])], "f1", "t"
    )[0]
    average = {doc: sum(side[doc] for side in seeds) / 3 for doc in base}
    expected = paired_difference(average, base, "f1")
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr)
    assert found.p_value == pytest.approx(expected.p_value, rel=1e-6)


def test_the_geometric_mean_of_perplexities_has_the_error_of_resampled_corpora():
    dice = np.random.default_rng(8)

    def corpus(n, level, damage=0.0):
        return [(-w * (level + damage * dice.random()), w) for w in dice.integers(20, 60, size=n).tolist()]

    tasks = []
    for n, level in ((80, 2.0), (50, 5.0)):
        base = corpus(n, level, 1.0)
        ours = [(x - w * 0.4 * dice.random(), w) for x, w in base]
        tasks.append((dict(enumerate(ours)), dict(enumerate(base))))
    parts = [
        differences([pair(ours, base)], "word_perplexity", str(place))[0] for place, (ours, base) in enumerate(tasks)
    ]
    whole = geometric(parts)
    expected = math.sqrt(math.prod(p.ours.value for p in parts)) - math.sqrt(math.prod(p.theirs.value for p in parts))
    assert whole.value == pytest.approx(expected)
    assert whole.stderr == pytest.approx((whole.ours.draws - whole.theirs.draws).std(), rel=0.1)
    assert whole.p_value < 1e-6
    assert weighted(parts, [0.5, 0.5]).steps.sum() == pytest.approx(weighted(parts, [0.5, 0.5]).value)


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
