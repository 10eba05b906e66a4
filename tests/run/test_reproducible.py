"""The same suite in the same place says the same, to the last bit; and a run's directory is enough to repeat it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrbench.cli import main
from lrbench.results.directory import RunDirectory
from lrbench.system import environment as environments
from lrbench.system.environment import environment
from tests.support.faulty import PLAIN, Subject, facts, quicken, write_parts

SUITE = PLAIN.replace("reducers: [svd]", "reducers: [rsvd, asvd, random-subspace, mine]") + (
    "plugins: [./mine.py]\nseeds: 2\nfrontier_memory: 1.0e-7\n"
    "calibration: {text: ./calibration.txt, samples: 4, length: 16}\n"
)
MINE = """\
import torch
import lrbench

class Mine(lrbench.Reducer):
    name = "mine"
    randomized = True
    def reduce(self, weight, rank, context):
        columns = torch.randperm(weight.shape[1], generator=context.generator)[:rank]
        return lrbench.ColumnSubset(weight[:, columns] * 1.5, columns, in_features=weight.shape[1])

@lrbench.hookimpl
def lrbench_reducers():
    return [Mine]
"""
HERE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    quicken(monkeypatch)
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def subject(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return Subject(tmp_path, SUITE)


@pytest.mark.slow
def test_two_runs_give_bit_equal_rows_apart_from_times(subject, tmp_path, monkeypatch):
    """The sweep engine, in parts; randomized reducers, of two seeds; statistics collected anew; another process."""
    first = subject.run(tmp_path / "first").directory
    assert len(first.rows()) == 1 + 2 * (3 * 2 + 1)
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "another"))
    torch.manual_seed(7)
    assert facts(subject.run(tmp_path / "second").directory) == facts(first)
    code = (
        "import sys; from pathlib import Path; from lrbench.system import environment\n"
        "from lrbench.evaluation.sweep import sizes; from tests.support.faulty import SUITES, Subject\n"
        "environment._git_state = lambda: None; sizes.TOKENS['cpu'] = 32\n"
        "Subject(Path(sys.argv[1]), Path(sys.argv[2]).read_text()).run(Path('third'))\n"
    ).replace("SUITES, ", "")
    variables = os.environ | {"PYTHONPATH": str(HERE), "LRBENCH_CACHE": str(tmp_path / "third-cache")}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "suite.yaml")],
        check=True, cwd=tmp_path, env=variables,
    )  # fmt: skip
    assert facts(RunDirectory(tmp_path / "third")) == facts(first)


def test_a_run_is_repeated_from_its_directory_and_nothing_differs(subject, tmp_path, capsys):
    subject.run(tmp_path / "first", engine="frozen")
    (tmp_path / "suite.yaml").unlink()
    (tmp_path / "deep").mkdir()
    os.chdir(tmp_path / "deep")
    assert main(["run", "--from-manifest", "../first"]) == 0
    out = capsys.readouterr().out
    assert "Machine, versions, suite, data and code are the same." in out
    assert "15 cells in both: 15 bit-identical, 0 different." in out
    [again] = (tmp_path / "deep" / "results" / "local").iterdir()
    assert again.name.endswith("-again")
    assert facts(RunDirectory(again)) == facts(RunDirectory(tmp_path / "first"))
    assert RunDirectory(again).manifest()["models"][0]["engine"]["name"] == "frozen"
    assert main(["run", "--from-manifest", "../first"]) == 0
    out = capsys.readouterr().out
    assert "nothing to compute" in out
    assert "15 cells come from an earlier repetition in this directory; --force computes them again" in out


@pytest.fixture
def small(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    text = PLAIN.replace("[svd]", "[mine]").replace("layers: [0, 1]", "layers: [1]") + "plugins: [./mine.py]\n"
    Subject(tmp_path, text).run(tmp_path / "first")
    return tmp_path / "first"


def test_every_difference_of_a_repetition_is_said_with_what_may_explain_it_first(small, tmp_path, capsys, monkeypatch):
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE.replace("* 1.5", "* 1.25"))
    data = tmp_path / "tasks" / "which.jsonl"
    one, *others = data.read_text().splitlines()
    data.write_text("\n".join([json.dumps(json.loads(one) | {"question": "w9 w8 w7"}), *others]) + "\n")
    monkeypatch.setitem(os.environ, "MKL_CBWR", "COMPATIBLE")
    assert main(["run", "--from-manifest", str(small), "--out", "second"]) == 1
    said = capsys.readouterr().out.partition(" -> second\n")[2].splitlines()
    places = {what: next(i for i, line in enumerate(said) if what in line) for what in (
        "environment variables.MKL_CBWR", "reducers[mine].source_hash", "models[./model].engine.tasks.which.hashes",
        "scores.which", "edits[0].relative_error", "samples.which: ",
    )}  # fmt: skip
    explained = max(places[what] for what in places if what.startswith(("environment", "reducers", "models")))
    assert explained < min(place for what, place in places.items() if what.startswith(("scores", "edits", "samples")))
    assert "2 cells in both: 0 bit-identical, 2 different." in said
    assert not any("seconds" in line for line in said)


def test_numbers_alone_decide_the_exit_code(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "MKL_CBWR", "COMPATIBLE")
    assert main(["run", "--from-manifest", str(small), "--out", "second"]) == 0
    assert "environment variables.MKL_CBWR: — -> COMPATIBLE" in capsys.readouterr().out
    rows = tmp_path / "second" / "rows.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines[1]["edits"][0]["rank"] += 1
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["run", "--from-manifest", str(small), "--out", "second"]) == 1
    assert "edits[0].rank: 28 -> 29" in capsys.readouterr().out.replace("19 -> 20", "28 -> 29")


def test_other_code_with_the_same_results_is_no_difference_although_chosen_cells_have_other_names(tmp_path, capsys):
    write_parts(tmp_path)
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE)
    text = PLAIN.replace("[svd]", "[mine]") + "plugins: [./mine.py]\nselect: {validation: 0.5}\n"
    first = Subject(tmp_path, text).run(tmp_path / "first").directory
    assert any(row.selection and row.selection.validation_cells for row in first.rows().values())
    plugin.write_text(MINE.replace("* 1.5", "* (3 / 2)"))
    assert main(["run", "--from-manifest", str(tmp_path / "first"), "--out", "second"]) == 0
    out = capsys.readouterr().out
    assert "reducers[mine].source_hash" in out
    assert "bit-identical, 0 different." in out


def test_a_plugin_that_has_moved_can_be_named(small, tmp_path, capsys):
    shutil.move(tmp_path / "mine.py", tmp_path / "elsewhere.py")
    command = ["run", "--from-manifest", str(small), "--out", "second"]
    assert main(command) == 2
    assert "mine.py" in capsys.readouterr().err
    assert main([*command, "--plugin", "elsewhere.py"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "seed=1"], "leave --set out"),
        (["--limit", "2"], "leave --limit out"),
        (["--dtype", "bfloat16"], "leave --dtype out"),
        (["--dry-run"], "leave --dry-run out"),
        (["--out", "first"], "is the run to repeat"),
    ],
)
def test_what_would_make_it_another_run_is_refused(small, capsys, arguments, message):
    assert main(["run", *arguments, "--from-manifest", str(small)]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_run_cannot_be_repeated(small, tmp_path, capsys):
    assert main(["run", "--from-manifest", str(tmp_path / "tasks")]) == 2
    assert "no run here" in capsys.readouterr().err
    for arguments in (["run"], ["run", "quickstart", "--from-manifest", str(small)]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--from-manifest" in capsys.readouterr().err
    (small / "manifest.json").unlink()
    assert main(["run", "--from-manifest", str(small)]) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_the_environment_names_what_sums_depend_on_and_is_the_same_twice(monkeypatch):
    entry = environment()
    assert {"code", "blas", "instructions", "numerics", "variables", "threads", "packages", "git"} <= entry.keys()
    assert any("openblas" in library for library in entry["blas"])
    assert environment()["hash"] == entry["hash"]
    monkeypatch.setitem(os.environ, "OPENBLAS_CORETYPE", "Haswell")
    assert environment()["hash"] != entry["hash"]


def test_a_changed_file_of_lrbench_is_another_environment(monkeypatch):
    before = environment()["code"]
    environments._code_hash.cache_clear()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "frontier.py" else b""))
    assert environment()["code"] != before
    environments._code_hash.cache_clear()
