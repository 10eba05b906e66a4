"""What a worker is told and answers, without a cluster: all that goes between it and the run is text."""

import socket
import threading
import time

import pytest

from lrbench.cli import main
from lrbench.errors import InputError
from lrbench.evaluation.sweep import sizes as memory
from lrbench.models.load import load_structure
from lrbench.reducers.registry import Registry
from lrbench.reduction.plan import make_plan, methods
from lrbench.run.executors.ray import RayOptions
from lrbench.run.executors.wire import cell_data, cell_from, pack
from lrbench.run.executors.worker import Worker
from lrbench.suite.load import load_suite
from tests.reduction.test_delta import tuned_suite
from tests.support.suites import SMALL, Heard, run, write_suite
from tests.support.workers import KILLS, UNSEEN, InProcess, facts, machines

TIGHT = "frontier_memory=1.0e-7"  # GiB: a batch is a part


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setitem(memory.TOKENS, "cpu", 256)


@pytest.mark.parametrize("overrides", [[], [TIGHT]], ids=["roomy", "tight"])
def test_a_run_without_weights_gives_the_rows_of_one_with_them(tmp_path, small_batches, overrides):
    suite = write_suite(tmp_path)
    local = run(suite, tmp_path / "local", overrides=overrides)
    executor, heard = InProcess(share=2), Heard()
    remote = run(suite, tmp_path / "remote", executor=executor, overrides=overrides, heard=heard)
    assert facts(remote.directory) == facts(local.directory)
    assert remote.directory.manifest() == local.directory.manifest()
    assert machines(remote.directory) == machines(local.directory)
    assert ("partial" in executor.kinds) == bool(overrides)
    assert len(heard.steps) == executor.kinds.count("step") > 0


@pytest.mark.slow
def test_calibrated_methods_of_two_models_give_the_same_rows(tmp_path):
    one = "model: {name: almanac, device: cpu}"
    both = "models: [{name: almanac, device: cpu}, {name: almanac, device: cpu, label: again}]"
    suite = write_suite(tmp_path, SMALL.replace(one, both), layers="[6]", reducers="[svd, svd-llm, fwsvd]")
    calibrated = ["calibration={name: almanac, samples: 16, length: 128}"]
    local = run(suite, tmp_path / "local", overrides=calibrated)
    remote = run(suite, tmp_path / "remote", executor=InProcess(), overrides=calibrated)
    assert (local.computed, local.failed) == (8, 0)
    assert facts(remote.directory) == facts(local.directory)
    assert remote.directory.manifest() == local.directory.manifest()


def test_updates_give_the_same_rows(tmp_path):
    suite = tuned_suite(tmp_path)
    local = run(suite, tmp_path / "local")
    remote = run(suite, tmp_path / "remote", executor=InProcess(share=2))
    assert (local.computed, local.failed) == (4, 0)
    assert facts(remote.directory) == facts(local.directory)
    assert remote.directory.manifest() == local.directory.manifest()


def test_answers_to_parts_are_written_before_the_cell_is_done_and_used_again(tmp_path, small_batches):
    suite = write_suite(tmp_path)

    class Stops(Heard):
        def scoring(self, step):
            super().scoring(step)
            if len(self.steps) == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", executor=InProcess(), overrides=[TIGHT], heard=Stops())
    kept = sum(len(file.read_text().splitlines()) for file in (tmp_path / "out" / "partial").iterdir())
    assert kept == 3  # the fourth was under way
    whole, heard = Heard(), Heard()
    local = run(suite, tmp_path / "local", overrides=[TIGHT], heard=whole)
    again = run(suite, tmp_path / "out", executor=InProcess(), overrides=[TIGHT], heard=heard)
    assert len(heard.steps) == len(whole.steps) - kept
    assert facts(again.directory) == facts(local.directory)


@pytest.mark.slow
def test_weights_that_a_worker_no_longer_has_as_they_were_loaded_fail_the_models_rows(tmp_path):
    (tmp_path / "unseen.py").write_text(UNSEEN)
    suite = write_suite(tmp_path, layers="[2, 4]", reducers="[svd, unseen]")
    heard = Heard()
    result = run(suite, tmp_path / "out", tmp_path / "unseen.py", executor=InProcess(), heard=heard)
    assert (result.computed, result.failed) == (5, 5)
    for row in result.directory.rows().values():
        assert "changed unseen" in row.reason
        assert not row.scores
    assert any("5 cells failed; --retry-failed" in note for note in heard.notes)


def test_a_worker_opens_one_model_at_a_time(monkeypatch):
    """Where a suite has several, the next may be asked for while the last is still being loaded."""
    worker, opening, most = Worker(1), [], []

    def opened(self):
        opening.append(self._order["model"])
        most.append(len(opening))
        time.sleep(0.2)
        return {"model": opening.pop()}

    monkeypatch.setattr(Worker, "_opened", opened)
    threads = [threading.Thread(target=worker.open, args=(pack({"model": number}),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


SELECTING = """\
name: selecting
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 24}
reducers: [svd, random-subspace]
sweep:
  - {mode: each, layers: [3, 6], weights: [mlp.up], rank: {fraction: 0.5}}
  - {mode: greedy, layers: [5, 7], weights: [mlp.up], rank: {fraction: [0.1, 0.6]}}
select: {validation: 0.5}
"""


def test_choices_and_compositions_are_the_same_on_workers(tmp_path):
    suite = write_suite(tmp_path, SELECTING)
    local = run(suite, tmp_path / "local")
    remote = run(suite, tmp_path / "remote", executor=InProcess(share=2))
    assert local.failed == 0
    assert facts(remote.directory) == facts(local.directory)


def test_what_was_chosen_fails_with_the_rows_that_it_was_chosen_by(tmp_path):
    """Whichever worker's weights changed: those that scored the choice may be another's."""
    suite = write_suite(tmp_path, SELECTING)
    whole = run(suite, tmp_path / "out", executor=InProcess(share=2))
    rows = list(whole.directory.rows().values())
    [lost, *_] = [row for row in rows if row.selection.split == "validation" and row.label == "svd"]
    kept = [row for row in rows if row.cell != lost.cell]
    whole.directory.rows_file.write_text("".join(row.model_dump_json(by_alias=True) + "\n" for row in kept))
    executor = InProcess(share=2)
    executor.spoilt = lambda: ["another"]
    result = run(suite, tmp_path / "out", executor=executor)
    after = result.directory.rows()
    failed = {row.cell for row in after.values() if row.status == "failed"}
    assert failed == {lost.cell, *(row.cell for row in rows if row.selection.chosen_for is not None)}
    assert result.failed == len(failed) > 2
    assert all("changed unseen" in after[cell].reason and not after[cell].scores for cell in failed)
    again = run(suite, tmp_path / "out", executor=InProcess(share=2), retry_failed=True)
    assert again.failed == 0
    assert facts(again.directory) == facts(run(suite, tmp_path / "other").directory)


def test_scores_of_another_model_stay(tmp_path):
    """Its weights were looked at when its last cell was scored."""
    one = "model: {name: almanac, device: cpu}"
    both = "models: [{name: almanac, device: cpu}, {name: almanac, device: cpu, label: again}]"
    executor, opened = InProcess(share=2), []
    executor.spoilt = lambda: ["the only one"] if len(opened) == 2 else []
    opening = executor.open
    executor.open = lambda *given, **options: opened.append(1) or opening(*given, **options)
    result = run(write_suite(tmp_path, SELECTING.replace(one, both)), tmp_path / "out", executor=executor)
    rows = result.directory.rows().values()
    assert {row.status for row in rows if row.model == "almanac"} == {"ok"}
    assert {row.status for row in rows if row.model == "again"} == {"failed"}


def test_a_stopped_worker_finishes_its_cell_and_begins_no_other(tmp_path):
    executor = InProcess(share=5)

    class Stops(Heard):
        def finished(self, row):
            super().finished(row)
            executor.stop()

    heard = Stops()
    with pytest.raises(KeyboardInterrupt):
        run(write_suite(tmp_path), tmp_path / "out", executor=executor, heard=heard)
    assert 1 <= len(heard.rows) <= 3


@pytest.mark.parametrize(
    ("altered", "words"),
    [
        (lambda order: {**order, "lrbench": "0.0.1"}, "the run's is 0.0.1; install the same"),
        (lambda order: {**order, "methods": {**order["methods"], "kills": "0" * 64}}, "'kills': its code"),
        (lambda order: {**order, "plugins": ["/nowhere/kills.py"]}, "/nowhere/kills.py: no such plugin file here"),
        (lambda order: {**order, "offline": "/nowhere"}, "--offline /nowhere: no such folder"),
    ],
)
def test_a_worker_with_other_code_is_refused_in_one_line(tmp_path, altered, words):
    (tmp_path / "kills.py").write_text(KILLS)
    suite = write_suite(tmp_path, reducers="[kills]")
    with pytest.raises(AssertionError) as error:
        run(suite, tmp_path / "out", tmp_path / "kills.py", executor=InProcess(altered=altered))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_worker_that_reads_other_documents_is_refused_in_one_line(tmp_path):
    def fewer(order):
        tasks = [{**task, "limit": 2} for task in order["suite"]["tasks"]]
        return {**order, "suite": {**order["suite"], "tasks": tasks}}

    with pytest.raises(AssertionError) as error:
        run(write_suite(tmp_path), tmp_path / "out", executor=InProcess(altered=fewer))
    assert "its tasks is not the run's" in str(error.value)


def test_cells_come_back_as_they_were(tmp_path):
    suite = load_suite(write_suite(tmp_path, reducers="[svd, rsvd]"), overrides=["seeds=2"])
    built = methods(suite, Registry.load())
    inventory = load_structure(suite.models[0])
    by_label = {method.label: method for method in built}
    slots = {slot.name: slot for slot in inventory.slots}
    cells = make_plan(suite, inventory, built).cells
    again = [cell_from(cell_data(cell), by_label, slots) for cell in cells]
    assert [vars(cell) for cell in again] == [vars(cell) for cell in cells]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "ray://head:10001"}, "Ray's client is not supported"),
        ({"gpus": 1.5}, "a whole number of GPUs, or a fraction of one"),
        ({"gpus": -1.0}, "a whole number of GPUs, or a fraction of one"),
        ({"gpus": float("nan")}, "a whole number of GPUs, or a fraction of one"),
        ({"gpus": float("inf")}, "a whole number of GPUs, or a fraction of one"),
        ({"workers": 0}, "--ray-workers 0: must be at least 1"),
        ({"cpus": 0}, "--ray-cpus 0: must be at least 1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, words):
    with pytest.raises(InputError, match=words):
        RayOptions(**options)


@pytest.mark.parametrize(
    "option", ["--address auto", "--ray-workers 2", "--ray-cpus 2", "--ray-gpus 0.5", "--ray-gpus 0.5 --dry-run"]
)
def test_options_of_ray_without_ray_are_refused(tmp_path, capsys, option):
    assert main(["run", str(write_suite(tmp_path)), *option.split()]) == 2
    assert (
        capsys.readouterr().err == f"lrbench: {option.split()[0]} requires --executor ray; "
        f"add it, or leave {option.split()[0]} out\n"
    )


def test_an_address_where_nothing_answers_is_said_at_once(tmp_path, capsys):
    pytest.importorskip("ray", reason="needs Ray: pip install 'lrbench[ray]'")
    with socket.socket() as unused:  # bound, and not listening
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        command = ["run", str(write_suite(tmp_path)), "--out", str(tmp_path / "out"), "--executor", "ray"]
        assert main([*command, "--address", address]) == 2
    error = capsys.readouterr().err
    assert f"--address {address}: nothing answers there" in error
    assert error.count("\n") == 1


def test_without_ray_installed_one_line_says_how_to_have_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    out = tmp_path / "out"
    assert main(["run", str(write_suite(tmp_path)), "--out", str(out), "--executor", "ray"]) == 2
    assert "needs Ray, which is not installed; pip install 'lrbench[ray]'" in capsys.readouterr().err
