import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.errors import EvaluationError, ReducerError
from lrbench.evaluation.frozen import FrozenEngine
from lrbench.evaluation.interface import Job
from lrbench.evaluation.lm_eval_engine import HarnessEngine
from lrbench.evaluation.sweep import SweepEngine
from lrbench.evaluation.sweep.queries import make_queries
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.models.load import bundled
from lrbench.tasks.load import load_tasks
from tests.support.tiny_models import same, swept

NAMES = ["almanac_facts", "almanac_agreement", "almanac_arithmetic", "almanac_text", "almanac_recall"]
SCORED = NAMES[:-1]
BLOCKS = 8


def spec(task, limit=None, num_fewshot=None):
    return SimpleNamespace(task=task, limit=limit, num_fewshot=num_fewshot)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(bundled()["almanac"]).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled()["almanac"])


@pytest.fixture
def make(model, tokenizer):
    """Makes an engine on the bundled model."""

    def made(kind, *specs, **options):
        return kind(model, tokenizer, load_tasks(specs or [spec(name, 4) for name in SCORED], ()), **options)

    return made


@pytest.fixture
def job(model):
    """Makes jobs that scale one matrix: `job(layer, factor)`, and `job()` that edits nothing."""

    def made(layer=None, factor=1.0):
        @contextmanager
        def edited():
            if layer is None or layer == BLOCKS:
                yield
                return
            weight = model.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight
            original = weight.data
            weight.data = original * factor
            try:
                yield
            finally:
                weight.data = original

        named = layer is not None and layer != BLOCKS
        return Job(f"{layer}-{factor}", layer, edited, (f"model.layers.{layer}.mlp.down_proj",) if named else ())

    return made


def agree(ours, theirs):
    """Within what the sweep engine promises of lm-eval's numbers."""
    assert ours.error is None
    assert theirs.error is None
    assert ours.cell == theirs.cell
    for mine, other in zip(ours.samples, theirs.samples, strict=True):
        assert (mine["task"], mine["doc"]) == (other["task"], other["doc"])
        assert mine.get("loglikelihoods", []) == pytest.approx(other.get("loglikelihoods", []), rel=1e-4, abs=1e-3)
        assert mine.get("greedy") == other.get("greedy")
        assert mine.get("text") == other.get("text")
    assert set(ours.scores) == set(theirs.scores)
    for task, metrics in theirs.scores.items():
        for metric, score in metrics.items():
            assert ours.scores[task][metric].value == pytest.approx(score.value, rel=2e-5), (task, metric)
            assert ours.scores[task][metric].n == score.n


def test_the_numbers_are_lm_evals_on_every_bundled_task_wherever_the_edit_is(make, job):
    specs = [spec(name, 6) for name in NAMES]
    jobs = [job(), job(0, 0.0), job(3, -1.0), job(3, 0.5), job(7, 0.0)]
    sweep, harness = make(SweepEngine, *specs), make(HarnessEngine, *specs)

    assert sweep.sweeper.mode == "packed"
    for ours, theirs in zip(sweep.score(jobs), harness.score(jobs), strict=True):
        agree(ours, theirs)


@pytest.mark.parametrize(
    ("specs", "options"),
    [
        ([spec("almanac_facts", 5, 3), spec("almanac_arithmetic", 8, 2)], {}),
        ([spec("almanac_facts_frequent", 5, 3), spec("almanac_text", 4)], {"max_length": 24}),
        ([spec("almanac_agreement", 8), spec("almanac_text", 4)], {"add_bos": True}),
    ],
    ids=["examples", "cut", "bos"],
)
def test_few_shot_prompts_short_windows_and_bos_are_as_in_lm_eval(make, job, specs, options):
    jobs = [job(), job(5, 0.5)]

    for ours, theirs in zip(
        make(SweepEngine, *specs, **options).score(jobs), make(FrozenEngine, *specs, **options).score(jobs), strict=True
    ):
        agree(ours, theirs)


@pytest.mark.parametrize("mode", ["packed", "padded", "whole"])
def test_an_edit_that_changes_nothing_gives_the_baseline_bit_for_bit_at_every_block(make, job, mode):
    engine = make(SweepEngine, *[spec(name, 3) for name in SCORED], mode=mode)
    assert engine.sweeper.mode == mode

    baseline, *others = engine.score([job(), *(job(block) for block in range(BLOCKS + 1))])

    for other in others:
        assert other.error is None
        assert other.samples == baseline.samples
        assert other.scores == baseline.scores


def test_a_cells_numbers_do_not_depend_on_the_cells_around_it(make, job):
    cells = [job(6, 0.5), job(2, 0.0), job(), job(6, 0.5), job(0, 0.5)]
    specs = [spec("almanac_agreement", 6), spec("almanac_text", 3)]
    together = list(make(SweepEngine, *specs).score(cells))
    reverse = list(make(SweepEngine, *specs).score(cells[::-1]))
    (alone,) = make(SweepEngine, *specs).score([job(6, 0.5)])

    for ours, theirs in zip(together, reversed(reverse), strict=True):
        assert ours.samples == theirs.samples
    assert together[0].samples == together[3].samples == alone.samples


def test_without_room_for_the_frontier_requests_go_in_parts_and_nothing_changes(make, job):
    cells = [job(), job(2, 0.0), job(6, 0.5), Job("x", 3, _refuses)]
    roomy, tight = make(SweepEngine, tokens=128), make(SweepEngine, tokens=128, frontier_bytes=1)

    assert tight.describe()["sweep"]["parts"] > 3
    for ours, theirs in zip(tight.score(cells), roomy.score(cells), strict=True):
        assert ours.cell == theirs.cell
        assert ours.samples == theirs.samples
        assert str(ours.error) == str(theirs.error)


@contextmanager
def _refuses():
    raise ReducerError("svd: no")
    yield


def test_memory_that_runs_out_halves_the_batches_and_goes_on(make, job, monkeypatch):
    said = []
    engine = make(SweepEngine, tokens=256, notify=said.append)
    expected = make(FrozenEngine).score([job(4, 0.5)])
    score, failing = engine.sweeper.score, [True]

    def runs_out(*given):
        score(*given)
        if failing:
            failing.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.sweeper, "score", runs_out)
    (ours,) = engine.score([job(4, 0.5)])

    agree(ours, *expected)
    assert engine.describe()["sweep"]["batch_tokens"] == 128
    assert said[1:] == ["sweep engine: batches of 256 tokens do not fit the memory; going on with 128"]


def test_memory_that_never_suffices_fails_the_cell_and_the_next_goes_on(make, job, monkeypatch):
    engine = make(SweepEngine, tokens=128)

    def runs_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(engine.sweeper, "score", runs_out)
        (bad,) = engine.score([job(4, 0.5)])
    (good,) = engine.score([job(4, 0.5)])

    assert "out of memory" in str(bad.error)
    assert good.error is None


def test_weights_that_overflow_and_edits_that_fail_concern_their_cell_only(make, job):
    engine = make(SweepEngine, spec("almanac_text", 3), spec("almanac_agreement", 3))

    bad, refused, good = engine.score([job(2, math.nan), Job("x", 3, _refuses), job(4)])

    assert isinstance(bad.error, EvaluationError)
    assert "almanac_text, document 0: the log-likelihood is nan" in str(bad.error)
    assert str(refused.error) == "svd: no"
    assert good.error is None


def test_an_edit_that_cannot_be_undone_stops_everything(make):
    @contextmanager
    def sticks():
        yield
        raise EvaluationError("the original weight was written to")

    with pytest.raises(EvaluationError, match="written to"):
        list(make(SweepEngine, spec("almanac_text", 3)).score([Job("x", 0, sticks)]))


def test_a_model_that_allows_nothing_is_scored_by_lm_evals_forward_passes(make, job, model, monkeypatch):
    forward = type(model.lm_head).forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: forward(model.lm_head, x - 0.1 * x.mean(1, keepdim=True)))
    specs = [spec("almanac_agreement", 6), spec("almanac_text", 3)]
    said = []
    engine = make(SweepEngine, *specs, notify=said.append)

    (ours,), (theirs,) = engine.score([job(3, 0.5)]), make(FrozenEngine, *specs).score([job(3, 0.5)])

    assert engine.sweeper.mode == "none"
    assert "using lm-eval's own forward passes" in said[-1]
    assert ours.samples == theirs.samples


def test_tasks_that_only_want_text_need_no_sweeping(make, job):
    engine = make(SweepEngine, spec("almanac_recall", 4))

    (ours,), (theirs,) = engine.score([job()]), make(FrozenEngine, spec("almanac_recall", 4)).score([job()])

    assert engine.sweeper is None
    assert ours.samples == theirs.samples


def test_its_description_is_plain_json_with_mode_check_and_fallbacks(make):
    told = json.loads(json.dumps(make(SweepEngine).describe()))

    assert told["name"] == "sweep"
    assert told["sweep"]["mode"] == "packed"
    assert told["sweep"]["fallbacks"] == []
    assert told["sweep"]["self_check"]["resuming_is_exact"] is True
    assert 0 < told["sweep"]["self_check"]["largest_difference"] < 1e-3
    assert told["sweep"]["tokens_computed"] < told["sweep"]["tokens_asked"]


def test_the_same_tokens_split_elsewhere_are_right_where_lm_evals_batches_are_not(make, model):
    """lm-eval's batches take one of such requests for another: https://github.com/EleutherAI/lm-evaluation-harness,
    `Collator` with `group_by="contexts"`. One at a time they are right there too."""
    lm = make(FrozenEngine, spec("almanac_agreement", 2)).lm
    tokens = lm.tok_encode("The sum of 2 and 3 is 5.")
    pairs = [(None, tokens[:at], tokens[at:]) for at in range(1, len(tokens))]
    queries = make_queries(pairs, lm.max_length)

    answers = swept(Sweeper(model, queries), queries)

    assert same(answers, [lm._loglikelihood_tokens([pair], disable_tqdm=True)[0] for pair in pairs])
    assert not same(answers, lm._loglikelihood_tokens(pairs, disable_tqdm=True))
