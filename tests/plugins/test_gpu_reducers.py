"""Every built-in reducer on a CUDA device: the conformance checks, and the same results as on the CPU."""

import pytest
import torch

import lrbench
from lrbench import linalg
from lrbench.reducers.registry import Registry
from lrbench.testing import check_reducer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BUILT_IN = sorted(Registry.load().reducers) if torch.cuda.is_available() else ["none"]


def matrix(m, n):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, n, generator=generator, dtype=torch.float64) * torch.arange(1, n + 1) ** -0.6


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_reducer_keeps_its_contract_and_its_promises_there(name):
    results = check_reducer(Registry.load().build(name, {}), device="cuda")
    assert [f"{result.name}: {result.detail}" for result in results if not result.passed] == []


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_errors_there_are_those_of_the_cpu(name, shape):
    reducer = Registry.load().build(name, {})
    if reducer.needs:
        pytest.skip("calibrated; the conformance checks give it statistics")
    slot = lrbench.Slot("w", 0, "mlp.up", shape)
    for dtype in (torch.float32, torch.float64):
        errors = []
        for device in ("cpu", "cuda"):
            W = matrix(*shape).to(device=device, dtype=dtype)
            factors = reducer.reduce(W, 12, lrbench.Context.seeded(slot, reducer))
            errors.append(float((W - factors.dense()).norm()))
        assert errors[1] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("block", [7, 64])
def test_pivoted_cholesky_there_has_the_pivots_of_lapack(block):
    G = linalg.gram(matrix(150, 200))
    ours = linalg.pivoted_cholesky(G.cuda(), 100, block=block)
    theirs = linalg.pivoted_cholesky(G, 100, algorithm="lapack")
    assert ours.pivots.tolist() == theirs.pivots.tolist()
    torch.testing.assert_close(ours.traces.cpu(), theirs.traces, rtol=1e-8, atol=1e-9 * float(G.trace()))
