"""Leaderboards as text: what each format must hold, and what must not get through."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from lrbench.analysis.leaderboard import Column, build
from lrbench.analysis.score import Measurement
from lrbench.reports.render import FORMATS, renderer, terminal
from lrbench.reports.render.markdown import escape
from lrbench.reports.render.number_format import clean, pieces, plain
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import AtBatch, InferenceSpeed, Score, Speed
from tests.support.synthetic_run import SUBTASKS, demo_run, edit, row, simple_run

METHODS = ("svd", "laser-svd", "id", "cr", "cur", "random-columns")
EVIL = "\x1b[31mred\x1b[0m [bold]x[/bold] :smile: \x1b]8;;http://x\x07 a|b\n=1+1\u202e\x9b2J"


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return build([demo_run(tmp_path_factory.mktemp("run"))])


@pytest.fixture
def evil(tmp_path):
    """Names and reasons that try to get out of the table."""
    run = simple_run(
        tmp_path,
        [
            (row("base", model=EVIL), {"t|[red]": [1, 0]}),
            (row("a", model=EVIL, reducer="x", label="=cmd()|" + EVIL, edits=[edit()]), {"t|[red]": [1, 1]}),
        ],
    )
    run.append(row("b", model=EVIL, status="failed", reason="@" + EVIL, reducer="x", label="-2"))
    return build([run])


def table(text):
    """The lines of the terminal's table."""
    return text.split("\n\n", 1)[1].split("\n\nAccuracies")[0].splitlines()


def printed(board, width, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor", **options)
    terminal.show(board, console)
    return console.file.getvalue()


# --- all formats


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_every_method_and_every_failure_with_its_reason(board, name):
    text = renderer(name)(board).replace("\\", "")
    assert all(method in text for method in (*METHODS, "baseline", "mine", "monarch"))
    assert "returned shape (64, 3), not (64, 128)" in text
    assert "needs a square weight" in text


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_lets_a_control_character_through(evil, name):
    text = renderer(name)(evil)
    assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", text)


@pytest.mark.parametrize("name", FORMATS)
def test_a_value_that_is_not_a_number_is_never_printed_as_nan(tmp_path, name):
    run = RunDirectory(tmp_path)
    run.append(row("base", scores={"t": {"acc": Score(value=0.5, n=2)}}))
    bad = edit(relative_error=math.nan, optimal_error=math.nan)
    scores = {"t": {"acc": Score(value=math.nan, stderr=math.nan, n=2)}}
    run.append(row("a", reducer="svd", requested={"keep": 0.5}, edits=[bad], scores=scores))
    text = renderer(name)(build([run])).split("<body>")[-1]
    assert not re.search(r"\bnan\b|\bNone\b", text, re.IGNORECASE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_of_nothing_but_failures_is_still_shown(tmp_path, name):
    run = RunDirectory(tmp_path)
    run.append(row("a", status="failed", reason="no such luck", reducer="svd"))
    assert "no such luck" in renderer(name)(build([run]))


# --- values


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("ratio", 0.5, "0.500"),
        ("times", 1.0, "1.00x"),
        ("times", 1234.5, "1,234x"),
        ("seconds", 0.0001, "<0.001"),
        ("seconds", 0.0, "0.000"),
        ("seconds", 12.345, "12.3"),
        ("score", 52589.0, "52,589"),
        ("score", 8.6076, "8.61"),
        ("score", 3.2e9, "3.2e+09"),
        ("score", math.inf, "∞"),
        ("score", math.nan, "—"),
        ("score", None, "—"),
        ("text", None, ""),
        ("flag", True, "◆"),
    ],
)
def test_values_are_written_in_few_digits(kind, value, text):
    assert plain(Column("x", ("x", ""), kind), value) == text


def test_a_score_is_written_in_percent_with_its_error_and_its_signed_difference():
    column = Column("t", ("t", "acc"), "share", "higher", task="t", metric="acc")
    assert pieces(column, Measurement(0.883, 0.0142, 500, -0.021, 0.01)) == ("88.3", "±1.4", "−2.1")
    assert pieces(column, Measurement(0.883, None, 500, 0.0, 0.0)) == ("88.3", "", "0.0")
    assert pieces(column, Measurement(0.883, math.nan, 500, 0.00004, None)) == ("88.3", "", "0.0")


def test_names_lose_what_a_terminal_would_act_on():
    assert clean(EVIL) == "red [bold]x[/bold] :smile: a|b =1+1"


# --- terminal


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200, 300])
def test_no_line_is_wider_than_the_terminal(board, width):
    assert max(cell_len(line) for line in terminal.render(board, width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_line_of_the_table_is_one_cell(board, width):
    lines = [line for line in table(terminal.render(board, width)) if line.strip()]
    assert len(lines) == 3 + len(board.entries)


def test_subtasks_are_hidden_first_and_what_is_hidden_is_said(board):
    wide, narrow = terminal.render(board, 220), terminal.render(board, 120)
    assert "facts_rare" in wide
    assert "Hidden" not in wide
    hidden = narrow.split("Hidden in this width: ")[1]
    assert all(name in hidden for name in SUBTASKS)
    assert "facts_rare" not in "\n".join(table(narrow))
    assert "±" in "\n".join(table(narrow))


def test_eighty_columns_still_show_every_task_the_differences_and_the_keep(board):
    text = "\n".join(table(terminal.render(board, 80)))
    assert all(word in text for word in ("facts", "agreement", "text", "keep", "−"))


def test_without_a_width_nothing_is_hidden(board):
    text = terminal.render(board)
    assert all(f"{task.removeprefix('almanac_')}" in text for task in SUBTASKS)
    assert "Hidden" not in text


def test_what_is_the_same_on_every_line_is_said_once_in_the_title(board):
    first, *rest = terminal.render(board, 120).splitlines()
    assert first == "almanac · edited: all mlp (24) · 18 edited models"
    assert not any("all mlp" in line for line in rest)


def test_the_baseline_is_the_first_line_and_bold(board):
    lines = [line for line in printed(board, 120).splitlines() if "\x1b" in line]
    first = next(line for line in lines if "baseline" in line and "facts" not in line and "Acc" not in line)
    assert re.search(r"\x1b\[1m[^\x1b]*baseline", first)
    assert lines.index(first) < next(i for i, line in enumerate(lines) if "laser-svd" in line)


def test_a_difference_is_coloured_only_where_it_is_significant_and_the_notes_say_so(tmp_path):
    base = [1.0] * 50 + [0.0] * 50
    run = simple_run(
        tmp_path,
        [
            (row("base"), {"t": base}),
            (row("noise", reducer="noise", label="noise"), {"t": [0.0, *base[1:]]}),
            (row("four", reducer="four", label="four"), {"t": [0.0] * 4 + base[4:]}),
            (row("bad", reducer="bad", label="bad"), {"t": [0.0] * 10 + base[10:]}),
            (row("six", reducer="six", label="six"), {"t": [0.0] * 6 + base[6:]}),  # not after Holm
            (row("good", reducer="good", label="good"), {"t": [1.0] * 80 + [0.0] * 20}),
        ],
    )
    text = printed(build([run]), 120)
    assert "5 % after Holm's correction over the 5 comparisons" in " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    lines = {word: line for line in text.splitlines() for word in line.split() if "0 ±" not in word}
    assert "\x1b[31m" in lines["bad"]
    assert "\x1b[32m" in lines["good"]
    for word in ("noise", "four", "six"):
        assert "\x1b[31m" not in lines[word]
        assert "\x1b[32m" not in lines[word]


@pytest.mark.parametrize("name", ["terminal", "markdown"])
def test_rows_of_another_environment_are_said_under_the_table(tmp_path, name):
    cells = [(row("base"), {"t": [1, 0]}), (row("a", reducer="svd", label="svd"), {"t": [1, 1]})]
    assert "environment" not in renderer(name)(build([simple_run(tmp_path / "one", cells)]))
    cells += [(row(cell, reducer="svd", label="svd", environment="e1"), {"t": [1, 1]}) for cell in ("b", "c")]
    text = renderer(name)(build([simple_run(tmp_path / "two", cells)]))
    assert "2 rows were scored in another environment than the baseline." in text


def test_the_best_of_a_setting_is_bold(board):
    line = next(line for line in printed(board, 120).splitlines() if "svd" in line and "laser" not in line)
    assert "\x1b[1m81.8\x1b[0m" in line


def test_pareto_rows_are_marked(board):
    lines = [line for line in table(terminal.render(board, 120))[3:] if line.strip()]
    assert [line.startswith("◆") for line in lines] == [entry.pareto for entry in board.entries]


def test_markup_in_names_is_shown_and_not_obeyed(evil):
    text = terminal.render(evil)
    assert "[bold]x[/bold] :smile:" in text
    assert "t|[red]" in text


# --- Markdown


def test_markdown_is_a_table_with_as_many_cells_on_every_line(board, evil):
    for rendered in map(renderer("markdown"), (board, evil)):
        blocks = [
            list(lines) for is_row, lines in itertools.groupby(rendered.splitlines(), lambda s: s[:1] == "|") if is_row
        ]
        assert len(blocks) == 2
        for lines in blocks:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_markdown_shows_subtasks_and_units(board):
    text = renderer("markdown")(board)
    assert "facts\\_rare<br>acc %" in text
    assert "Accuracies in %" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("*a* _b_", r"\*a\* \_b\_"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[a](b)", r"\[a\](b)"),
        ("`a`\\", r"\`a\`\\"),
    ],
)
def test_markdown_shows_special_characters_as_they_are(text, escaped):
    assert escape(text) == escaped


# --- CSV


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_all_metrics_in_full_precision(tmp_path):
    run = RunDirectory(tmp_path)
    third = {"acc": Score(value=1 / 3, stderr=0.1, n=3), "acc_norm": Score(value=2 / 3, n=3)}
    run.append(row("base", scores={"t": third}))
    run.append(row("a", reducer="svd", label="svd", scores={"t": {**third, "acc": Score(value=0.1, n=3)}}))
    base, edited = rows_of(renderer("csv")(build([run])))
    assert float(base["t:acc"]) == 1 / 3
    assert (base["t:acc:stderr"], base["t:acc:n"], base["t:acc:delta"]) == ("0.1", "3", "")
    assert float(edited["t:acc:delta"]) == 0.1 - 1 / 3
    assert float(edited["t:acc_norm:delta"]) == 0.0
    assert edited["t:acc:significant"] == ""  # there are no samples to tell by


def test_csv_says_whether_a_difference_is_significant(tmp_path):
    cells = [(row("base"), {"t": [1.0] * 9}), (row("a", reducer="svd", label="svd"), {"t": [0.0] * 9})]
    base, edited = rows_of(renderer("csv")(build([simple_run(tmp_path, cells)])))
    assert (base["t:acc:significant"], edited["t:acc:significant"]) == ("", "true")


def test_csv_lines_end_as_the_standard_says_and_are_of_one_length(board):
    text = renderer("csv")(board)
    assert text.endswith("\r\n")
    assert text.count("\n") == text.count("\r\n") == 1 + len(board.entries) + len(board.failures)
    assert len({len(line) for line in csv.reader(io.StringIO(text, newline=""))}) == 1


def test_csv_text_is_never_a_formula(evil):
    for line in csv.reader(io.StringIO(renderer("csv")(evil), newline="")):
        for field in line:
            assert field[:1] not in tuple("=+@\t\r") or not field
            assert not field.startswith("-") or float(field) < 0


def test_csv_keeps_negative_numbers_numbers(board):
    deltas = [line["almanac_facts:acc:delta"] for line in rows_of(renderer("csv")(board))]
    assert any(float(delta) < 0 for delta in deltas if delta)


# --- JSON


def test_json_says_every_value_of_every_column(board):
    document = json.loads(renderer("json")(board), parse_constant=pytest.fail)
    assert len(document["rows"]) == len(board.entries) + len(board.failures)
    names = [column["name"] for column in document["columns"]]
    for line in document["rows"]:
        assert set(names) <= set(line)
    score = document["rows"][1]["scores"]["almanac_facts"]["acc"]
    assert set(score) == {
        *("value", "stderr", "n", "delta", "delta_stderr", "interval", "discordant", "p_value", "p_holm"),
        *("significant", "seeds", "spread"),
    }
    assert score["interval"][0] < score["delta"] < score["interval"][1]
    assert score["p_value"] <= score["p_holm"] <= 18 * score["p_value"]
    assert document["tests"]["comparisons"]["almanac_facts"] == 18
    assert score == document["rows"][1]["almanac_facts"]


def test_json_has_null_for_what_json_cannot_say(tmp_path):
    run = RunDirectory(tmp_path)
    run.append(row("base", scores={"t": {"word_perplexity": Score(value=math.inf, n=2)}}))
    document = json.loads(renderer("json")(build([run])), parse_constant=pytest.fail)
    assert document["rows"][0]["scores"]["t"]["word_perplexity"]["value"] is None


def test_columns_of_speed_and_memory_are_explained_where_they_are_shown_and_nowhere_else(tmp_path, board):
    def at(batch, seconds):
        return Speed(prefill_tokens_per_second=8 / seconds, decode_tokens_per_second=1 / seconds, peak_bytes=1000)

    speed = InferenceSpeed(
        prompt_tokens=128, new_tokens=32, repeats=5, factored_weights=1,
        batches=[AtBatch(batch=batch, dense=at(batch, 2.0), factored=at(batch, 1.0)) for batch in (1, 8)],
    )  # fmt: skip
    run = simple_run(
        tmp_path,
        [
            (row("base"), {"t": [1, 0]}),
            (
                row("a", reducer="svd", label="svd", requested={"keep": 0.5}, edits=[edit()], inference=speed),
                {"t": [1, 0]},
            ),
        ],
    )
    fast = build([run])
    for form in ("terminal", "markdown", "latex", "html"):
        text, without = (" ".join(renderer(form)(each).split()) for each in (fast, board))
        for words in ("tokens per second reading one prompt", "while generating", "peak memory at the largest"):
            assert words in text, form
            assert words not in without
