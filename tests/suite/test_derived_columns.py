"""`derived` and `data` in a suite: from the file to the table."""

import csv
import io
import json

import pytest

from lrbench.analysis.leaderboard import build
from lrbench.cli import main
from lrbench.errors import SuiteError
from lrbench.reports.render import renderer
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import load_suite, suite_again
from tests.support.suites import run, write_suite

SUITE = """\
name: derived
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 12}
  - {task: almanac_agreement, limit: 12}
  - {task: almanac_text, limit: 3}
reducers: [svd]
sweep:
  - {mode: together, layers: [5], weights: [mlp.down], rank: {keep: [0.3]}}
derived:
  MCQ: {mean: [almanac_facts_rare, {almanac_agreement: acc}]}
  quality: {retention: [almanac_text, MCQ]}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("derived")
    run(write_suite(folder, SUITE), folder / "run")
    return folder


def test_derived_columns_are_those_of_the_rows_by_hand(done):
    board = build([RunDirectory(done / "run")])
    baseline, reduced = board.entries
    rows = list(RunDirectory(done / "run").rows().values())

    def of(row, task, metric):
        return row.scores[task][metric].value

    averages = [(of(r, "almanac_facts_rare", "acc") + of(r, "almanac_agreement", "acc")) / 2 for r in rows]
    perplexities = [of(row, "almanac_text", "word_perplexity") for row in rows]
    assert baseline.values["MCQ"].value == pytest.approx(averages[0])
    assert reduced.values["MCQ"].value == pytest.approx(averages[1])
    assert baseline.values["quality"].value == 1.0
    quality = (perplexities[0] / perplexities[1] + averages[1] / averages[0]) / 2
    assert reduced.values["quality"].value == pytest.approx(quality)
    assert reduced.values["quality"].stderr > 0


@pytest.mark.parametrize("style", ["terminal", "csv", "json", "markdown", "latex", "html"])
def test_every_format_has_them(done, capsys, style):
    assert main(["leaderboard", str(done / "run"), "--format", style]) == 0
    out = capsys.readouterr().out
    assert "MCQ" in out
    assert "quality" in out
    assert "Measurement" not in out


def test_csv_has_their_numbers_in_columns_as_of_a_metric(done):
    board = build([RunDirectory(done / "run")])
    baseline, reduced = csv.DictReader(io.StringIO(renderer("csv")(board), newline=""))
    assert float(baseline["MCQ"]) == board.entries[0].values["MCQ"].value
    assert float(reduced["quality"]) == board.entries[1].values["quality"].value
    assert float(reduced["quality:stderr"]) == board.entries[1].values["quality"].stderr


def test_they_can_be_added_to_a_run_that_is_done(done, tmp_path):
    bare = SUITE[: SUITE.index("derived:\n")].replace("name: derived", "name: derived")
    assert load_suite(write_suite(tmp_path, bare)).hash == load_suite(write_suite(done, SUITE)).hash
    run(write_suite(tmp_path, bare), tmp_path / "run")
    assert "MCQ" not in [column.name for column in build([RunDirectory(tmp_path / "run")]).columns]
    assert run(write_suite(tmp_path, SUITE), tmp_path / "run").computed == 0
    assert "MCQ" in [column.name for column in build([RunDirectory(tmp_path / "run")]).columns]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"MCQ": "{mean: [almanac_factz]}"}, "'almanac_factz' is no task of the suite"),
        ({"MCQ": "{median: [almanac_text]}"}, "is {mean: [...]} or {retention: [...]}"),
        ({"MCQ": "{mean: []}"}, "takes a list of terms"),
        ({"quality": "{retention: [almanac_text, almanac_text]}"}, "listed twice"),
        ({"MCQ": "3"}, "is {mean: [...]} or {retention: [...]}"),
    ],
)
def test_columns_that_cannot_be_made_are_refused_at_their_line(tmp_path, capsys, replaced, message):
    suite = write_suite(tmp_path, SUITE, **replaced)
    assert main(["run", str(suite), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    line = 11 if "MCQ" in replaced else 12
    assert f"suite.yaml:{line}:" in error


def test_a_file_of_documents_takes_the_place_of_a_tasks_own_and_is_found_again(tmp_path):
    (tmp_path / "notes.txt").write_text("The cat sat on the mat. " * 400)
    text = SUITE[: SUITE.index("derived:\n")].replace(
        "  - {task: almanac_text, limit: 3}\n", "  - {task: text_tokens, data: notes.txt, limit: 4}\n"
    )
    suite = load_suite(write_suite(tmp_path, text))
    assert suite.tasks[2].data == str(tmp_path / "notes.txt")
    assert suite.resolved()["tasks"][2]["data"] == "notes.txt"
    run(tmp_path / "suite.yaml", tmp_path / "run")
    rows = list(RunDirectory(tmp_path / "run").rows().values())
    assert all(row.scores["text_tokens"]["token_perplexity"].n == 4 for row in rows)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    again = suite_again(manifest["suite"], tmp_path / "run" / "manifest.json", manifest["paths"])
    assert again.tasks[2].data == suite.tasks[2].data
    assert again.hash == suite.hash


def test_a_missing_file_of_documents_is_refused_at_its_line(tmp_path):
    text = SUITE.replace("{task: almanac_text, limit: 3}", "{task: text_tokens, data: gone.txt}")
    with pytest.raises(SuiteError, match=r"suite\.yaml:6:31: no such file of documents: .*gone\.txt"):
        load_suite(write_suite(tmp_path, text))
