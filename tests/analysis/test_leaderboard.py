"""The table that is made of rows: differences, errors, order, the Pareto front; and the command that shows it."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import random
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from lrbench.analysis.edit_summary import describe, ranks, relative_error
from lrbench.analysis.leaderboard import build
from lrbench.analysis.score import Overall, unpaired
from lrbench.cli import leaderboard as verb
from lrbench.cli import main
from lrbench.errors import InputError
from lrbench.reports.progress import TerminalProgress
from lrbench.reports.render import FORMATS, markdown, terminal
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Score
from lrbench.stats.metric_names import is_fraction, lower_is_better, primary
from tests.support.synthetic_run import ROLES, demo_run, edit, row, simple_run

ONES = [1.0] * 8


def reduced(cell, label="svd", keep=0.5, **changes):
    values = {"reducer": label, "label": label, "requested": {"keep": keep}, "keep_model": keep, "edits": [edit()]}
    return row(cell, **{**values, **changes})


def cells(board):
    return [entry.row.cell for entry in board.entries]


# --- words for what was edited


def every(layers, roles):
    return [edit(layer, role) for layer in layers for role in roles]


@pytest.mark.parametrize(
    ("edits", "blocks", "words"),
    [
        (every(range(8), ROLES), 8, "all mlp (24)"),
        (every(range(8), ROLES), None, "L0-7 mlp (24)"),
        (every([3], ["mlp.down"]), 8, "L3 mlp.down"),
        (every(range(4, 8), ["attn.q", "attn.k", "attn.v", "attn.o"]), 8, "L4-7 attn (16)"),
        (every([0, 2, 3], ["mlp.up", "mlp.down"]), 8, "L0,2-3 mlp.up+down (6)"),
        (every([1], [*ROLES, "attn.q", "attn.k", "attn.v", "attn.o"]), 8, "L1 attn, mlp (7)"),
        ([edit(None, "head")], 8, "head"),
        ([edit(None, None, weight="x.weight")], 8, "x.weight"),
        ([edit(0, "mlp.up"), edit(1, "mlp.down")], 8, "L0 mlp.up, L1 mlp.down (2)"),
        ([edit(0, "mlp.up"), edit(1, "mlp.down"), edit(2, "attn.q")], 8, "L0-2 (3)"),
        ([], 8, ""),
    ],
)
def test_edits_are_said_in_few_words(edits, blocks, words):
    assert describe(edits, blocks) == words


def test_the_error_of_several_edits_is_their_root_mean_square_by_size():
    edits = [edit(relative_error=0.3, shape=(10, 10)), edit(relative_error=0.4, shape=(10, 30))]
    assert relative_error(edits) == pytest.approx(math.sqrt((0.09 + 3 * 0.16) / 4))
    assert relative_error([]) is None


def test_several_ranks_are_said_by_the_smallest_and_the_largest():
    assert ranks([edit(rank=8), edit(rank=32), edit(rank=16)]) == "8–32"
    assert ranks([edit(rank=8), edit(rank=8)]) == "8"


# --- metrics


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        (["acc_norm", "acc"], "acc"),
        (["f1", "exact_match,strict"], "exact_match,strict"),
        (["byte_perplexity", "bits_per_byte", "word_perplexity"], "word_perplexity"),
        (["bleu", "ter"], "bleu"),
    ],
)
def test_a_task_is_stood_for_by_accuracy_then_exact_match_then_perplexity(metrics, chosen):
    assert primary(metrics) == chosen


def test_which_way_is_better_is_guessed_by_name():
    assert all(map(lower_is_better, ["word_perplexity", "bits_per_byte", "brier_score", "ter"]))
    assert not any(map(lower_is_better, ["acc", "exact_match,strict", "bleu"]))
    assert is_fraction("exact_match,strict")
    assert not is_fraction("bleu")


def directed(path, directions, cells, place=lambda tasks: {"engine": {"tasks": tasks}}):
    """A run whose manifest says which way is better: task -> {metric: higher is better}."""
    run = RunDirectory(path)
    tasks = {task: {"higher_is_better": higher} for task, higher in directions.items()}
    run.write_manifest({"models": [{"label": "almanac", **place(tasks)}]})
    for given in cells:
        run.append(given)
    return run


@pytest.mark.parametrize("place", [lambda tasks: {"engine": {"tasks": tasks}}, lambda tasks: {"tasks": tasks}])
def test_which_way_is_better_is_what_the_task_says_and_not_what_the_name_does(tmp_path, place):
    scores = {cell: {"t": {"surprise,strict": Score(value=value, n=5)}} for cell, value in (("a", 3.0), ("b", 2.0))}
    cells = [reduced(cell, scores=scores[cell]) for cell in scores]
    board = build([directed(tmp_path, {"t": {"surprise": False}}, cells, place)])
    assert [entry.row.cell for entry in board.entries] == ["b", "a"]
    assert [entry.pareto for entry in board.entries] == [True, False]
    assert {(0, "t"), (0, "score")} <= board.best
    assert {column.name: column.better for column in board.columns}["t"] == "lower"


def test_a_loss_that_the_task_calls_better_higher_is_better_higher(tmp_path):
    cells = [reduced("a", scores={"t": {"loss": Score(value=3.0, n=5)}})]
    (column,) = (c for c in build([directed(tmp_path, {"t": {"loss": True}}, cells)]).columns if c.name == "t")
    assert column.better == "higher"


def test_a_groups_way_is_that_of_its_tasks(tmp_path):
    run = RunDirectory(tmp_path)
    told = {"tasks": {"x": {"higher_is_better": {"surprise": False}}, "y": {}}, "groups": {"g": ["y", "x"]}}
    run.write_manifest({"tasks": [{"task": "g", "subtasks": ["y", "x"]}], "models": [{"label": "m", "engine": told}]})
    run.append(reduced("a", scores={"g": {"surprise": Score(value=3.0, n=5)}}))
    assert next(column.better for column in build([run]).columns if column.name == "g") == "lower"


# --- the table


def test_the_baseline_is_on_top_and_differences_are_from_it(tmp_path):
    run = simple_run(tmp_path, [(reduced("a"), {"t": [1, 1, 0, 0]}), (row("base"), {"t": [1, 1, 1, 0]})])
    board = build([run])
    assert cells(board) == ["base", "a"]
    base, edited = (entry.values["t"] for entry in board.entries)
    assert (base.delta, base.delta_stderr) == (None, None)
    assert edited.delta == pytest.approx(-0.25)
    assert edited.delta_stderr == pytest.approx(0.25)


def test_without_samples_a_difference_has_no_error(tmp_path):
    run = simple_run(tmp_path, [(row("base"), {"t": [1, 1, 0]}), (reduced("a"), {"t": [1, 0, 0]})])
    (tmp_path / "samples" / "a.jsonl").unlink()
    value = build([run]).entries[1].values["t"]
    assert value.delta == pytest.approx(-1 / 3)
    assert value.delta_stderr is None


def test_samples_that_do_not_give_the_score_give_no_error_either(tmp_path):
    run = simple_run(tmp_path, [(row("base"), {"t": [1, 1, 0]}), (reduced("a"), {"t": [1, 0, 0]})])
    run.append(reduced("a", scores={"t": {"acc": Score(value=0.9, n=3)}}))
    assert build([run]).entries[1].values["t"].delta_stderr is None


def test_samples_that_cannot_be_read_are_an_error_that_names_the_file(tmp_path):
    run = simple_run(tmp_path, [(row("base"), {"t": ONES}), (reduced("a"), {"t": ONES})])
    (tmp_path / "samples" / "a.jsonl").write_text("{]\n")
    with pytest.raises(InputError, match=r"samples/a\.jsonl"):
        build([run])


def test_a_run_without_its_baseline_has_no_differences(tmp_path):
    run = simple_run(tmp_path, [(reduced("a"), {"t": ONES})])
    assert build([run]).entries[0].values["t"].delta is None


def test_each_model_is_compared_with_its_own_baseline(tmp_path):
    run = simple_run(
        tmp_path,
        [
            (row("base1"), {"t": [1, 1, 1, 1]}),
            (row("base2", model="other"), {"t": [0, 0, 0, 1]}),
            (reduced("a", model="other"), {"t": [0, 0, 1, 1]}),
        ],
    )
    board = build([run])
    assert cells(board) == ["base1", "base2", "a"]
    assert board.entries[2].values["t"].delta == pytest.approx(0.25)


def test_the_default_order_is_by_setting_from_what_keeps_most_and_then_by_score(tmp_path):
    run = simple_run(
        tmp_path,
        [
            (reduced("fraction", keep=0.5, requested={"fraction": 0.9}), {"t": ONES}),
            (reduced("worse", keep=0.5), {"t": [0, *ONES]}),
            (reduced("small", keep=0.25), {"t": ONES}),
            (reduced("better", keep=0.5), {"t": ONES}),
            (row("base"), {"t": ONES}),
            (reduced("large", keep=0.75), {"t": [0, 0, *ONES]}),
        ],
    )
    assert cells(build([run])) == ["base", "large", "better", "worse", "small", "fraction"]


@pytest.mark.parametrize("sort", ["decompose", "-decompose", "keep_model", "-method", "setting", "t", "pareto"])
def test_any_column_sorts_both_ways_below_the_baseline(tmp_path, sort):
    rows = [(row("base"), {"t": ONES})]
    for index, seconds in enumerate([0.3, 0.1, 0.2]):
        keep = 0.25 * (index + 1)
        rows.append((reduced(f"c{index}", f"m{index}", keep, decompose_seconds=seconds), {"t": [index > 0, *ONES]}))
    board = build([simple_run(tmp_path, rows)], sort)
    assert cells(board)[0] == "base"
    name = sort.removeprefix("-")
    values = [getattr(entry.values[name], "value", entry.values[name]) for entry in board.entries[1:]]
    assert values == sorted(values, reverse=sort.startswith("-"))


def test_lines_without_a_value_come_last_whichever_way_it_is_sorted(tmp_path):
    run = simple_run(
        tmp_path,
        [(reduced("none", edits=[]), {"t": ONES}), (reduced("a"), {"t": ONES})],
    )
    assert cells(build([run], "error")) == cells(build([run], "-error")) == ["a", "none"]


def test_an_unknown_sort_column_is_refused_with_the_nearest_name_and_the_list(tmp_path):
    run = simple_run(tmp_path, [(row("base"), {"t": ONES})])
    with pytest.raises(InputError, match=r"unknown column 'decomp' .*keep_model.*did you mean 'decompose'\?"):
        build([run], "-decomp")


def test_the_pareto_front_is_what_nothing_beats_in_keep_and_score(tmp_path):
    dice = random.Random(3)
    rows = [(row("base"), {"t": [1] * 20})]
    for index in range(40):
        score = dice.randint(0, 20)
        keep = dice.randint(1, 10) / 10
        rows.append((reduced(f"c{index}", keep=keep), {"t": [1] * score + [0] * (20 - score)}))
    board = build([simple_run(tmp_path, rows)])
    points = [(entry.values["keep_model"], entry.values["score"].value) for entry in board.entries]
    for entry, (keep, score) in zip(board.entries, points, strict=True):
        beaten = any(k <= keep and s >= score and (k, s) != (keep, score) for k, s in points)
        assert entry.pareto == (not beaten)


def limited(path, limit, correct, weights="w"):
    """A run of one cell on the first `limit` documents, as its manifest says."""
    run = simple_run(path, [(reduced(f"limit{limit}{weights[0]}"), {"t": correct})])
    hashes = {"documents": f"first {limit}", "prompts": "p"}
    tasks = {"t": {"hashes": hashes}}
    run.write_manifest({"models": [{"label": "almanac", "weight_hash": weights, "engine": {"tasks": tasks}}]})
    return run


def test_lines_scored_on_other_documents_or_of_other_weights_do_not_compete(tmp_path):
    few, many = limited(tmp_path / "4", 4, [1, 1, 1, 1]), limited(tmp_path / "40", 40, [1] * 30 + [0] * 10)
    other = limited(tmp_path / "other", 40, [1] * 20 + [0] * 20, "other weights")
    board = build([few, many, other])
    assert [entry.pareto for entry in board.entries] == [True, True, True]
    assert not {name for _, name in board.best} & {"t", "score"}
    same = limited(tmp_path / "same", 40, [1] * 20 + [0] * 20)
    assert [entry.pareto for entry in build([many, same]).entries] == [True, False]
    assert {(0, "t"), (0, "score")} <= build([many, same]).best


def test_where_the_manifest_knows_no_documents_their_number_tells(tmp_path):
    few = simple_run(tmp_path / "4", [(reduced("few"), {"t": [1, 1, 1, 1]})])
    many = simple_run(tmp_path / "40", [(reduced("many"), {"t": [1] * 30 + [0] * 10})])
    assert [entry.pareto for entry in build([few, many]).entries] == [True, True]


def test_rows_of_another_environment_than_their_baseline_are_counted(tmp_path):
    rows = [(row("base"), {"t": ONES}), (reduced("a"), {"t": ONES}), (reduced("b", environment="e1"), {"t": ONES})]
    assert build([simple_run(tmp_path, rows)]).other_environment == 1


@pytest.mark.parametrize(("lost", "significant"), [(4, False), (6, True)])
def test_a_difference_is_significant_by_the_documents_that_changed(tmp_path, lost, significant):
    base = [1.0] * 200
    run = simple_run(tmp_path, [(row("base"), {"t": base}), (reduced("a"), {"t": [0.0] * lost + base[lost:]})])
    baseline, edited = build([run]).entries
    assert baseline.values["t"].significant is None
    assert edited.values["t"].discordant == (0, lost)
    assert edited.values["t"].significant is edited.values["score"].significant is significant


def test_a_mark_is_corrected_over_all_cells_of_its_column_shown_or_not(tmp_path):
    base = [1.0] * 200
    rows = [(row("base"), {"t": base})]
    rows += [
        (reduced(f"c{i}", f"m{i}"), {"t": [0.0] * (6 if i == 0 else 0) + base[6 if i == 0 else 0 :]}) for i in range(9)
    ]
    board = build([simple_run(tmp_path, rows)])
    assert board.family == {"t": 9, "score": 9}
    found = next(entry.values["t"] for entry in board.entries if entry.row.cell == "c0")
    assert found.p_value == pytest.approx(2 / 2**6)
    assert found.p_holm == pytest.approx(9 * 2 / 2**6)
    assert found.significant is False
    top = board.top(9)
    assert next(e.values["t"] for e in top.entries if e.row.cell == "c0").p_holm == found.p_holm
    assert build([simple_run(tmp_path / "alone", rows[:2])]).entries[1].values["t"].significant is True


def test_a_baseline_and_a_cell_without_samples_are_no_comparisons(tmp_path):
    run = simple_run(
        tmp_path, [(row("base"), {"t": ONES}), (reduced("a"), {"t": ONES}), (reduced("b", "id"), {"t": ONES})]
    )
    (tmp_path / "samples" / "b.jsonl").unlink()
    board = build([run])
    assert board.family["t"] == 1
    assert [entry.values["t"].p_holm for entry in board.entries if entry.row.cell != "a"] == [None, None]


def test_lines_that_cannot_be_told_from_the_best_are_ties(tmp_path):
    best = [1.0] * 180 + [0.0] * 20
    rows = [
        (row("base"), {"t": [1.0] * 200}),
        (reduced("best", "a"), {"t": best}),
        (reduced("near", "b"), {"t": [0.0] * 5 + best[5:]}),
        (reduced("far", "c"), {"t": [0.0] * 30 + best[30:]}),
        (reduced("elsewhere", "d", keep=0.25), {"t": [0.0] * 5 + best[5:]}),
    ]
    board = build([simple_run(tmp_path, rows)])
    place = {entry.row.cell: line for line, entry in enumerate(board.entries)}
    assert (place["best"], "t") in board.best
    assert board.ties == {(place["near"], "t"), (place["near"], "score")}


def test_ties_are_corrected_over_all_pairs_of_a_setting(tmp_path):
    best = [1.0] * 100
    losses = {"m0": 0, "m1": 7, "m2": 30, "m3": 60}  # 0 against 7 of 100: p = 0.016, but there are six pairs
    rows = [(reduced(name, name), {"t": [0.0] * n + best[n:]}) for name, n in losses.items()]
    board = build([simple_run(tmp_path, [(row("base"), {"t": best}), *rows])])
    assert {board.entries[line].row.cell for line, name in board.ties if name == "t"} == set()
    few = build([simple_run(tmp_path / "few", [(row("base"), {"t": best}), *[
        (reduced(name, name), {"t": [0.0] * n + best[n:]}) for name, n in {**losses, "m1": 6, "m2": 8, "m3": 9}.items()
    ]])])  # fmt: skip
    assert {few.entries[line].row.cell for line, name in few.ties if name == "t"} == {"m1"}


def test_documents_of_one_group_count_once(tmp_path):
    base, hurt = [1.0] * 40, [0.0] * 12 + [1.0] * 28
    run = simple_run(tmp_path, [(row("base"), {"t": base}), (reduced("a"), {"t": hurt})])
    assert build([run]).entries[1].values["t"].p_value == pytest.approx(2 / 2**12)
    for cell in ("base", "a"):
        samples = [{**sample, "group": f"fact {sample['doc'] // 4}"} for sample in run.samples(cell)]
        run.write_samples(cell, samples)
    grouped = build([run]).entries[1].values["t"]
    assert grouped.p_value == pytest.approx(2 / 2**3)
    assert grouped.delta == pytest.approx(-0.3)
    assert grouped.significant is False


def test_a_baseline_below_chance_is_said_under_the_table(tmp_path):
    from lrbench.reports.render.number_format import remarks

    run = simple_run(
        tmp_path, [(row("base"), {"t": [1.0] + [0.0] * 9, "u": [1.0] * 3 + [0.0] * 7}), (reduced("a"), {})]
    )
    assert build([run]).below_chance == ()  # nothing says how many choices there were
    run.write_samples("base", [{**sample, "loglikelihoods": [-1.0] * 4} for sample in run.samples("base")])
    board = build([run])
    assert board.below_chance == (("almanac", "t", 0.1, 0.25),)
    assert any("below chance on t (accuracy 10.0 %, chance 25.0 %)" in remark for remark in remarks(board))


def test_the_score_of_several_tasks_counts_the_documents_that_changed_in_all_of_them(tmp_path):
    base = {"x": [1.0] * 50, "y": [1.0] * 100}
    edited = {"x": [0.0] * 3 + [1.0] * 47, "y": [0.0] * 3 + [1.0] * 97}
    values = build([simple_run(tmp_path, [(row("base"), base), (reduced("a"), edited)])]).entries[1].values
    assert (values["x"].significant, values["y"].significant) == (False, False)
    assert values["score"].discordant == (0, 6)
    assert values["score"].significant


def test_a_lower_perplexity_is_the_score_where_no_task_has_an_accuracy(tmp_path):
    run = RunDirectory(tmp_path)
    for cell, value in (("a", 30.0), ("b", 20.0)):
        run.append(reduced(cell, scores={"text": {"word_perplexity": Score(value=value, n=5)}}))
    board = build([run])
    assert cells(board) == ["b", "a"]
    assert [entry.pareto for entry in board.entries] == [True, False]


def test_a_group_and_its_subtasks_are_columns_but_only_the_group_counts_in_the_score(tmp_path):
    board = build([demo_run(tmp_path)])
    tasks = [column for column in board.columns if column.task]
    assert [column.subtask for column in tasks] == [False, True, True, True, False, False]
    values = board.entries[3].values
    both = [values["almanac_facts"], values["almanac_agreement"]]
    assert values["score"].value == pytest.approx(sum(value.value for value in both) / 2)
    assert values["score"].delta == pytest.approx(sum(value.delta for value in both) / 2)
    assert values["score"].delta_stderr == pytest.approx(math.hypot(*(value.delta_stderr for value in both)) / 2)
    assert values["almanac_text"].delta_stderr > 0


def test_the_tasks_of_a_tag_count_each_where_the_tag_has_no_score(tmp_path):
    run = simple_run(tmp_path, [(row("base"), {"x": [1, 1], "y": [1, 0]})])
    run.write_manifest({"tasks": [{"task": "tag", "subtasks": ["x", "y"]}]})
    assert build([run]).entries[0].values["score"].value == pytest.approx(0.75)


def test_failed_and_skipped_cells_are_never_dropped(tmp_path):
    board = build([demo_run(tmp_path)])
    assert [entry.row.status for entry in board.failures] == ["failed", "skipped"]
    assert "not (64, 128)" in board.failures[0].row.reason


def test_several_runs_are_told_apart_by_a_column(tmp_path):
    one = demo_run(tmp_path / "one", methods=["svd"])
    two = demo_run(tmp_path / "two", methods=["cur"])
    board = build([one, two])
    assert board.columns[0].name == "run"
    assert {entry.values["run"] for entry in board.entries} == {"one", "two"}
    assert "run" not in [column.name for column in build([one]).columns]


def test_a_task_called_as_a_column_keeps_a_name_of_its_own(tmp_path):
    run = simple_run(tmp_path, [(row("base"), {"score": [1, 0], "keep": [1, 1]})])
    board = build([run])
    names = [column.name for column in board.columns]
    assert len(names) == len(set(names))
    assert board.entries[0].values["task:score"].value == 0.5


@pytest.mark.parametrize("optimum", [0.0, 1e-12, 5e-7, math.nan])
def test_there_is_no_ratio_to_an_optimum_of_zero(tmp_path, optimum):
    exact = edit(relative_error=1e-4, optimal_error=optimum)
    run = simple_run(tmp_path, [(reduced("a", edits=[exact, exact]), {"t": ONES}), (reduced("b"), {"t": ONES})])
    ratios = {entry.row.cell: entry.values["optimum"] for entry in build([run]).entries}
    assert ratios == {"a": None, "b": pytest.approx(0.3 / 0.25)}


def test_there_is_no_ratio_to_the_rounding_of_an_update_which_is_relative_to_the_weight(tmp_path):
    exact = edit(relative_error=3e-6, optimal_error=7e-6)
    for delta, ratio in (("base", None), (None, pytest.approx(3 / 7))):
        rows = [(reduced("a", edits=[exact], delta=delta), {"t": ONES})]
        run = simple_run(tmp_path / str(delta), rows)
        assert build([run]).entries[0].values["optimum"] == ratio


def test_the_best_of_a_setting_is_marked_and_equals_are_not(tmp_path):
    run = simple_run(
        tmp_path,
        [
            (reduced("a", "svd", decompose_seconds=1.0), {"t": ONES}),
            (reduced("b", "id", decompose_seconds=0.5), {"t": [0, *ONES[1:]]}),
            (reduced("c", "id", keep=0.25), {"t": [0, *ONES[1:]]}),
        ],
    )
    assert build([run]).best == {(0, "t"), (0, "score"), (1, "decompose")}


def test_top_keeps_the_first_of_each_setting_and_says_how_many_it_left_out(tmp_path):
    board = build([demo_run(tmp_path)]).top(2)
    assert [len(list(lines)) for _, lines in itertools.groupby(board.entries, lambda entry: entry.section)] == [
        1,
        2,
        2,
        2,
    ]
    assert board.left_out == 12
    assert len(build([demo_run(tmp_path / "sorted")], "-keep").top(2).entries) == 3


def test_the_score_of_a_row_is_over_accuracies_only():
    scores = {
        "a": {"acc": Score(value=0.5, n=1), "acc_norm": Score(value=0.9, n=1)},
        "b": {"exact_match,strict": Score(value=1.0, n=1)},
        "c": {"word_perplexity": Score(value=9.0, n=1)},
    }

    def score(scores, subtasks=None):
        given = row("x", scores=scores)
        return Overall.of_row(given, subtasks or {}).score(unpaired(given))

    assert score(scores).value == pytest.approx(0.75)
    assert score(scores, {"a": []}).value == 0.5
    assert score(scores, {"tag": ["a", "b"]}).value == pytest.approx(0.75)
    assert score({"c": scores["c"]}).value == 9.0
    assert score({}) is None


def test_samples_that_are_gone_are_said_with_what_is_missing_for_it(tmp_path):
    run = demo_run(tmp_path)
    cells = [cell for cell, row in run.rows().items() if row.status == "ok"]
    assert "missing" not in terminal.render(build([run]))
    (tmp_path / "samples" / f"{cells[3]}.jsonl").unlink()
    one = build([run])
    assert one.without_samples == 1
    assert "Samples of 1 cell are missing: its difference has no paired error." in terminal.render(one)
    shutil.rmtree(tmp_path / "samples")
    every = build([run])
    assert f"Samples of {len(cells)} cells are missing: their differences have no paired errors." in markdown.render(
        every
    )
    assert all(
        measured.delta_stderr is None
        for entry in every.entries for metrics in entry.metrics.values() for measured in metrics.values()
    )  # fmt: skip


def test_the_best_row_of_the_progress_is_the_best_of_the_leaderboard(tmp_path):
    run = demo_run(tmp_path)
    out = io.StringIO()
    with TerminalProgress(Console(file=out, width=200)) as progress:
        subtasks = {entry["task"]: entry["subtasks"] for entry in run.manifest()["tasks"]}
        progress.planned("almanac", len(run.rows()), 0, subtasks)
        for given in run.rows().values():
            progress.finished(given)
    edited = [entry for entry in build([run]).entries if not entry.baseline]
    best = max(edited, key=lambda entry: entry.values["score"].value)
    name = f"{best.values['method']} {best.values['setting']}"
    assert f"best {best.values['score'].value:.3f} ({name} 24 weights)" in out.getvalue()


def test_a_table_is_made_without_torch():
    code = "import sys, lrbench.analysis.leaderboard, lrbench.reports.render.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the command


def command(*words):
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    args = parser.parse_args(["leaderboard", *map(str, words)])
    return args.run(args)


def test_a_leading_minus_after_sort_is_no_option(tmp_path, capsys):
    demo_run(tmp_path)
    assert main(["leaderboard", str(tmp_path), "--sort", "-keep_model", "--format", "json"]) == 0
    keeps = [entry["keep_model"] for entry in json.loads(capsys.readouterr().out)["rows"] if entry["status"] == "ok"]
    assert keeps == sorted(keeps, reverse=True)


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_goes_to_a_file_in_any_format_without_escapes(tmp_path, name, capsys):
    demo_run(tmp_path / "run")
    (tmp_path / "table").write_text("old")
    assert command(tmp_path / "run", "--format", name, "--output", tmp_path / "table") == 0
    text = (tmp_path / "table").read_text()
    assert "random-columns" in text
    assert "\x1b" not in text
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "table"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"rows\.jsonl is missing"):
        command(tmp_path)


def test_an_output_in_a_folder_that_is_not_there_is_refused(tmp_path):
    demo_run(tmp_path / "run")
    with pytest.raises(InputError, match="create it first"):
        command(tmp_path / "run", "--output", tmp_path / "nowhere" / "table.md")
    with pytest.raises(InputError, match="give a file"):
        command(tmp_path / "run", "--output", tmp_path)


@pytest.mark.parametrize("count", ["0", "-1", "x"])
def test_top_takes_whole_numbers_above_zero(tmp_path, count):
    with pytest.raises(SystemExit):
        command(tmp_path, f"--top={count}")


def test_a_run_given_twice_is_shown_once(tmp_path, capsys):
    demo_run(tmp_path)
    assert command(tmp_path, tmp_path / "." / "samples" / "..", "--format", "json") == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 21
