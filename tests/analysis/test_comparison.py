"""Two runs, or two rows, side by side: `lrbench compare`."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from lrbench import cli
from lrbench.analysis.comparison import compare_rows, compare_runs
from lrbench.cli.output import FORMATS
from lrbench.errors import InputError
from lrbench.reports.render import comparison
from lrbench.reports.render.document import markdown, terminal
from lrbench.stats import sign_test
from tests.support.synthetic_run import demo_run, edit, row, simple_run

BASE = [1.0] * 60 + [0.0] * 40


def reduced(cell, label="svd", keep=0.5, **changes):
    return row(cell, **{"reducer": label, "label": label, "requested": {"keep": keep}, "edits": [edit()], **changes})


def render(found, name):
    texts = {"csv": comparison.csv, "json": comparison.as_json}
    if name in texts:
        return texts[name](found)
    return {"terminal": terminal, "markdown": markdown}[name](comparison.document(found))


def worse(by):
    return [0.0] * by + BASE[by:]


def run_of(path, cells, manifest=None, environment=None):
    run = simple_run(path, cells)
    run.write_manifest(manifest or {"suite": {"seed": 0}, "models": [{"label": "almanac"}]})
    run.add_environment(environment or {"hash": "e0", "processor": "A", "packages": {"torch": "1"}})
    return run


@pytest.fixture
def pair(tmp_path):
    one = run_of(
        tmp_path / "one",
        [(row("base"), {"t": BASE}), (reduced("a"), {"t": BASE}), (reduced("b", "id"), {"t": BASE}),
         (reduced("gone", "cr"), {"t": BASE})],
    )  # fmt: skip
    two = run_of(
        tmp_path / "two",
        [(row("base"), {"t": BASE}), (reduced("a"), {"t": worse(20)}), (reduced("b2", "id"), {"t": worse(2)}),
         (reduced("new", "cur"), {"t": BASE})],
        {"suite": {"seed": 0, "tasks": [{"task": "t", "limit": 5}]},
         "models": [{"label": "almanac", "weight_hash": "w"}]},
        {"hash": "e0", "processor": "B", "packages": {"torch": "2"}},
    )  # fmt: skip
    return one, two


def test_cells_are_matched_by_hash_and_else_by_what_they_are(pair):
    found = compare_runs(*pair)
    assert [(m.first.cell, m.second.cell, m.by) for m in found.matches] == [
        ("base", "base", "hash"), ("a", "a", "hash"), ("b", "b2", "description"),
    ]  # fmt: skip
    assert [row.cell for _, row in found.only_first] == ["gone"]
    assert [row.cell for _, row in found.only_second] == ["new"]


def test_a_difference_is_second_less_first_paired_and_corrected_over_the_cells(pair):
    base, a, b = (match.contrasts[0] for match in compare_runs(*pair).matches)
    assert base.same
    assert base.p_holm == 1.0
    assert a.delta == pytest.approx(-0.2)
    assert a.difference.p_value == pytest.approx(sign_test(0, 20))
    assert a.p_holm == pytest.approx(3 * sign_test(0, 20))
    assert a.significant
    assert b.difference.interval[0] < b.delta < 0 <= b.difference.interval[1]
    assert not b.significant


def test_what_else_differs_is_listed(pair):
    found = compare_runs(*pair).other_differences
    assert ("environment", "processor", "A", "B") in found
    assert ("environment", "packages.torch", "1", "2") in found
    assert ("suite", "tasks[t].limit", "", "5") in found
    assert ("models", "models[almanac].weight_hash", "", "w") in found


def test_the_same_run_differs_in_nothing(pair, tmp_path):
    found = compare_runs(pair[0], pair[0])
    assert all(match.same for match in found.matches)
    assert not found.other_differences
    text = render(found, "terminal")
    assert "4 with the same scores in every digit, 0 that differ" in text
    assert "There are none on record." in text


def test_a_key_that_an_older_version_did_not_write_equals_null(tmp_path):
    suites = {"old": {"seed": 0}, "new": {"seed": 0, "gguf": None, "limit": 5}}
    runs = [
        run_of(tmp_path / name, [(row("base"), {"t": BASE})], {"suite": suite, "models": [{"label": "almanac"}]})
        for name, suite in suites.items()
    ]
    assert compare_runs(*runs).other_differences == [("suite", "limit", "", "5")]


def test_scores_of_other_documents_are_not_paired(tmp_path):
    def with_documents(path, name, cell, correct):
        tasks = {"t": {"hashes": {"documents": name}}}
        manifest = {"models": [{"label": "almanac", "engine": {"tasks": tasks}}]}
        return run_of(path, [(reduced(cell), {"t": correct})], manifest)

    one = with_documents(tmp_path / "1", "x", "a", BASE)
    (match,) = compare_runs(one, with_documents(tmp_path / "2", "y", "b", worse(30))).matches
    assert match.contrasts[0].delta == pytest.approx(-0.3)
    assert (match.contrasts[0].difference, match.contrasts[0].significant) == (None, None)
    assert match.contrasts[0].unpaired == "other documents"
    (match,) = compare_runs(one, with_documents(tmp_path / "3", "x", "b", worse(30))).matches
    assert match.contrasts[0].significant


def test_groups_and_perplexities_are_compared_too(tmp_path):
    run = demo_run(tmp_path / "run")
    found = compare_rows(run, run, ("svd-0.75", "cur-0.25"))
    by_task = {(c.task, c.metric): c for c in found.matches[0].contrasts}
    assert by_task["almanac_facts", "acc"].p_holm < 1e-6
    text = by_task["almanac_text", "word_perplexity"]
    assert text.difference.interval[0] < text.delta < text.difference.interval[1]
    assert ("cell", "label", "svd", "cur") in found.other_differences


@pytest.mark.parametrize(("rows", "problem"), [(("svd", "base"), "3 rows match"), (("base", "x"), "no row matches")])
def test_rows_are_named_by_the_beginning_of_their_hash(tmp_path, rows, problem):
    run = demo_run(tmp_path, methods=["svd"])
    with pytest.raises(InputError, match=problem):
        compare_rows(run, run, rows)


def test_a_row_that_failed_in_one_run_is_said(tmp_path):
    one = run_of(tmp_path / "1", [(reduced("a"), {"t": BASE})])
    two = run_of(tmp_path / "2", [])
    two.append(reduced("a", status="failed", reason="no luck"))
    found = compare_runs(one, two)
    assert not found.matches[0].same
    for name in FORMATS:
        assert "failed" in render(found, name)


def test_csv_and_json_have_every_metric_of_every_cell(pair):
    found = compare_runs(*pair)
    lines = list(csv.DictReader(io.StringIO(render(found, "csv"), newline="")))
    assert [line["first_cell"] for line in lines] == ["base", "a", "b", "gone", ""]
    assert (lines[1]["significant"], lines[2]["matched_by"], lines[4]["second_cell"]) == ("true", "description", "new")
    document = json.loads(render(found, "json"), parse_constant=pytest.fail)
    assert document["cells"][1]["delta"] == pytest.approx(-0.2)
    assert [cell["cell"] for cell in document["only_first"]] == ["gone"]


@pytest.mark.parametrize("name", FORMATS)
def test_names_cannot_act_in_any_format(tmp_path, name):
    evil = "\x1b[31m=cmd()|`x`\n<b>\u202e [red]"
    one = run_of(
        tmp_path / "1", [(reduced("a", evil, model=evil), {evil: BASE})], environment={"hash": "e0", "x": evil}
    )
    two = run_of(tmp_path / "2", [(reduced("a", evil, model=evil), {evil: worse(9)})])
    two.append(reduced("b", evil, model=evil, status="failed", reason=evil))
    text = render(compare_runs(one, two), name)
    assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", text)
    if name == "markdown":
        assert not re.search(r"<|`", re.sub(r"\\.", "", text))
    if name == "csv":
        assert not re.search(r'(?m)(^|,)"?[=+@]', text)
    if name == "terminal":
        assert "[red]" in text


# --- the command


def test_the_command_exits_with_0_whether_runs_differ_or_not(pair, capsys):
    one, two = (str(run.path) for run in pair)
    assert cli.main(["compare", one, two]) == 0
    assert "by more than chance" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["compare", one, one]) == 0
    assert cli.main(["compare", one, "--rows", "base", "a", "--format", "markdown"]) == 0
    assert cli.main(["compare", one, two, "--rows", "a", "a", "--format", "json"]) == 0


@pytest.mark.parametrize(
    "words", [[], ["ONE"], ["ONE", "ONE", "ONE"], ["ONE", "/nowhere"], ["ONE", "--rows", "a", "zz"]]
)
def test_bad_input_is_one_line_and_exit_code_2(pair, words, capsys):
    words = [str(pair[0].path) if word == "ONE" else word for word in words]
    try:
        code = cli.main(["compare", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_writes_a_file_in_any_format(pair, tmp_path):
    for name in FORMATS:
        file = tmp_path / f"out.{name}"
        words = ["compare", *(str(run.path) for run in pair), "--format", name, "--output", str(file)]
        assert cli.main(words) == 0
        assert "svd" in file.read_text()


def test_runs_without_a_common_model_say_so_first(tmp_path, capsys):
    one = run_of(tmp_path / "one", [(row("base"), {"t": BASE}), (reduced("a"), {"t": BASE})])
    two = run_of(
        tmp_path / "two",
        [(row("base2", model="other"), {"t": BASE}), (reduced("b", model="other"), {"t": BASE})],
        {"suite": {"seed": 0}, "models": [{"label": "other"}]},
    )
    words = "No model is in both: the first has almanac, the second other."
    for form in ("terminal", "markdown"):
        text = render(compare_runs(one, two), form)
        assert text.index(words) < text.index("0 cells in both")
    assert words not in render(compare_runs(one, one), "terminal")
    both = run_of(tmp_path / "both", [(row("base3"), {"t": BASE}), (row("base2", model="other"), {"t": BASE})])
    assert words not in render(compare_runs(both, two), "terminal")
