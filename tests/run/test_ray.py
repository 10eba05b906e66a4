"""Cells on a Ray cluster of several nodes on this machine: the local executor's rows, whatever becomes of workers."""

import os
import signal

import pytest

from lrbench.run.executors import schedule
from lrbench.run.recorder import Interrupted, Stop
from tests.support.suites import SMALL, Heard, run, write_suite
from tests.support.workers import KILLS, UNSEEN, facts, machines

pytest.importorskip("ray", reason="needs Ray: pip install 'lrbench[ray]'")
pytestmark = pytest.mark.slow

from ray.cluster_utils import Cluster  # noqa: E402

from lrbench.run.executors.ray import RayExecutor, RayOptions  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A head without room, and two nodes with a CPU each."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: on a busy machine tests would wait for ever
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def executor(cluster):
    executor = RayExecutor(RayOptions(address=cluster.address))
    yield executor
    executor.close()


class Disturbed(Heard):
    """Does something to the workers after so many rows."""

    def __init__(self, disturbances):
        super().__init__()
        self.disturbances = disturbances

    def finished(self, row):
        super().finished(row)
        if len(self.rows) in self.disturbances:
            self.disturbances[len(self.rows)]()


def test_the_rows_are_those_of_the_local_executor_also_when_a_process_and_a_node_are_lost(tmp_path, cluster, executor):
    suite = write_suite(tmp_path, layers="all", reducers="[svd, rsvd]", rank="{keep: [0.5, 0.25]}")
    local = run(suite, tmp_path / "local")
    assert (local.computed, local.failed) == (33, 0)

    quiet = run(suite, tmp_path / "quiet", executor=executor)
    assert len({hand.where["node"] for hand in executor.hands}) == 2
    assert facts(quiet.directory) == facts(local.directory)
    assert quiet.directory.manifest()["models"] == local.directory.manifest()["models"]
    assert machines(quiet.directory)[0] == machines(local.directory)[0]

    busy = {}

    def kill():
        [hand, *_] = [hand for hand in executor.hands if hand.chunk]
        busy["process"] = hand.name
        os.kill(hand.where["pid"], signal.SIGKILL)

    def remove():
        [hand, *_] = [hand for hand in executor.hands if hand.chunk]
        [node] = [node for node in cluster.list_all_nodes() if node.node_id == hand.where["node"]]
        busy["node"] = hand.name
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)

    heard = Disturbed({4: kill, 12: remove})
    disturbed = run(suite, tmp_path / "disturbed", executor=executor, heard=heard)
    for lost in busy.values():
        assert any(note.startswith(f"{lost}: lost") for note in heard.notes), heard.notes
    assert (disturbed.computed, disturbed.failed) == (33, 0)
    assert len(disturbed.directory.rows_file.read_text().splitlines()) == 33
    assert facts(disturbed.directory) == facts(local.directory)
    again = run(suite, tmp_path / "disturbed", executor=executor)
    assert (again.computed, again.reused) == (0, 33)


def test_a_cell_that_kills_its_workers_is_a_failed_row_and_a_stopped_run_goes_on(
    tmp_path, cluster, executor, monkeypatch
):
    monkeypatch.setattr(schedule, "DEATHS", 2)
    (tmp_path / "kills.py").write_text(KILLS)
    suite = write_suite(tmp_path, layers="[2, 4, 6]", reducers="[svd, kills]")
    heard = Disturbed({3: executor.stop})
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", tmp_path / "kills.py", executor=executor, heard=heard)
    assert 3 <= len(heard.rows) <= 5  # the cells under way were finished
    executor.close()
    second = RayExecutor(RayOptions(address=cluster.address, workers=1))
    try:
        result = run(suite, tmp_path / "out", tmp_path / "kills.py", executor=second)
    finally:
        second.close()
    rows = result.directory.rows()
    assert len(rows) == len(result.directory.rows_file.read_text().splitlines()) == 7
    [failed] = [row for row in rows.values() if row.status == "failed"]
    assert (failed.label, result.failed) == ("kills", 1)
    assert "workers died on it" in failed.reason


def test_workers_share_a_gpu_and_two_models_follow_one_another(tmp_path, cluster):
    """A GPU is a number to Ray: the model itself runs on the CPU here."""
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    one = "model: {name: almanac, device: cpu}"
    both = "models: [{name: almanac, device: cpu}, {name: almanac, device: cpu, label: again}]"
    suite = write_suite(tmp_path, SMALL.replace(one, both), reducers="[svd]")
    local = run(suite, tmp_path / "local")
    executor = RayExecutor(RayOptions(address=cluster.address, gpus=0.5))
    try:
        result = run(suite, tmp_path / "out", executor=executor)
        assert [hand.where["node"] for hand in executor.hands] == [node.node_id] * 2
    finally:
        executor.close()
        cluster.remove_node(node)
    assert facts(result.directory) == facts(local.directory)


def test_a_stop_as_by_the_command_line_lets_every_worker_finish_its_cell(tmp_path, executor):
    suite = write_suite(tmp_path, layers="all", reducers="[svd, rsvd]", rank="{keep: [0.5, 0.25]}")
    stop = Stop()
    at_work = []

    def interrupted():
        stop.requested = True
        executor.stop()
        at_work.extend(hand.name for hand in executor.hands if hand.chunk)

    heard = Disturbed({6: interrupted})
    with pytest.raises(Interrupted) as error:
        run(suite, tmp_path / "out", executor=executor, heard=heard, stop=stop)
    assert len(at_work) == 2
    assert {hand.name for hand in executor.hands} >= set(at_work)  # none was ended with its cell unfinished
    assert not any(hand.chunk for hand in executor.hands)
    assert error.value.result.computed == len(heard.rows) < 33


def test_weights_of_one_worker_that_changed_unseen_fail_all_rows_of_the_model(tmp_path, executor):
    (tmp_path / "unseen.py").write_text(UNSEEN)
    suite = write_suite(tmp_path, layers="all", reducers="[svd, unseen]", rank="{keep: [0.5, 0.25]}")
    heard = Heard()
    result = run(suite, tmp_path / "out", tmp_path / "unseen.py", executor=executor, heard=heard)
    assert len(executor.hands) == 2
    rows = result.directory.rows()
    assert result.failed == result.computed == len(rows) == 33
    assert {row.cell for row in heard.rows} == set(rows)
    assert all("changed unseen" in row.reason and not row.scores for row in rows.values())
