"""Methods that draw at random, repeated with several seeds: in suites, plans, runs and tables."""

from __future__ import annotations

import math
import statistics

import pytest

import lrbench
from lrbench.analysis.leaderboard import build
from lrbench.errors import SuiteError
from lrbench.reducers.registry import Registry
from lrbench.reports.render import FORMATS, renderer
from lrbench.suite.load import load_suite
from lrbench.testing import check_reducer
from tests.support.suites import run, write_suite
from tests.support.synthetic_run import edit, row, simple_run

SEEDED = """\
name: seeded
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 8}
  - {task: almanac_text, limit: 3}
reducers: [svd, random-columns]
sweep:
  - layers: [5]
    weights: [mlp.down]
    rank: {keep: [0.5, 0.25]}
seed: 3
seeds: 3
"""


def seeds_of(folder, **changes):
    return load_suite(write_suite(folder, SEEDED, **changes)).repeats


def test_a_number_counts_from_the_suites_seed_and_a_list_is_what_it_says(tmp_path):
    assert seeds_of(tmp_path) == (3, 4, 5)
    assert seeds_of(tmp_path, seeds="[7, 1]") == (7, 1)
    assert seeds_of(tmp_path, seeds="1") == (3,)
    assert seeds_of(tmp_path, seeds="null") == (3,)


def test_without_seeds_the_hash_of_a_suite_is_what_it_was(tmp_path):
    def hash_of(text):
        return load_suite(write_suite(tmp_path, text)).hash

    absent = hash_of(SEEDED.replace("seeds: 3\n", ""))
    assert absent == hash_of(SEEDED.replace("seeds: 3", "seeds: null"))
    assert len({absent, hash_of(SEEDED), hash_of(SEEDED.replace("seeds: 3", "seeds: [3, 4, 5]"))}) == 3


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("0", "how many seeds"), ("-1", "how many seeds"), ("1.5", "how many seeds"), ("true", "how many seeds"),
        ("five", "how many seeds"), ("[]", "how many seeds"), ("{a: 1}", "how many seeds"),
        ("[1, 1]", "seed 1 is listed twice"), ("[1, x]", "a seed is a whole number"),
        ("[-1]", "a seed is a whole number"), ("[true]", "a seed is a whole number"),
        ("[18446744073709551616]", "a seed is a whole number"),
    ],
)  # fmt: skip
def test_what_is_no_seeds_is_refused_at_its_line(tmp_path, value, problem):
    with pytest.raises(SuiteError, match=rf"suite\.yaml:12:\d+: .*{problem}"):
        seeds_of(tmp_path, seeds=value)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeded")
    return run(write_suite(folder, SEEDED), folder / "run").directory


def test_only_what_draws_is_repeated(seeded):
    rows = list(seeded.rows().values())
    seeds = {label: sorted(r.seed for r in rows if r.label == label) for label in (None, "svd", "random-columns")}
    assert seeds == {None: [3], "svd": [3, 3], "random-columns": [3, 3, 4, 4, 5, 5]}
    errors = {r.edits[0].relative_error for r in rows if r.label == "random-columns"}
    assert len(errors) == 6  # every draw is another


def test_a_seed_gives_what_a_suite_of_that_seed_gives(seeded, tmp_path):
    alone = run(write_suite(tmp_path, SEEDED, seed="4", seeds="null"), tmp_path / "run").directory.rows().values()
    of_four = {r.setting: (r.scores, r.edits) for r in seeded.rows().values() if r.seed == 4}
    assert of_four == {r.setting: (r.scores, r.edits) for r in alone if r.label == "random-columns"}


def test_more_seeds_leave_what_is_scored_alone(seeded, tmp_path):
    """Cells are the same whether a number of seeds or a list asks for them."""
    listed = run(write_suite(tmp_path, SEEDED, seeds="[3, 4, 5]"), tmp_path / "run").directory.rows()
    assert set(listed) == set(seeded.rows())


def test_seeds_are_one_line_with_mean_spread_and_number(seeded):
    board = build([seeded])
    lines = {(e.values["method"], e.values["setting"]): e for e in board.entries}
    assert len(lines) == len(board.entries) == 5
    entry = lines["random-columns", "keep 0.5"]
    rows = [r for r in seeded.rows().values() if r.label == "random-columns" and r.setting == "keep 0.5"]
    values = [r.scores["almanac_text"]["word_perplexity"].value for r in rows]
    found = entry.values["almanac_text"]
    assert found.value == pytest.approx(statistics.mean(values))
    assert found.spread == pytest.approx(statistics.stdev(values))
    assert found.record()["seeds"] == 3
    assert found.delta_stderr > 0
    assert entry.values["error"] == pytest.approx(statistics.mean(r.edits[0].relative_error for r in rows))
    assert entry.values["seed"] == "3–5"
    assert lines["svd", "keep 0.5"].values["almanac_text"].spread is None


def test_every_format_says_the_spread_and_what_it_is(seeded):
    board = build([seeded])
    for name in FORMATS:
        text = renderer(name)(board)
        if name in ("csv", "json"):
            assert "spread" in text
        else:
            assert "σ" in text or r"\sigma" in text
            assert "Rows of several seeds are means" in text


def repeated(cell, seed, **changes):
    given = {"reducer": "x", "label": "x", "requested": {"keep": 0.5}, "edits": [edit()], "seed": seed}
    return row(cell, **{**given, **changes})


def test_the_mean_over_seeds_is_tested_against_the_baseline_by_document(tmp_path):
    base = [1.0] * 40
    cells = [(row("base"), {"t": base})]
    cells += [(repeated(f"s{s}", s), {"t": [0.0] * (10 + 2 * s) + [1.0] * (30 - 2 * s)}) for s in (0, 1, 2)]
    entry = build([simple_run(tmp_path, cells)]).entries[1]
    found = entry.values["t"]
    assert found.value == pytest.approx(1 - 12 / 40)
    assert found.by_seed == (0.75, 0.7, 0.65)
    losses = [sum(doc < 10 + 2 * s for s in (0, 1, 2)) / 3 for doc in range(40)]
    mean = sum(losses) / 40
    assert found.delta_stderr == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in losses) / 39 / 40))
    assert found.p_value == pytest.approx(2 * 2.0**-14)  # 14 documents, all of them worse
    assert found.significant


def test_the_same_seed_twice_is_no_repetition(tmp_path):
    cells = [(repeated("a", 0), {"t": [1]}), (repeated("b", 0), {"t": [0]}), (repeated("c", 1), {"t": [1]})]
    board = build([simple_run(tmp_path, cells)])
    assert sorted(len(e.repeats) for e in board.entries) == [0, 1]


def test_other_weights_settings_or_labels_are_no_repetition(tmp_path):
    cells = [
        (repeated("a", 0), {"t": [1]}),
        (repeated("b", 1, edits=[edit(1)]), {"t": [1]}),
        (repeated("c", 2, requested={"keep": 0.4}), {"t": [1]}),
        (repeated("d", 3, label="y"), {"t": [1]}),
        (repeated("e", 4, model="other"), {"t": [1]}),
    ]
    assert len(build([simple_run(tmp_path, cells)]).entries) == 5


@pytest.mark.parametrize(
    ("name", "params", "draws"),
    [
        ("svd", {}, False), ("bottom", {}, False), ("monarch", {}, False), ("rsvd", {}, True),
        ("random-columns", {}, True), ("random-subspace", {}, True), ("clustered-svd", {}, True),
        ("cr", {}, False), ("cr", {"sampling": "random"}, True), ("id", {}, False), ("id", {"selection": "lupp"}, True),
        ("id", {"selection": "cpqr"}, True), ("cur", {}, True), ("cur", {"selection": "deim"}, False),
        ("cur", {"selection": "leverage"}, True), ("cur", {"selection": "cpqr"}, False),
    ],
)  # fmt: skip
def test_the_built_in_methods_say_whether_they_draw_and_it_is_so(name, params, draws):
    import torch

    from lrbench.reducers.base import Context, Slot

    reducer = Registry.load().build(name, params)
    assert reducer.randomized is draws
    weight = torch.randn(24, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slot = Slot("w", 0, None, (24, 20))
    one, other = (reducer.reduce(weight, 3, Context.seeded(slot, reducer, seed)).dense() for seed in (0, 1))
    assert torch.equal(one, other) is not draws


class Secretive(lrbench.Reducer):
    """Draws, and does not say so."""

    name = "secretive"

    def reduce(self, weight, rank, context):
        import torch

        columns = torch.randperm(weight.shape[1], generator=context.generator)[:rank]
        return lrbench.ColumnSubset(weight[:, columns], columns, in_features=weight.shape[1])


def test_a_method_that_draws_and_does_not_say_so_is_found_out():
    failed = [result for result in check_reducer(Secretive) if not result.passed]
    assert [result.name for result in failed] == ["says that it is randomized where it draws at random"]
    assert "set randomized = True" in failed[0].detail
