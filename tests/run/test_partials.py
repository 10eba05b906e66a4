"""Runs whose requests go in parts: what a kill leaves on disk, and that it is not computed again."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrbench.evaluation.interface import Partial
from lrbench.evaluation.sweep import SweepEngine
from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.results.directory import RunDirectory
from lrbench.run.partial_answers import RunPartials
from tests.support.slow_cases import slow_cases
from tests.support.suites import Heard, run, write_suite

TIGHT = "frontier_memory=1.0e-7"  # GiB: a batch is a part


class Stopping(Heard):
    """Is interrupted when the engine has done so many steps: the last one is not on disk yet."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.stop_at = steps

    def scoring(self, step):
        super().scoring(step)
        if len(self.steps) == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True, scope="module")
def _small_batches():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(memory.TOKENS, "cpu", 64)
        yield


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    return write_suite(folder, layers="[5]", reducers="[svd, cr]")  # with the baseline, three cells


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory):
    """The same without interruption: its rows, and how many steps it took."""
    heard = Heard()
    result = run(suite, tmp_path_factory.mktemp("run") / "whole", overrides=[TIGHT], heard=heard)
    assert heard.steps[0].parts > 3
    assert len(heard.steps) == 3 * heard.steps[0].parts
    return result, heard.steps


def facts(directory):
    return [(row.cell, row.status, row.scores, directory.samples(row.cell)) for row in directory.rows().values()]


def kept(out):
    return sum(len(file.read_text().splitlines()) for file in (out / "partial").glob("*.jsonl"))


@pytest.mark.parametrize("steps", [5, *slow_cases(1, -1)])
def test_an_interrupted_run_does_not_score_again_what_it_had_scored_of_each_cell(suite, whole, tmp_path, steps):
    result, all_steps = whole
    steps = steps if steps > 0 else len(all_steps)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(suite, out, overrides=[TIGHT], heard=Stopping(steps))
    assert not RunDirectory(out).rows()
    assert kept(out) == steps - 1

    heard = Heard()
    again = run(suite, out, overrides=[TIGHT], heard=heard)

    assert len(heard.steps) == len(all_steps) - (steps - 1)
    assert facts(again.directory) == facts(result.directory)
    assert not (out / "partial").exists()


def test_parts_that_are_now_divided_otherwise_are_known_by_their_requests(suite, whole, tmp_path):
    result, all_steps = whole
    parts = all_steps[0].parts
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(suite, out, overrides=[TIGHT], heard=Stopping(3 * (parts - 1) + 1))

    heard = Heard()  # room for five batches of 64 tokens, in 192 float32 numbers each
    again = run(suite, out, overrides=[f"frontier_memory={5 * 64 * 192 * 4 / 2**30}"], heard=heard)

    assert 1 < heard.steps[0].parts < parts
    assert len(heard.steps) == 3  # only the part with what had not been answered
    assert facts(again.directory) == facts(result.directory)


@pytest.mark.slow
def test_a_killed_process_loses_one_cells_part_at_most(suite, whole, tmp_path):
    result, all_steps = whole
    script = tmp_path / "swept.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lrbench.evaluation.sweep import sizes as memory\n"
        "from tests.support.suites import Heard, run\n"
        "memory.TOKENS['cpu'] = 64\n"
        "class Slow(Heard):\n"
        "    def scoring(self, step):\n"
        "        super().scoring(step)\n"
        "        time.sleep(float(sys.argv[1]))\n"
        "heard = Slow()\n"
        f"run(Path('{suite}'), Path('out'), overrides=['{TIGHT}'], heard=heard)\n"
        "print(len(heard.steps))\n"
    )
    out, here = tmp_path / "out", Path(__file__).parents[2]

    def start(pause):
        environment = os.environ | {"PYTHONPATH": str(here), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(script), str(pause)]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    process = start(0.3)
    for _ in range(6000):
        if kept(out) >= 4 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = kept(out)
    assert 4 <= done < len(all_steps)
    [file, *_] = sorted((out / "partial").glob("*.jsonl"))
    with file.open("a") as torn:
        torn.write('{"made": "')

    process = start(0)
    printed, _ = process.communicate(timeout=120)

    assert process.returncode == 0
    assert int(printed) == len(all_steps) - done
    assert facts(RunDirectory(out)) == facts(result.directory)


def test_answers_that_do_not_hold_here_are_scored_anew_and_do_no_harm(suite, whole, tmp_path):
    result, all_steps = whole
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(suite, out, overrides=[TIGHT], heard=Stopping(8))
    (out / "partial" / "no-such-cell.jsonl").write_text('{"made": "x"}\n')
    for file in (out / "partial").glob("*.jsonl"):  # as in another environment, and what no run writes
        file.write_text(file.read_text().replace('"made": "', '"made": "x') + '[]\nnonsense\n{"queries": 1}\n')

    heard = Heard()
    again = run(suite, out, overrides=[TIGHT], heard=heard)

    assert len(heard.steps) == len(all_steps)
    assert facts(again.directory) == facts(result.directory)
    assert not (out / "partial").exists()


def test_force_scores_everything_again(suite, whole, tmp_path):
    _, all_steps = whole
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(suite, out, overrides=[TIGHT], heard=Stopping(8))
    heard = Heard()
    run(suite, out, overrides=[TIGHT], heard=heard, force=True)
    assert len(heard.steps) == len(all_steps)


def test_a_cells_seconds_hold_those_of_the_parts_before(suite, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(suite, out, overrides=[TIGHT], heard=Stopping(2))
    [file] = (out / "partial").glob("*.jsonl")
    entry = json.loads(file.read_text())
    assert entry["seconds"] > 0
    file.write_text(json.dumps(entry | {"seconds": 1000.0}) + "\n")
    rows = run(suite, out, overrides=[TIGHT]).directory.rows()
    assert rows[file.stem].evaluate_seconds > 1000
    assert all(row.evaluate_seconds < 1000 for cell, row in rows.items() if cell != file.stem)


def test_a_run_whose_requests_go_together_writes_no_parts(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "add_partial", None)
    assert run(suite, tmp_path / "out").computed == 3


def test_partial_answers_come_back_to_the_last_bit(tmp_path):
    partials = RunPartials(RunDirectory(tmp_path), ["requests"], {"device": "cpu"})
    given = [
        Partial([3, 1], [-1 / 3, -1e-300], [True, False], 0.1),
        Partial([0, 2, 9], [-math.inf, math.pi * -1e6, 5e-324], [False, False, True], 2.5),
    ]
    for one in given:
        partials.add("cell", one)
    partials.add("other", Partial([0], [math.nan], [True], 0.0))
    assert partials.read("cell") == given
    assert math.isnan(partials.read("other")[0].loglikelihoods[0])
    assert partials.read("nothing") == []


def test_they_are_of_one_environment_and_of_the_same_requests_however_these_are_divided(tmp_path):
    def partials(requests=("a", "b"), **environment):
        return RunPartials(RunDirectory(tmp_path), list(requests), {"device": "cpu", **environment})

    partials(frontier_memory=1.0, hash="1").add("cell", Partial([0], [-1.0], [True], 0.1))
    assert len(partials(frontier_memory="auto", hash="2").read("cell")) == 1
    assert partials(device="cuda").read("cell") == []
    assert partials(requests=("b", "a")).read("cell") == []


def test_what_memory_did_to_the_batches_stands_in_the_manifest(suite, tmp_path, monkeypatch):
    monkeypatch.setitem(memory.TOKENS, "cpu", 256)
    score, failing = Sweeper.score, [True]

    def runs_out(self, *arguments):
        if failing:
            failing.pop()
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
        return score(self, *arguments)

    monkeypatch.setattr(Sweeper, "score", runs_out)
    result = run(suite, tmp_path / "out")
    assert result.failed == 0
    told = result.directory.manifest()["models"][0]["engine"]["sweep"]
    assert told["out_of_memory"] == ["batches of 256 tokens do not fit the memory; going on with 128"]
    assert told["batch_tokens"] == 128
    assert told["frontier_memory"] == "auto"


def test_the_budget_stands_in_the_environment_and_the_manifest(suite, tmp_path):
    directory = run(suite, tmp_path / "out", overrides=["frontier_memory=0.5"]).directory
    [environment] = directory.environments().values()
    assert environment["frontier_memory"] == 0.5
    assert directory.manifest()["suite"]["frontier_memory"] == 0.5
    assert directory.manifest()["models"][0]["engine"]["sweep"]["frontier_memory"] == 0.5


def test_an_interruption_while_texts_are_written_costs_no_pass_again(suite, tmp_path, monkeypatch):
    tasks = "tasks=[{task: almanac_agreement, limit: 12}, {task: almanac_recall, limit: 2}]"
    result = run(suite, tmp_path / "whole", overrides=[TIGHT, tasks])
    with monkeypatch.context() as patched:
        patched.setattr(SweepEngine, "_texts", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(suite, tmp_path / "out", overrides=[TIGHT, tasks])
    heard = Heard()
    again = run(suite, tmp_path / "out", overrides=[TIGHT, tasks], heard=heard)
    assert heard.steps == []
    assert facts(again.directory) == facts(result.directory)
    assert all("text" in again.directory.samples(row.cell)[-1] for row in heard.rows)
