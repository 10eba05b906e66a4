"""Signals from outside: SIGKILL at random moments, ^C once and twice, and two processes at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lrbench.cli import main
from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory
from lrbench.run.executors import LocalExecutor
from lrbench.run.interruption import stopped_by_signals
from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Interrupted, Stop
from lrbench.system import faults
from tests.support.faulty import PARTS, PLAIN, Subject, at, facts, quicken, scored_lines, write_parts
from tests.support.workers import InProcess

HERE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quicken(monkeypatch)


def killed(kills):
    variables = os.environ | {"PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_runs", "--kills", str(kills)],
        cwd=HERE, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{kills} kills in \d+ runs: every row there, once, and equal$", done.stdout, re.MULTILINE)


@pytest.mark.slow  # with the fifty
def test_five_kills_at_random_moments_cost_no_row():
    killed(5)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_cost_no_row():
    killed(50)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_no_cell_is_at_work_a_signal_stops_at_once(number):
    stop = Stop()
    kept = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised, stopped_by_signals(stop, LocalExecutor(), pytest.fail):
        os.kill(os.getpid(), number)
    assert (raised.type is Interrupted) == (number == signal.SIGINT)  # what was scored is still looked at
    assert signal.getsignal(number) is kept


def test_where_others_compute_the_end_of_a_job_lets_them_finish_and_the_second_one_does_not():
    stop, executor, notes = Stop(at_work=True), InProcess(), []
    with stopped_by_signals(stop, executor, notes.append):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.requested, executor.stopped, len(notes)) == (True, True, 1)
        with pytest.raises(KeyboardInterrupt) as raised:
            os.kill(os.getpid(), signal.SIGTERM)
    assert raised.type is KeyboardInterrupt


def test_the_end_of_a_job_does_not_wait_for_the_cell():
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(Stop(at_work=True), LocalExecutor(), pytest.fail):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("text", [PLAIN, PARTS], ids=["at once", "in parts"])
@pytest.mark.parametrize("times", [1, 2])
def test_control_c_once_finishes_the_cell_twice_stops_now_and_both_go_on(tmp_path, monkeypatch, capsys, text, times):
    write_parts(tmp_path)
    whole = facts(Subject(tmp_path, text).run(tmp_path / "whole").directory)

    def presses():
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    command = ["run", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]
    with at("requests answered", presses):
        assert main(command) == 130
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "finishing the cell under way; ^C again stops at once" in said.err
    finished = times == 1 and text is PLAIN
    last = said.err.splitlines()[-1]
    assert last.startswith(f"lrbench: interrupted; {int(finished)} cells done in ")
    assert last.endswith("repeat the command to resume")
    assert len(RunDirectory(tmp_path / "out").rows()) == finished
    assert len(list((tmp_path / "out").glob("partial/*"))) == (times == 1 and text is PARTS)

    assert main(command) == 0
    directory = RunDirectory(tmp_path / "out")
    assert facts(directory) == whole
    assert set(scored_lines(directory).values()) == {1}


def test_control_c_while_the_weights_are_looked_at_lets_that_be_finished(tmp_path, monkeypatch, capsys):
    write_parts(tmp_path)
    Subject(tmp_path, PLAIN).run(tmp_path / "whole")
    intact = []

    def presses(run):
        os.kill(os.getpid(), signal.SIGINT)
        intact.append(False)
        return False

    monkeypatch.setattr(ModelRun, "intact", presses)
    assert main(["run", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]) == 1
    assert "finishing the cell under way; ^C again stops at once" in capsys.readouterr().err
    assert intact == [False]
    assert {row.status for row in RunDirectory(tmp_path / "out").rows().values()} == {"failed"}


def test_control_c_while_scores_are_taken_back_leaves_none_of_them(tmp_path, monkeypatch):
    write_parts(tmp_path)
    Subject(tmp_path, PLAIN).run(tmp_path / "whole")
    looked = []
    monkeypatch.setattr(ModelRun, "intact", lambda _: looked.append(1))  # falsy

    def presses(name, path):
        if looked and name == "append.opened" and path.name == "rows.jsonl":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(faults, "hook", presses)
    assert main(["run", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]) == 1
    rows = RunDirectory(tmp_path / "out").rows().values()
    assert [row.status for row in rows] == ["failed"] * 3


def test_two_processes_do_not_write_to_one_run_and_the_lock_dies_with_its_owner(tmp_path):
    write_parts(tmp_path)
    subject, out = Subject(tmp_path, PLAIN), tmp_path / "out"
    out.mkdir()
    holding = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held')"
    other = subprocess.Popen(
        [sys.executable, "-uc", f"{holding}; time.sleep(600)", str(out / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another lrbench is running this suite here; wait for it"):
            subject.run(out)
        assert not (out / "rows.jsonl").exists()
    finally:
        other.kill()
        other.communicate()
    assert subject.run(out).computed == 3
