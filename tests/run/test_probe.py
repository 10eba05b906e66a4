"""What `lrbench check --probe` predicts: tokens exactly, time by counting what was timed."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lrbench.cli import main
from lrbench.evaluation.sweep import SweepEngine
from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.cost_model import SweepCost, cost
from lrbench.evaluation.sweep.partial_forward import PartialForward
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.models.load import bundled
from lrbench.reducers.registry import Registry
from lrbench.reduction.plan import make_plan, methods
from lrbench.run import estimate as probing
from lrbench.run.inputs import default_directory, structure_of
from lrbench.suite.load import load_suite
from lrbench.tasks.load import load_tasks
from tests.support.slow_cases import slow_cases
from tests.support.suites import MISBEHAVING, Heard, run, write_suite


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def predicted(path, overrides=()):
    suite = load_suite(path, overrides=overrides)
    registry = Registry.load(suite.plugins)
    built = methods(suite, registry)
    return probing.probe(suite, suite.models[0], built, default_directory(suite), notify=lambda message: None)


@pytest.fixture
def computed(monkeypatch):
    """How many tokens went through a block while cells were scored."""
    seen = SimpleNamespace(tokens=0, scoring=False)
    forward = LlamaDecoderLayer.forward

    def counting(self, hidden_states, *arguments, **keywords):
        seen.tokens += hidden_states.shape[0] * hidden_states.shape[1] * seen.scoring
        return forward(self, hidden_states, *arguments, **keywords)

    def while_scoring(method):
        def wrapped(*arguments):
            seen.scoring = True
            try:
                return method(*arguments)
            finally:
                seen.scoring = False

        return wrapped

    def unseen(recipes):  # what an engine tries out on one batch, for each set of edited modules, is not predicted
        def wrapped(*arguments):
            before, seen.scoring = seen.scoring, False
            try:
                return recipes(*arguments)
            finally:
                seen.scoring = before

        return wrapped

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counting)
    monkeypatch.setattr(PartialForward, "recipes", unseen(PartialForward.recipes))
    for name in ("advance", "score"):
        monkeypatch.setattr(Sweeper, name, while_scoring(getattr(Sweeper, name)))
    return seen


@pytest.mark.parametrize(
    "overrides", [[], *slow_cases(["frontier_memory=1.0e-7"], ["sweep.0.weights=[mlp.down, head, embed]"])]
)
def test_the_tokens_predicted_are_those_that_a_run_computes(tmp_path, monkeypatch, computed, overrides):
    monkeypatch.setitem(memory.TOKENS, "cpu", 128)
    suite = write_suite(tmp_path)
    found = predicted(suite, overrides)
    computed.tokens = 0
    result = run(suite, tmp_path / "out", overrides=overrides)
    told = result.directory.manifest()["models"][0]["engine"]["sweep"]
    assert computed.tokens == found.block_tokens > 0
    assert (found.to_score, found.scored) == (result.computed, 0)
    assert found.sweep.tokens_asked == told["tokens_asked"]
    assert found.sweep.positions == told["tokens_computed"]
    assert found.requests == 4 * 8 + 2 * 8 + 3
    assert 0 < found.seconds == found.setup_seconds + found.reduce_seconds + found.score_seconds


GREEDY = """\
name: composed
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 24}
reducers: [svd, random-subspace]
sweep:
  - mode: each
    layers: [3]
    weights: [mlp.up]
    rank: {fraction: 0.5}
  - mode: greedy
    layers: [5, 7]
    weights: [mlp.up, attn.q]
    rank: {fraction: [0.1, 0.6]}
select: {validation: 0.5}
"""


def test_what_compositions_try_is_predicted_too(tmp_path, monkeypatch, computed, capsys):
    monkeypatch.setitem(memory.TOKENS, "cpu", 128)
    suite = write_suite(tmp_path, GREEDY)
    found = predicted(suite)
    assert (found.to_score, found.composed) == (3, 2 * 2 * 4)

    class ChosenError(Exception):
        pass

    class UntilTest(Heard):
        def note(self, message):
            if "the chosen cells on" in message:
                raise ChosenError

    heard = UntilTest()
    computed.tokens = 0
    with pytest.raises(ChosenError):
        run(suite, tmp_path / "out", heard=heard)
    assert len(heard.rows) == found.to_score + found.composed
    assert computed.tokens == found.block_tokens

    assert main(["check", "suite.yaml", "--probe"]) == 0
    assert "3 to score, up to 16 more in compositions" in capsys.readouterr().out


def test_cells_that_have_a_row_are_not_in_it(tmp_path, computed):
    suite = write_suite(tmp_path)
    out = default_directory(load_suite(suite))
    run(suite, out)
    lines = (out / "rows.jsonl").read_text().splitlines()
    before = predicted(suite)
    assert (before.to_score, before.scored, before.block_tokens, before.reduce_seconds) == (0, 5, 0, 0.0)
    (out / "rows.jsonl").write_text("\n".join(lines[:3]) + "\n")  # what is left are the two cells at block 5
    found = predicted(suite)
    computed.tokens = 0
    run(suite, out)
    assert (found.to_score, found.scored) == (2, 3)
    assert computed.tokens == found.block_tokens


def test_a_sweeps_cost_is_its_blocks_the_way_up_to_them_and_its_heads():
    cost = SweepCost(positions=100, blocks=10, blocks_seconds=5.0, head_seconds=1.0)
    assert cost.block_tokens([0, 4, 4, 9]) == 100 * (10 + 6 + 6 + 1 + 9)
    assert cost.seconds([0, 4, 4, 9]) == pytest.approx(3200 * 5 / 1000 + 4 * 1.0)
    assert cost.seconds([]) == 0.0
    whole = SweepCost(positions=100, blocks=10, blocks_seconds=5.0, resumes=False)
    assert whole.seconds([0, 9]) == pytest.approx(10.0)


@pytest.mark.parametrize("mode", ["packed", "none", *slow_cases("padded", "whole")])
def test_whatever_the_model_allows_has_a_cost(mode):
    torch.set_num_threads(1)
    folder = bundled()["almanac"]
    tasks = load_tasks(
        [SimpleNamespace(task=task, limit=4, num_fewshot=None) for task in ("almanac_text", "almanac_agreement")], ()
    )
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = cost(SweepEngine(model, AutoTokenizer.from_pretrained(folder), tasks, mode=mode))
    assert found.blocks == 8
    assert found.resumes == (mode in ("packed", "padded"))
    assert found.blocks_seconds > 0
    assert (found.head_seconds > 0) == found.resumes
    assert found.positions > 0


def test_each_method_is_timed_on_one_weight_of_each_shape_at_all_its_ranks(tmp_path, monkeypatch):
    suite = load_suite(
        write_suite(
            tmp_path, reducers="[svd]", weights="[mlp.down, attn.o]", layers="[0, 1, 2]", rank="{rank: [8, 64, 32]}"
        )
    )
    built = methods(suite, Registry.load())
    cells = make_plan(suite, structure_of(suite.models[0]), built).cells[1:]
    timed = []

    def reduce(reductions, group, failures):
        timed.append([(cell.slots[0].about.shape, cell.request.value) for cell in group])
        return 10.0

    monkeypatch.setattr(probing, "_reduce", reduce)
    seconds, failures = probing._time_reductions([cells], 0)
    assert timed == [[(shape, rank) for rank in (8, 64, 32)] for shape in ((192, 192), (192, 512))]
    assert len(cells) == 18
    assert seconds == 6 * 10.0
    assert not failures


def test_check_prints_its_plan_and_then_the_prediction(tmp_path, capsys):
    suite = write_suite(tmp_path)
    assert main(["check", str(suite)]) == 0
    plan = capsys.readouterr().out
    assert "prediction" not in plan
    assert main(["check", str(suite), "--probe"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(plan)
    assert "prediction for " in out
    for words in ("5 to score", "51 per cell", "tokens through a block", "set-up ", "decomposition ", "evaluation "):
        assert words in out
    assert not (tmp_path / "results").exists()


def test_texts_and_reducers_that_fail_are_said(tmp_path, capsys):
    (tmp_path / "bad.py").write_text(MISBEHAVING)
    suite = write_suite(tmp_path, reducers="[raises, svd]")
    arguments = [
        "check",
        str(suite),
        "--probe",
        "--plugin",
        "bad.py",
        "--set",
        "tasks=[{task: almanac_recall, limit: 3}]",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "not in the time: 3 texts a cell, to be generated by lm-eval" in out
    assert "0 per cell, of 0 tokens" in out
    assert "not in the time: a failure: model.layers.2.mlp.down_proj.weight: raises: " in out
    assert "no luck at all" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.name=almanak"], "did you mean 'almanac'?"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--set", "model.chat_template=true"], "the tokenizer has no chat template"),
        (["--set", "model.max_length=4"], "max_length"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert main(["check", str(write_suite(tmp_path)), "--probe", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrbench: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_chat_template_that_is_not_there_is_said_at_its_line_without_the_weights(tmp_path, capsys):
    suite = write_suite(tmp_path, model="{name: almanac, chat_template: true}")
    for verb in ("check", "run"):
        assert main([verb, str(suite)]) == 2
        message = f"lrbench: {suite}:2:39: the tokenizer has no chat template; leave it out, or take another model"
        assert message in capsys.readouterr().err
