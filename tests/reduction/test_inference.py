"""Running on factors, and measuring how fast that is."""

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module

import lrbench
from lrbench.analysis.leaderboard import build
from lrbench.errors import EvaluationError, ModelError
from lrbench.models.factored_layers import factored, is_whole_layer
from lrbench.models.slot_search import find_slots
from lrbench.reducers.factors import Dense, LowRank
from lrbench.reducers.factors.layer import FactoredLinear
from lrbench.reducers.ranks import RankRequest
from lrbench.reducers.registry import Registry
from lrbench.reduction.apply import in_place
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method, methods
from lrbench.reduction.speed_benchmark import BenchmarkSettings, _Alive, measure_inference
from lrbench.results.directory import open_run
from lrbench.suite.load import load_suite
from tests.support.exports import write_family_suite
from tests.support.suites import MISBEHAVING, run, write_suite
from tests.support.tiny_models import tiny

IDS = torch.tensor([[1, 5, 9, 2, 7, 3]])
EACH = "sweep:\n  - {weights: [mlp.down], layers: [1, 3], rank: {keep: 0.6}}\n"


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def reduced(model, weights, reducer="svd", **rank):
    registry = Registry.load()
    slots = tuple(find_slots(model).select(range(4), weights))
    [(kind, value)] = rank.items()
    cell = Cell(Method(reducer, registry.build(reducer), {}, ""), "together", slots, RankRequest(kind, value))
    [(_, outcome)] = CellReducer(0).reduce_group([cell])
    assert isinstance(outcome, list), outcome
    return slots, outcome


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon_rotary"])
@pytest.mark.parametrize("reducer", ["svd", "id", "cr", "cur"])
def test_factored_inference_gives_the_dense_edits_answers_and_the_very_same_modules_come_back(family, reducer):
    model = tiny(family)
    before, modules = logits(model), dict(model.named_modules())
    slots, outcome = reduced(model, ["all"], reducer, keep=0.6)
    layers = sum(map(is_whole_layer, slots))
    with in_place(model, slots, outcome):
        dense = logits(model)
    with in_place(model, slots, outcome, "factored"):
        assert sum(isinstance(module, FactoredLinear) for module in model.modules()) == layers > 0
        torch.testing.assert_close(logits(model), dense, rtol=1e-3, atol=1e-3)
    assert {name: id(module) for name, module in model.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert torch.equal(logits(model), before)
    assert not torch.allclose(dense, before, atol=1e-2)


def test_an_embedding_and_a_matrix_stored_in_full_are_run_as_matrices_and_said_so(tmp_path):
    suite = write_family_suite(
        tmp_path, "llama", "sweep:\n  - {mode: together, weights: [embed, mlp.up, attn.k], rank: {rank: 10}}\n",
        inference="factored",
    )  # fmt: skip
    run(suite, tmp_path / "run", overrides=["reducers=[svd]"])
    row = list(open_run(tmp_path / "run").rows().values())[1]
    assert row.status == "ok"
    ways = {edit.role: (edit.stored_as, edit.evaluated_as) for edit in row.edits}
    assert ways == {"embed": ("factors", "dense"), "mlp.up": ("factors", "factors"), "attn.k": ("factors", "factors")}
    overrides = ["reducers=[svd]", "sweep.0.rank.rank=14", "sweep.0.weights=[attn.k]"]
    run(suite, tmp_path / "full", overrides=overrides)
    row = list(open_run(tmp_path / "full").rows().values())[1]
    assert {(edit.stored_as, edit.evaluated_as) for edit in row.edits} == {("dense", "dense")}


@pytest.mark.parametrize("engine", ["sweep", "frozen", "harness"])
def test_every_engine_scores_factors_as_it_scores_matrices(engine, tmp_path):
    sweep = "sweep:\n  - {weights: [mlp.down, head], layers: [1, 3], rank: {keep: 0.6}}\n"
    suite = write_family_suite(tmp_path, "llama", sweep)
    run(suite, tmp_path / "dense", engine=engine)
    run(suite, tmp_path / "factored", engine=engine, overrides=["inference=factored"])
    dense, ours = (list(open_run(tmp_path / name).rows().values()) for name in ("dense", "factored"))
    assert len(ours) == 7
    for one, other in zip(dense, ours, strict=True):
        assert other.status == "ok", other.reason
        assert all(edit.evaluated_as == "factors" for edit in other.edits)
        for metric, score in one.scores["which"].items():
            assert other.scores["which"][metric].value == pytest.approx(score.value, abs=1e-4)
        assert (one.cell == other.cell) == (one.reducer is None)  # the baseline runs as it always did


def test_cells_that_factors_cannot_run_keep_their_hash(tmp_path):
    suite = write_family_suite(tmp_path, "llama", "sweep:\n  - {weights: [embed], rank: {keep: 0.6}}\n")
    run(suite, tmp_path / "dense")
    run(suite, tmp_path / "factored", overrides=["inference=factored"])
    assert open_run(tmp_path / "dense").rows().keys() == open_run(tmp_path / "factored").rows().keys()


def test_a_suite_that_asks_for_nothing_new_keeps_its_hash(tmp_path):
    suite = write_suite(tmp_path)
    plain = load_suite(suite)
    assert load_suite(suite, overrides=["inference=dense"]).hash == plain.hash
    assert load_suite(suite, overrides=["inference=factored"]).hash != plain.hash
    assert load_suite(suite, overrides=["measure=inference"]).hash != plain.hash
    assert methods(plain, Registry.load())


def test_a_layer_replaced_behind_our_back_is_an_error_and_the_original_comes_back():
    model = tiny("llama")
    slots, outcome = reduced(model, ["mlp.down"], keep=0.6)
    mlp = model.model.layers[0].mlp
    original = mlp.down_proj
    with pytest.raises(EvaluationError, match="down_proj"), in_place(model, slots, outcome, "factored"):
        mlp.down_proj = torch.nn.Identity()
    assert mlp.down_proj is original


def test_what_is_no_layer_cannot_run_on_factors():
    model = tiny("llama")
    [embed] = find_slots(model).select(range(4), ["embed"])
    assert not is_whole_layer(embed)
    nothing = Dense(torch.zeros(embed.about.shape))
    with pytest.raises(ModelError, match="not a linear layer"), factored(model, {embed: nothing}):
        pass
    [slot] = find_slots(tiny("llama")).select([0], ["mlp.down"])
    with (
        pytest.raises(ModelError, match="of this model"),
        factored(model, {slot: LowRank(torch.zeros(32, 2), torch.zeros(2, 48))}),
    ):
        pass


@pytest.mark.slow
def test_measured_rows_hold_speed_and_memory_of_both_forms(tmp_path, capsys):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_family_suite(tmp_path, "llama", EACH, measure="[inference]")
    run(suite, tmp_path / "run", plugin, overrides=["reducers=[svd, raises]"])
    rows = list(open_run(tmp_path / "run").rows().values())
    baseline, *edited = [row for row in rows if row.status == "ok"]
    assert [entry.batch for entry in baseline.inference.batches] == [1, 8]
    assert all(entry.factored is None for entry in baseline.inference.batches)
    for row in edited:
        assert (row.inference.prompt_tokens, row.inference.new_tokens) == (128, 32)
        assert row.inference.factored_weights == 1
        for entry in row.inference.batches:
            assert entry.dense.prefill_tokens_per_second > 0
            assert entry.factored.decode_tokens_per_second > 0
            saved = 4 * (row.edits[0].shape[0] * row.edits[0].shape[1] - row.edits[0].stored_numbers)
            assert entry.dense.peak_bytes - entry.factored.peak_bytes == pytest.approx(saved, abs=saved)
            assert entry.factored.peak_bytes < entry.dense.peak_bytes
    assert all(row.inference is None for row in rows if row.status == "failed")
    columns = {column.name for column in build([open_run(tmp_path / "run")]).columns}
    assert {"prefill", "decode", "memory"} <= columns


def test_tables_of_runs_that_measured_no_speed_have_no_columns_for_it(tmp_path):
    run(write_family_suite(tmp_path, "llama", EACH), tmp_path / "run")
    assert {"prefill", "decode", "memory"}.isdisjoint(c.name for c in build([open_run(tmp_path / "run")]).columns)


def test_the_protocol_fits_the_models_positions():
    assert BenchmarkSettings().fitted_to(None) == BenchmarkSettings()
    short = BenchmarkSettings().fitted_to(40)
    assert (short.prompt_tokens, short.new_tokens) == (20, 20)
    assert BenchmarkSettings().fitted_to(100).prompt_tokens == 68


def test_what_cannot_be_measured_is_a_reason_and_no_failure(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(
        "lrbench.reduction.speed_benchmark.time_once", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    found = measure_inference(model)
    assert found.reason == "batch 1: out of memory"
    assert found.batches == []


def test_memory_is_that_of_all_tensors_alive_at_once():
    with _Alive() as alive:
        one = torch.ones(1000)
        two = one + 1
        del one
        three = two.view(10, 100) * 2
        del two
        four = three.sum()
    assert alive.peak == 8000
    assert alive.now == 4000 + 4
    assert four.numel() == 1
    del three
    assert alive.now == 4


class Moved(ModelHook):
    """Brings inputs to a device, and counts its calls."""

    def __init__(self):
        self.made_for, self.before, self.after = [], 0, 0

    def init_hook(self, module):
        self.made_for.append(type(module).__name__)
        return module

    def pre_forward(self, module, *args, **kwargs):
        self.before += 1
        return tuple(each.float() for each in args), kwargs

    def post_forward(self, module, output):
        self.after += 1
        return output


def test_a_layer_of_factors_runs_under_accelerates_hook_and_the_original_keeps_it():
    model = tiny("llama")
    plain = logits(model)
    with lrbench.reduce(model, "svd", rank=16, layers=1, weights="mlp.down", inference="factored"):
        alone = logits(model)
    layer, hook = model.model.layers[1].mlp.down_proj, Moved()
    add_hook_to_module(layer, hook)
    forward = layer.forward
    assert torch.equal(logits(model), plain)
    assert (hook.before, hook.after) == (1, 1)
    with lrbench.reduce(model, "svd", rank=16, layers=1, weights="mlp.down", inference="factored") as edit:
        assert isinstance(model.model.layers[1].mlp.down_proj, FactoredLinear)
        assert torch.equal(logits(model), alone)
        assert (hook.before, hook.after) == (2, 2)
        assert edit.edits[0].evaluated_as == "factors"
    assert hook.made_for == ["Linear", "FactoredLinear"]
    assert model.model.layers[1].mlp.down_proj is layer
    assert (layer._hf_hook, layer.forward) == (hook, forward)
    assert torch.equal(logits(model), plain)
    assert (hook.before, hook.after) == (3, 3)


def test_factors_run_in_a_model_that_accelerate_has_placed():
    model = tiny("llama")
    before = logits(model)
    with lrbench.reduce(model, "svd", keep=0.5, weights="mlp", inference="factored"):
        alone = logits(model)
    placed = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert all(hasattr(block.mlp.down_proj, "_hf_hook") for block in placed.model.layers)
    with lrbench.reduce(placed, "svd", keep=0.5, weights="mlp", inference="factored") as edit:
        assert {record.evaluated_as for record in edit.edits} == {"factors"}
        assert all(isinstance(block.mlp.down_proj._hf_hook, AlignDevicesHook) for block in placed.model.layers)
        assert torch.equal(logits(placed), alone)
    assert torch.equal(logits(placed), before)
