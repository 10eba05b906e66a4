"""The table that is made of rows: differences, errors, order, the Pareto front; and the command that shows it."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random

import pytest

from lrbench.cli import leaderboard as verb
from lrbench.edited import describe, ranks, relative_error
from lrbench.errors import InputError
from lrbench.leaderboard import build, mean_score
from lrbench.metrics import is_share, lower_is_better, primary
from lrbench.render import FORMATS
from lrbench.store import RunDirectory, Score
from tests.synthetic_run import ROLES, demo_run, edit, row, simple_run

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


def test_which_way_is_better_is_known_by_name():
    assert all(map(lower_is_better, ["word_perplexity", "bits_per_byte", "brier_score", "ter"]))
    assert not any(map(lower_is_better, ["acc", "exact_match,strict", "bleu"]))
    assert is_share("exact_match,strict")
    assert not is_share("bleu")


# --- the table


def test_the_unedited_model_is_on_top_and_differences_are_from_it(tmp_path):
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


def test_a_run_without_its_unedited_model_has_no_differences(tmp_path):
    run = simple_run(tmp_path, [(reduced("a"), {"t": ONES})])
    assert build([run]).entries[0].values["t"].delta is None


def test_each_model_is_compared_with_its_own_unedited_model(tmp_path):
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
def test_any_column_sorts_both_ways_below_the_unedited_model(tmp_path, sort):
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


def test_there_is_no_ratio_to_an_optimum_of_zero(tmp_path):
    exact = edit(relative_error=1e-4, optimal_error=0.0)
    run = simple_run(tmp_path, [(reduced("a", edits=[exact]), {"t": ONES}), (reduced("b"), {"t": ONES})])
    ratios = {entry.row.cell: entry.values["optimum"] for entry in build([run]).entries}
    assert ratios == {"a": None, "b": pytest.approx(0.3 / 0.25)}


def test_the_best_of_a_setting_is_marked_and_equals_are_not(tmp_path):
    run = simple_run(
        tmp_path,
        [
            (reduced("a", "svd", decompose_seconds=1.0), {"t": ONES}),
            (reduced("b", "id", decompose_seconds=0.5), {"t": [0, *ONES]}),
            (reduced("c", "id", keep=0.25), {"t": [0, *ONES]}),
        ],
    )
    assert build([run]).best() == {(0, "t"), (0, "score"), (1, "decompose")}


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


def test_the_mean_score_of_a_row_is_over_accuracies_only():
    scores = {
        "a": {"acc": Score(value=0.5, n=1), "acc_norm": Score(value=0.9, n=1)},
        "b": {"exact_match,strict": Score(value=1.0, n=1)},
        "c": {"word_perplexity": Score(value=9.0, n=1)},
    }
    assert mean_score(row("x", scores=scores)) == pytest.approx(0.75)
    assert mean_score(row("x", scores=scores), ["a"]) == 0.5
    assert mean_score(row("x", scores={"c": scores["c"]})) is None


# --- the command


def command(*words):
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    args = parser.parse_args(["leaderboard", *map(str, words)])
    return args.run(args)


def test_a_leading_minus_after_sort_is_no_option(tmp_path, capsys):
    demo_run(tmp_path)
    assert command(tmp_path, "--sort", "-keep_model", "--format", "json") == 0
    keeps = [entry["keep_model"] for entry in json.loads(capsys.readouterr().out)["rows"] if entry["status"] == "ok"]
    assert keeps == sorted(keeps, reverse=True)


def test_the_command_offers_every_format_there_is():
    assert tuple(FORMATS) == verb._FORMATS


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
