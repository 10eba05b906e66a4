"""Cells on a Ray cluster of several nodes on this machine: the local executor's rows, whatever becomes of workers."""

import os
import signal
import threading
import time

import pytest

from lrbench.errors import InputError
from lrbench.store import RunDirectory
from tests.suites import Heard, run, write_suite

pytest.importorskip("ray", reason="needs Ray: pip install 'lrbench[ray]'")
pytestmark = pytest.mark.slow

from ray.cluster_utils import Cluster  # noqa: E402

from lrbench.executors.ray import RayExecutor, RayOptions  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A head without room, and two nodes with a CPU each."""
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


def facts(directory: RunDirectory):
    """All that rows and samples say, apart from times."""
    times = {"calibrate_seconds", "decompose_seconds", "evaluate_seconds"}
    return {key: (row.model_dump(exclude=times), directory.samples(key)) for key, row in directory.rows().items()}


def test_the_rows_are_those_of_the_local_executor(tmp_path, executor):
    suite = write_suite(tmp_path, layers="all", reducers="[svd, rsvd]", rank="{keep: [0.5, 0.25]}")
    local = run(suite, tmp_path / "local")
    heard = Heard()
    remote = run(suite, tmp_path / "ray", heard=heard, executor=executor)
    assert (remote.computed, remote.failed) == (local.computed, 0) == (33, 0)
    assert facts(remote.directory) == facts(local.directory)
    assert remote.directory.manifest()["models"] == local.directory.manifest()["models"]
    assert remote.directory.environments() == local.directory.environments()
    assert len(heard.steps) == 33
