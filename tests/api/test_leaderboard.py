"""`lrbench.leaderboard`: the table of runs as text, as HTML and as a frame; and how results show themselves."""

import shutil
from pathlib import Path

import pytest

import lrbench
from lrbench.errors import InputError
from lrbench.reports.render.terminal import render

RUN = Path(__file__).parents[2] / "results" / "published" / "quickstart"


@pytest.fixture(scope="module")
def results():
    return lrbench.read_results(RUN)


@pytest.fixture(scope="module")
def board(results):
    return lrbench.leaderboard(results)


def test_a_leaderboard_prints_as_the_command_prints_it(board):
    assert f"{board}\n" == render(board.board)
    assert "◆  baseline" in repr(board)
    assert str(lrbench.leaderboard(RUN)) == str(board)


def test_a_notebook_shows_a_table_that_changes_nothing_else_on_its_page(board):
    shown = board._repr_html_()
    assert shown.count("<tr") == len(board.board.entries) + 1
    assert not any(word in shown for word in ("<script", "<style", "<html", "<button", 'id="'))


def test_a_frame_has_the_lines_and_columns_of_the_csv(board):
    pytest.importorskip("pandas")
    frame = board.to_pandas()
    assert list(frame.columns) == board.to_text("csv").splitlines()[0].split(",")
    assert frame["cell"].tolist() == [entry.row.cell for entry in board.board.entries]
    baseline = board.board.entries[0].row
    assert frame["almanac_facts:acc"][0] == baseline.scores["almanac_facts"]["acc"].value


def test_accuracy_against_size_is_a_figure_that_a_notebook_shows(board):
    pytest.importorskip("altair")
    first = board.figures()[0]
    assert first.title == "Accuracy against stored parameters"
    assert first._repr_svg_().startswith("<svg")


def test_several_runs_have_a_column_that_tells_them_apart_and_top_keeps_the_first(tmp_path, board):
    shutil.copytree(RUN, tmp_path / "other")
    both = lrbench.leaderboard([RUN, tmp_path / "other", RUN], sort="-keep", top=3)
    assert both.board.columns[0].name == "run"
    assert sum(not entry.baseline for entry in both.board.entries) == 3


@pytest.mark.parametrize(
    ("runs", "options", "words"),
    [
        (3, {}, "not int"),
        ([], {}, "empty; give"),
        ([3], {}, "int names no run"),
        ("nowhere", {}, "no run here"),
        (lrbench.Results(), {}, "Results names no run"),
        (RUN, {"sort": "sise"}, "sise"),
        (RUN, {"sort": 3}, "sort=3: must be a column's name"),
        (RUN, {"top": 0}, "a whole number above zero"),
    ],
)
def test_what_is_wrong_is_one_line(runs, options, words):
    with pytest.raises(InputError, match=words) as raised:
        lrbench.leaderboard(runs, **options)
    assert "\n" not in str(raised.value)


def test_a_format_that_there_is_not_is_refused(board):
    with pytest.raises(InputError, match="one of terminal, markdown"):
        board.to_text("word")


def test_results_show_their_run_their_rows_and_what_they_scored(results):
    lines = repr(results).splitlines()
    assert lines[0] == f"19 rows of {RUN}: 19 ok"
    assert lines[1].startswith("  baseline")
    assert f"almanac_facts acc {results[0].scores['almanac_facts']['acc'].value:.4g}" in lines[1]
    assert results._repr_html_().startswith("<pre>19 rows")
    assert repr(lrbench.Results(list(results) * 2)).splitlines()[-1] == "  and 18 more"
