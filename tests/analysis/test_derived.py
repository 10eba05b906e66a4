import math

import numpy as np
import pytest

from lrbench.analysis.derived import derive
from lrbench.analysis.score import Measurement, with_difference
from lrbench.errors import InputError
from lrbench.stats import paired_difference
from lrbench.suite.derived_columns import DerivedColumn

MCQ = ["boolq", "arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "openbookqa"]
TASKS = ["wikitext2_tokens", "c4_tokens", *MCQ, "mathqa", "mmlu_math"]

#: Rows of LowRankArena's README: WikiText-2, C4, the seven, MathQA, MMLU-Math; then its MCQ Avg. and Q. Ret.
LLAMA_1 = [5.67, 7.20, 0.737, 0.726, 0.445, 0.693, 0.786, 0.749, 0.408, 0.261, 0.278]
LLAMA_3 = [6.24, 9.10, 0.831, 0.824, 0.549, 0.746, 0.812, 0.793, 0.454, 0.396, 0.437]
PUBLISHED = {
    "ASVD 80": (LLAMA_1, [8.60, 11.04, 0.743, 0.628, 0.388, 0.669, 0.750, 0.696, 0.392, 0.241, 0.211], 0.609, 0.787),
    "MoDeGPT 80": (LLAMA_1, [6.92, 10.87, 0.647, 0.587, 0.353, 0.637, 0.724, 0.582, 0.336, 0.254, 0.304], 0.552, 0.880),
    "ASVD 60": (
        LLAMA_1,
        [3839.83, 4268.56, 0.450, 0.274, 0.244, 0.503, 0.528, 0.264, 0.238, 0.198, 0.272],
        0.357,
        0.458,
    ),
    "MoDeGPT 60": (
        LLAMA_3,
        [24.50, 51.82, 0.622, 0.460, 0.312, 0.672, 0.629, 0.516, 0.316, 0.241, 0.213],
        0.504,
        0.446,
    ),
}  # fmt: skip
ARENA = {
    "mcq": {"mean": MCQ},
    "retained": {"retention": ["wikitext2_tokens", "c4_tokens", "mcq", "mathqa", "mmlu_math"]},
}


def columns(given):
    made = []
    for name, value in given.items():
        made.append(DerivedColumn.parse(name, value, made))
    return made


def table(values, stderr=None):
    metric = {task: "token_perplexity" if task.endswith("_tokens") else "acc" for task in TASKS}
    return {task: {metric[task]: Measurement(value, stderr)} for task, value in zip(TASKS, values, strict=True)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_columns_are_those_that_lowrankarena_publishes(name):
    dense, compressed, mcq, retained = PUBLISHED[name]

    derived = derive(columns(ARENA), table(compressed), table(dense))

    assert derived["mcq"].value == pytest.approx(mcq, abs=6e-4)
    assert derived["retained"].value == pytest.approx(retained, abs=1.5e-3)


def test_the_baseline_retains_all():
    derived = derive(columns(ARENA), table(LLAMA_1), None)

    assert derived["mcq"].value == pytest.approx(np.mean(LLAMA_1[2:9]))
    assert derived["mcq"].delta is None
    assert derived["retained"] == Measurement(1.0)


def measured_pair(dice, documents, ours, theirs, metric="acc"):
    """Two models' accuracies or perplexities on the same documents, as a table has them: the row's, the baseline's."""
    if metric == "acc":
        difficulty = dice.random(documents)
        values = [{doc: float(difficulty[doc] < level) for doc in range(documents)} for level in (ours, theirs)]
        of = [np.mean(list(one.values())) for one in values]
    else:
        base = dice.gamma(2, size=documents)
        values = [
            {doc: (-100 * (math.log(level) + 0.3 * (base[doc] - 2)), 100) for doc in range(documents)}
            for level in (ours, theirs)
        ]
        of = [math.exp(-sum(ll for ll, _ in one.values()) / (100 * documents)) for one in values]
    difference = paired_difference(values[0], values[1], metric)
    row = with_difference(Measurement(of[0], difference.ours.stderr, documents), of[0] - of[1], difference)
    return {metric: row}, {metric: Measurement(of[1], difference.theirs.stderr, documents)}


@pytest.fixture
def pair():
    dice = np.random.default_rng(0)
    made = {
        "text": measured_pair(dice, 80, 9.0, 6.0, "token_perplexity"),
        "facts": measured_pair(dice, 400, 0.55, 0.7),
        "grammar": measured_pair(dice, 300, 0.9, 0.95),
        "sums": measured_pair(dice, 200, 0.4, 0.5),
    }
    return {name: one[0] for name, one in made.items()}, {name: one[1] for name, one in made.items()}


def test_the_error_of_a_retention_is_what_the_bootstrap_finds(pair):
    ours, theirs = pair
    given = {"mcq": {"mean": ["facts", "grammar"]}, "kept": {"retention": ["text", "mcq", "sums"]}}

    kept = derive(columns(given), ours, theirs)["kept"]

    def draws(name, side):
        return getattr(next(iter(ours[name].values())).difference, side).draws

    mcq = [(draws("facts", side) + draws("grammar", side)) / 2 for side in ("ours", "theirs")]
    resampled = (
        draws("text", "theirs") / draws("text", "ours")
        + mcq[0] / mcq[1]
        + draws("sums", "ours") / draws("sums", "theirs")
    ) / 3
    assert kept.stderr == pytest.approx(resampled.std(), rel=0.06)
    assert kept.delta == pytest.approx(kept.value - 1)
    assert kept.interval[0] < kept.delta < kept.interval[1] < 0
    assert kept.interval == pytest.approx(tuple(np.quantile(resampled - 1, [0.025, 0.975])), abs=0.01)


def test_pairing_takes_the_shared_difficulty_out_of_the_error(pair):
    ours, theirs = pair
    unpaired = {task: {m: Measurement(v.value, v.stderr, v.n) for m, v in of.items()} for task, of in ours.items()}
    given = columns({"kept": {"retention": ["text", "facts"]}})

    paired, independent = (derive(given, one, theirs)["kept"] for one in (ours, unpaired))

    assert paired.value == independent.value
    assert paired.stderr < 0.7 * independent.stderr
    assert independent.interval is None


def test_independent_scores_add_their_relative_errors():
    ours, theirs = {"a": {"acc": Measurement(0.6, 0.03)}}, {"a": {"acc": Measurement(0.8, 0.02)}}

    kept = derive(columns({"kept": {"retention": ["a"]}}), ours, theirs)["kept"]

    assert kept.value == pytest.approx(0.75)
    assert kept.stderr == pytest.approx(0.75 * math.hypot(0.03 / 0.6, 0.02 / 0.8))


def test_a_task_whose_error_is_not_known_leaves_the_column_without_one(pair):
    ours, theirs = pair
    ours = {**ours, "facts": {"acc": Measurement(0.55)}}

    derived = derive(columns({"m": {"mean": ["facts", "sums"]}, "kept": {"retention": ["text", "m"]}}), ours, theirs)

    assert derived["kept"].stderr is None
    assert derived["kept"].interval is None
    assert derived["kept"].value > 0


def test_two_terms_of_the_same_documents_are_not_taken_for_independent(pair):
    ours, theirs = pair
    doubled = {**ours, "facts": {**ours["facts"], "acc_norm": ours["facts"]["acc"]}}
    base = {**theirs, "facts": {**theirs["facts"], "acc_norm": theirs["facts"]["acc"]}}

    once = derive(columns({"kept": {"retention": ["facts"]}}), doubled, base)["kept"]
    twice = derive(columns({"kept": {"retention": [{"facts": "acc"}, {"facts": "acc_norm"}]}}), doubled, base)["kept"]
    nested = derive(
        columns({"m": {"mean": ["facts"]}, "kept": {"retention": ["facts", "m"]}}), doubled, base
    )["kept"]  # fmt: skip

    assert twice.stderr == pytest.approx(once.stderr)
    assert nested.stderr == pytest.approx(once.stderr)
    plain = {t: {m: Measurement(v.value, v.stderr) for m, v in of.items()} for t, of in doubled.items()}
    both = columns({"kept": {"retention": [{"facts": "acc"}, {"facts": "acc_norm"}]}})
    assert derive(both, plain, base)["kept"].stderr is None


def test_a_mean_has_the_paired_difference_and_its_test(pair):
    ours, theirs = pair

    mcq = derive(columns({"mcq": {"mean": ["facts", "grammar", "sums"]}}), ours, theirs)["mcq"]

    deltas = [ours[name]["acc"].delta for name in ("facts", "grammar", "sums")]
    assert mcq.delta == pytest.approx(np.mean(deltas))
    assert mcq.delta_stderr == pytest.approx(
        math.hypot(*(ours[name]["acc"].delta_stderr for name in ("facts", "grammar", "sums"))) / 3
    )
    assert 0 < mcq.p_value < 1e-6


def test_seeds_have_a_retention_each():
    ours = {
        "a": {"acc": Measurement(0.5, by_seed=(0.4, 0.6))},
        "t": {"perplexity": Measurement(5.0, by_seed=(4.0, 6.0))},
    }
    theirs = {"a": {"acc": Measurement(0.8)}, "t": {"perplexity": Measurement(4.0)}}

    kept = derive(columns({"kept": {"retention": ["a", "t"]}}), ours, theirs)["kept"]

    assert kept.by_seed == pytest.approx(((0.4 / 0.8 + 1) / 2, (0.6 / 0.8 + 4 / 6) / 2))
    assert kept.spread > 0


def test_a_metric_other_than_the_tasks_first_is_named():
    ours = {"arc_easy": {"acc": Measurement(0.7), "acc_norm": Measurement(0.6)}}

    derived = derive(columns({"a": {"mean": ["arc_easy"]}, "b": {"mean": [{"arc_easy": "acc_norm"}]}}), ours, None)

    assert (derived["a"].value, derived["b"].value) == (0.7, 0.6)


def test_the_task_says_which_way_is_better_where_its_metric_does_not():
    ours, theirs = {"a": {"surprise": Measurement(4.0)}}, {"a": {"surprise": Measurement(2.0)}}
    given = columns({"kept": {"retention": ["a"]}})

    assert derive(given, ours, theirs)["kept"].value == 2.0
    assert derive(given, ours, theirs, lower=lambda task, metric: True)["kept"].value == 0.5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"acc": Measurement(0.5)}),
        ({"acc": Measurement(0.5)}, {}),
        ({"acc": Measurement(0.5)}, {"acc": Measurement(0.0)}),
        ({"acc": Measurement(math.nan)}, {"acc": Measurement(0.5)}),
        ({"perplexity": Measurement(5.0)}, {"perplexity": Measurement(math.inf)}),
    ],
)
def test_a_row_without_a_term_or_a_defined_ratio_has_no_such_column(ours, theirs):
    assert derive(columns({"kept": {"retention": ["a"]}}), {"a": ours}, {"a": theirs}) == {}


def test_a_model_of_infinite_perplexity_retains_nothing():
    ours, theirs = {"a": {"perplexity": Measurement(math.inf)}}, {"a": {"perplexity": Measurement(5.0, 0.1)}}

    assert derive(columns({"kept": {"retention": ["a"]}}), ours, theirs)["kept"].value == 0


def test_a_mean_of_accuracies_and_perplexities_is_refused(pair):
    with pytest.raises(InputError, match="column 'm': higher is better for some of its terms, lower for others"):
        derive(columns({"m": {"mean": ["text", "facts"]}}), *pair)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"m": ["a"]}, r"column 'm' is \{mean: \[\.\.\.\]\} or \{retention: \[\.\.\.\]\}, not \['a'\]"),
        ({"m": {"median": ["a"]}}, "column 'm' is"),
        ({"m": {"mean": ["a"], "retention": ["a"]}}, "column 'm' is"),
        ({"m": {"mean": []}}, "column 'm': mean takes a list of terms, not \\[\\]"),
        ({"m": {"mean": "a"}}, "column 'm': mean takes a list of terms, not 'a'"),
        ({"m": {"mean": [1]}}, r"a term is TASK or \{TASK: METRIC\}, not 1"),
        ({"m": {"mean": [{"a": None}]}}, "a term is TASK or"),
        ({"m": {"mean": [{"a": "x", "b": "y"}]}}, "a term is TASK or"),
        ({"m": {"mean": ["a", "b", "a"]}}, "column 'm': 'a' is listed twice"),
        ({"m": {"mean": ["m"]}}, "column 'm': a term is a task, or a mean that stands above; 'm' is not"),
        ({"r": {"retention": ["a"]}, "m": {"mean": ["r"]}}, "column 'm': .*; 'r' is not"),
    ],
)
def test_a_column_that_is_none_is_an_error_in_one_line(given, message):
    with pytest.raises(ValueError, match=message):
        columns(given)


def test_columns_are_written_as_they_were_given():
    given = {"m": {"mean": ["a", {"b": "acc_norm"}]}, "r": {"retention": ["m", "t"]}}

    assert {column.name: column.resolved() for column in columns(given)} == given
