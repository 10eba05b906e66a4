"""The sweep engine in the dtypes that models run in: no further from the exact answer than the plain model is."""

import copy

import numpy as np
import pytest
import torch

from lrbench.evaluation.sweep.answers import Tally
from lrbench.evaluation.sweep.sweeper import Sweeper
from tests.support.tiny_models import plainly, some_queries, tiny

FAMILIES = ("llama", "gpt2", "gptj", "gemma2", "bloom", "mixtral")
HALVES = [("cpu", torch.bfloat16)]
ON_GPU = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
WHERE = [*HALVES, *(pytest.param(*one, marks=pytest.mark.gpu) for one in ON_GPU)]


def loglikelihoods(answers):
    return np.array([loglikelihood for loglikelihood, _ in answers])


def on(model, device, dtype):
    return copy.deepcopy(model).to(device=device, dtype=dtype)


def scored(sweeper, queries, block, modules=()):
    tally = Tally(len(queries))
    for part in sweeper.parts:
        sweeper.score(part, block, sweeper.advance(part, block), tally, modules)
    return tally.answers()


@pytest.mark.parametrize(("device", "dtype"), WHERE)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_as_near_to_the_exact_ones_as_the_plain_models(family, device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    queries = some_queries()
    exact = tiny(family)  # float32: experts are not computed in float64
    model = on(exact, device, dtype)
    truth = loglikelihoods(plainly(exact, queries))
    plain = loglikelihoods(plainly_on(model, queries))
    sweeper = Sweeper(model, queries)
    assert sweeper.mode != "none"
    ours = loglikelihoods(scored(sweeper, queries, 0))
    floor = 2e-3 if dtype == torch.float32 else 1e-2
    assert rms(ours - truth) <= 1.5 * rms(plain - truth) + floor


@pytest.mark.parametrize(("device", "dtype"), WHERE)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_that_changes_nothing_changes_no_bit(family, device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    queries = some_queries(1)
    model = on(tiny(family), device, dtype)
    sweeper = Sweeper(model, queries)
    baseline = scored(sweeper, queries, 0)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    names = {module: name for name, module in model.named_modules()}
    for block in range(len(layers)):
        linear = [module for module in layers[block].modules() if isinstance(module, torch.nn.Linear)]
        for module in linear[-1:] * 2:  # twice: the second is given what was remembered of the first
            assert scored(sweeper, queries, block, (names[module],)) == baseline


def plainly_on(model, queries):
    """`plainly`, for a model anywhere."""
    return plainly(_Moving(model), queries)


class _Moving:
    """Takes token ids from the CPU and gives logits back to it."""

    def __init__(self, model):
        self._model = model

    def __call__(self, ids):
        output = self._model(ids.to(self._model.device))
        output.logits = output.logits.cpu()
        return output


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))
