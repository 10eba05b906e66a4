"""The command line as a person types it: exit codes, one-line errors, output."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrbench.cli import main
from lrbench.results.directory import RunDirectory
from tests.support.suites import MISBEHAVING, write_suite

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def said(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


def error_line(capsys):
    """The one line on standard error that says what is wrong."""
    lines = [line for line in said(capsys)[1].splitlines() if line.startswith("lrbench: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_command_line_needs_no_torch():
    code = "import sys; from lrbench.cli import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_garbage_collector_rests_during_imports_and_works_after_them_also_after_a_failed_one():
    code = (
        "import gc\nfrom lrbench.cli.options import fast_imports\n"
        "try:\n    with fast_imports():\n        assert not gc.isenabled()\n        import no_such_package\n"
        "except ImportError:\n    assert gc.isenabled() and gc.get_freeze_count() > 1000"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["check", "--help"], ["plugins", "--help"]])
def test_help_is_there_for_every_verb(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert "usage: lrbench" in said(capsys)[0]


def test_a_run_prints_its_table_and_a_second_one_prints_the_same(tmp_path, capsys):
    suite = write_suite(tmp_path, layers="[5]")
    assert main(["run", str(suite)]) == 0
    table, _ = said(capsys)
    assert main(["run", str(suite)]) == 0
    again, _ = said(capsys)
    assert again.rsplit("\n", 2)[0] == table.rsplit("\n", 2)[0]
    assert "nothing to compute, 3 already there" in again
    for word in ("svd", "cr", "baseline"):
        assert word in table
    [directory] = (tmp_path / "results" / "local").iterdir()
    assert directory.name.startswith("small-")
    assert main(["leaderboard", str(directory)]) == 0
    assert said(capsys)[0].strip() == table.rsplit("\n", 2)[0].strip()


def test_the_documented_plugin_stands_in_the_table(tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "plugins.md").read_text(), re.DOTALL)
    plugin = tmp_path / "top_columns.py"
    plugin.write_text(blocks[0])
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 15
    suite = write_suite(tmp_path, layers="[5]")
    arguments = ["run", str(suite), "--plugin", str(plugin), "--set", "reducers=[svd, cr, top-columns]"]
    assert main(arguments) == 0
    assert "top-columns" in said(capsys)[0]


def test_a_failed_cell_makes_exit_code_1_and_is_shown_with_its_reason(tmp_path, capsys):
    (tmp_path / "bad.py").write_text(MISBEHAVING)
    suite = write_suite(tmp_path, layers="[5]", reducers="[svd, raises]")
    assert main(["run", str(suite), "--plugin", "bad.py"]) == 1
    out, err = said(capsys)
    assert "RuntimeError: no luck at all" in out
    assert "failed" in err
    assert "Traceback" not in out + err
    assert main(["run", str(suite), "--plugin", "bad.py"]) == 1  # the row is there, and it failed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (
            ["run", "quickstrat"],
            "unknown suite 'quickstrat': no such file, and no bundled suite; did you mean 'quickstart'?",
        ),
        (["run", "quickstart", "--set", "tasks=[almanac_fact]"], "unknown task 'almanac_fact'; did you mean"),
        (["run", "quickstart", "--set", "reducers=[svdd]"], "unknown reducer 'svdd'; did you mean 'svd'?"),
        (["run", "quickstart", "--set", "sweep.0.weights=[mlp.dwon]"], "did you mean 'mlp.down'?"),
        (["run", "quickstart", "--set", "sweep.0.layers=8"], "layer 8"),
        (["run", "quickstart", "--set", "model.name=almanak"], "did you mean 'almanac'?"),
        (["run", "quickstart", "--set", "sede=1"], "unknown key 'sede'; did you mean 'seed'?"),
        (["run", "quickstart", "--limit", "0"], "limit 0"),
        (["run", "quickstart", "--plugin", "missing.py"], "missing.py"),
        (["run", "quickstart", "--device", "cuda:77"], "cuda:77"),
        (["check", "quickstart", "--set", "sweep.0.layers=8"], "layer 8"),
        (["leaderboard", "."], "no run here"),
        (["plugins", "show", "svdd"], "did you mean 'svd'?"),
        (["plugins", "new", "Not A Name"], "cannot be a reducer's name"),
        (["plugins", "new", "svd"], "already"),
        (["plugins", "test", "missing.py"], "missing.py"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    assert main(arguments) == 2
    assert message in error_line(capsys)
    assert not list(tmp_path.glob("results/local/*/rows.jsonl"))


def test_errors_name_the_line_and_column_of_the_suite(tmp_path, capsys):
    suite = write_suite(tmp_path)
    suite.write_text(suite.read_text().replace("reducers:", "reducer:"))
    assert main(["check", str(suite)]) == 2
    assert error_line(capsys) == f"lrbench: {suite}:7:1: unknown key 'reducer'; did you mean 'reducers'?"


@pytest.mark.parametrize("arguments", [["run"], ["frobnicate"], ["run", "quickstart", "--engine", "warp"], ["plugins"]])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert len(said(capsys)[1].splitlines()) == 1


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="no such file"):
        main(["run", "nowhere.yaml", "--debug"])


def test_check_prints_the_plan_and_computes_nothing(tmp_path, capsys):
    suite = write_suite(tmp_path, rank="{rank: [8, 193]}")
    assert main(["check", str(suite)]) == 1
    out, _ = said(capsys)
    assert "9 cells" in out
    assert "mlp.down     8 x (192, 512)" in out
    assert "would fail: model.layers.2.mlp.down_proj.weight: rank 193" in out
    assert "almanac_facts_rare: 8 documents" in out
    assert main(["run", str(suite), "--dry-run"]) == 1
    assert said(capsys)[0] == out
    assert not (tmp_path / "results").exists()


def test_plugins_are_listed_with_the_broken_ones(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("import nonsense_that_is_not_there\n")
    assert main(["plugins", "list", "--plugin", "broken.py"]) == 0
    out, _ = said(capsys)
    for name in ("svd", "rsvd", "id", "cr", "cur", "random-columns"):
        assert re.search(rf"^{name} ", out, re.MULTILINE)
    assert re.search(r"^broken: broken.py: .*nonsense_that_is_not_there", out, re.MULTILINE)


def test_a_broken_plugin_breaks_only_the_suite_that_names_it(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("import nonsense_that_is_not_there\n")
    suite = write_suite(tmp_path, layers="[5]", reducers="[svd]")
    assert main(["run", str(suite), "--plugin", "broken.py"]) == 0
    assert "plugin broken.py cannot be loaded" in said(capsys)[1]
    assert main(["run", str(suite), "--plugin", "broken.py", "--set", "reducers=[broken]"]) == 2
    assert "nonsense_that_is_not_there" in said(capsys)[1]


def test_show_prints_parameters_with_their_documentation(capsys):
    assert main(["plugins", "show", "rsvd"]) == 0
    out, _ = said(capsys)
    assert "oversample: int = 8" in out
    assert "power_iterations: int = 2" in out


def test_new_writes_a_plugin_that_passes_its_own_test_and_runs(tmp_path, capsys):
    assert main(["plugins", "new", "my-method"]) == 0
    assert main(["plugins", "test", "./my_method.py"]) == 0
    assert "my-method: all" in said(capsys)[0]
    written = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_method.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert written.returncode == 0, written.stdout
    suite = write_suite(tmp_path, layers="[5]", reducers="[my-method]")
    assert main(["run", str(suite), "--plugin", "my_method.py"]) == 0
    assert main(["plugins", "new", "my-method"]) == 2


def test_testing_a_broken_promise_is_exit_code_1(tmp_path, capsys):
    (tmp_path / "bad.py").write_text(MISBEHAVING)
    assert main(["plugins", "test", "wrong-shape", "--plugin", "bad.py"]) == 1
    out, _ = said(capsys)
    assert "FAIL" in out
    assert "Traceback" not in out


def test_the_leaderboard_is_written_in_every_format(tmp_path, capsys):
    suite = write_suite(tmp_path, layers="[5]")
    assert main(["run", str(suite), "--out", "out"]) == 0
    for form, mark in (("terminal", "svd"), ("markdown", "| "), ("csv", ","), ("json", '"rows"')):
        assert main(["leaderboard", "out", "--format", form, "--output", f"table.{form}"]) == 0
        assert mark in (tmp_path / f"table.{form}").read_text()
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert len(rows) == 3


def test_env_prints_what_rows_record(capsys):
    assert main(["env", "--format", "json"]) == 0
    entry = json.loads(said(capsys)[0])
    assert {"hash", "packages", "processor", "cores", "device", "git"} <= set(entry)
    assert main(["env"]) == 0
    assert "torch" in said(capsys)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_leaves_what_is_done_on_disk_and_says_how_to_go_on(tmp_path, number):
    suite = write_suite(tmp_path, layers="all", reducers="[svd, id, cr]")
    process = subprocess.Popen(
        [sys.executable, "-m", "lrbench", "run", str(suite), "--out", "out"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    directory = RunDirectory(tmp_path / "out")
    for _ in range(1200):
        if len(directory.rows()) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert "repeat the command to resume" in err
    done = len(directory.rows())
    assert 2 <= done < 25
    assert main(["run", str(suite), "--out", "out", "--set", "name=small"]) == 0
    assert len(directory.rows_file.read_text().splitlines()) == 25
