"""No test reaches the Hugging Face hub, and none writes outside its own folder."""

import os
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of several test processes would else take every core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LRBENCH_CACHE"] = tempfile.mkdtemp(prefix="lrbench-test-")  # what a person has there is none of a test's


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="module")
def engine_checks_itself_once_a_model(request):
    """Outside the tests about it, the engine's self-check is made once for each model and set of requests."""
    if "evaluation" in request.path.parts:
        yield
    else:
        from tests.support.self_check import self_check_once

        with self_check_once():
            yield
