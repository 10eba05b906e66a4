"""Updates: W - W_base is reduced instead of W, and goes out as an adapter of the base."""

import json
import shutil

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.analysis.leaderboard import build
from lrbench.cli import main
from lrbench.errors import ModelError, SuiteError
from lrbench.models.base_model import load_base
from lrbench.models.load import load
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import count_parameters
from lrbench.reports.render import markdown, terminal
from lrbench.results.directory import open_run
from lrbench.results.rows import Row
from lrbench.run.recompute import compute_again
from lrbench.suite.load import ModelSpec, load_suite
from tests.support.exports import lm_eval_says, write_family_suite, write_model
from tests.support.suites import Heard, run
from tests.support.tiny_models import tiny

IDS = torch.tensor([[1, 5, 9, 2, 7, 3, 11, 50]])
RANK = 3
TOGETHER = "sweep:\n  - {mode: together, weights: [mlp.down, attn.o], rank: {rank: [1, 3]}, reducers: [svd]}\n"
DELTA = {"delta": "{base: ./base}"}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def fine_tune(folder, weights=("mlp.down", "attn.o"), *, rank=RANK, size=0.5, also=()):
    """Makes the checkpoint in `folder/model` the base, and puts in its place one with updates of rank 3."""
    shutil.move(folder / "model", folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for slot in find_slots(model).select(range(4), weights):
            rows, columns = slot.about.shape
            update = torch.randn(rows, rank, generator=dice) @ torch.randn(rank, columns, generator=dice)
            update *= size * slot.read().norm() / update.norm()
            slot.write(slot.tensor().data, slot.read() + update)
        for name in also:
            model.get_parameter(name).add_(0.5)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "model")


def tuned_suite(folder, family="llama", sweep=TOGETHER, *, also=(), weights=("mlp.down", "attn.o"), size=0.5, **keys):
    suite = write_family_suite(folder, family, sweep, **{**DELTA, **keys})
    fine_tune(folder, weights, also=also, size=size)
    return suite


def rows_of(folder):
    """The baseline's row, the base's, and the others by what was asked."""
    rows = list(open_run(folder).rows().values())
    [baseline] = [row for row in rows if row.reducer is None]
    [base] = [row for row in rows if row.mode == "base"]
    return baseline, base, {row.requested["rank"]: row for row in rows if row.requested}


def scores(row):
    return {metric: score.value for metric, score in row.scores["which"].items()}


def score(model, folder):
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder / "base"), batch_size=32)
    return lm_eval_says(folder / "tasks", model=lm)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a run of svd at ranks 1 and 3 over updates of rank 3."""
    folder = tmp_path_factory.mktemp("llama")
    run(tuned_suite(folder), folder / "run")
    return folder


def test_the_rank_of_the_update_gives_the_fine_tuned_model_and_less_gives_less(llama):
    baseline, base, edited = rows_of(llama / "run")
    assert {row.status for row in (baseline, base, *edited.values())} == {"ok"}
    assert scores(edited[3]) == pytest.approx(scores(baseline), abs=1e-5)
    assert all(edit.relative_error < 1e-5 for edit in edited[3].edits)
    assert all(0.3 < edit.relative_error < 1 for edit in edited[1].edits)
    for edit in edited[1].edits:
        assert edit.relative_error == pytest.approx(edit.optimal_error, rel=1e-4)
    assert abs(scores(edited[1])["brier_score"] - scores(baseline)["brier_score"]) > 1e-4
    assert len(edited[1].edits) == 8


def test_the_row_without_updates_is_the_base_where_nothing_else_was_fine_tuned(llama):
    _, base, _ = rows_of(llama / "run")
    assert (base.label, base.mode, base.requested, base.delta) == ("base", "base", {}, "./base")
    assert scores(base) == pytest.approx(score(AutoModelForCausalLM.from_pretrained(llama / "base"), llama), abs=1e-5)
    assert (base.keep_targets, base.keep_model, base.compression_ratio) == (0, 0, None)
    assert all((edit.rank, edit.stored_numbers, edit.relative_error) == (0, 0, 1) for edit in base.edits)


def test_errors_and_scores_are_those_of_the_update_truncated_by_hand(llama):
    _, _, edited = rows_of(llama / "run")
    base = AutoModelForCausalLM.from_pretrained(llama / "base")
    tuned = AutoModelForCausalLM.from_pretrained(llama / "model")
    for edit in edited[1].edits:
        W, W0 = tuned.get_parameter(edit.weight).detach().double(), base.get_parameter(edit.weight).detach().double()
        U, S, Vh = torch.linalg.svd(W - W0)
        assert edit.optimal_error == pytest.approx(float(S[1:].norm() / S.norm()), rel=1e-5)
        with torch.no_grad():
            tuned.get_parameter(edit.weight).copy_(W0 + S[0] * torch.outer(U[:, 0], Vh[0]))
    assert scores(edited[1]) == pytest.approx(score(tuned, llama), abs=1e-5)


def test_sizes_are_of_what_is_stored_on_top_of_the_base(tmp_path):
    sweep = "sweep:\n  - {weights: [mlp.down], layers: [1], rank: {rank: [1]}, reducers: [svd]}\n"
    run(tuned_suite(tmp_path, sweep=sweep, also=["model.norm.weight"]), tmp_path / "run")
    _, base, edited = rows_of(tmp_path / "run")
    numbers = count_parameters(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    beside = 3 * 32 * 48 + 4 * 32 * 32 + 32  # the other weights that were fine-tuned, and the norm
    assert edited[1].keep_targets == pytest.approx((32 + 48) / (32 * 48))
    assert edited[1].keep_model == pytest.approx((beside + 32 + 48) / numbers)
    assert base.keep_model == pytest.approx(beside / numbers)
    assert len(base.edits) == 1  # what the sweep does not touch stays fine-tuned


@pytest.mark.parametrize("family", ["gpt2", "phi3", "mixtral"])
def test_transposed_fused_and_stacked_weights_have_updates_too(family, tmp_path):
    sweep = "sweep:\n  - {mode: together, weights: [all], rank: {rank: [3]}, reducers: [svd, id]}\n"
    suite = tuned_suite(tmp_path, family, sweep, weights=["all"])
    run(suite, tmp_path / "run")
    rows = list(open_run(tmp_path / "run").rows().values())
    assert {row.status for row in rows} == {"ok"}
    for row in rows:
        if row.requested:
            assert scores(row) == pytest.approx(scores(rows[0]), abs=1e-4)
            assert max(edit.relative_error for edit in row.edits) < 1e-4


def test_half_precision_errors_are_of_the_merged_weight_that_runs(tmp_path):
    suite = tuned_suite(tmp_path, size=0.02)
    run(suite, tmp_path / "run", overrides=["model.dtype=bfloat16"])
    _, _, edited = rows_of(tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    again = compute_again(open_run(tmp_path / "run"), edited[1].cell)
    for edit, done in zip(edited[1].edits, again.reductions, strict=True):
        W, W0 = tuned.get_parameter(edit.weight).detach().float(), base.get_parameter(edit.weight).detach().float()
        placed = (W0 + done.factors.left.float() @ done.factors.right.float()).bfloat16().float()
        assert done.factors.left.dtype == torch.bfloat16
        assert edit.relative_error == pytest.approx(float((W - placed).norm() / (W - W0).norm()), rel=1e-5)


def test_a_weight_that_is_the_bases_own_is_skipped_and_said_so(tmp_path):
    sweep = "sweep:\n  - {mode: each, weights: [mlp.down], layers: [0, 1], rank: {rank: [1]}, reducers: [svd]}\n"
    result = run(tuned_suite(tmp_path, sweep=sweep, weights=["model.layers.1.mlp.down_proj.weight"]), tmp_path / "run")
    rows = list(open_run(tmp_path / "run").rows().values())
    [skipped] = [row for row in rows if row.status == "skipped"]
    assert skipped.reason == (
        "model.layers.0.mlp.down_proj.weight: the weight is the base's own, so there is no update to reduce; "
        "fine-tuning changed 1 of the suite's weights (mlp.down)"
    )
    [base] = [row for row in rows if row.mode == "base"]
    assert [edit.weight for edit in base.edits] == ["model.layers.1.mlp.down_proj.weight"]
    assert (result.failed, result.skipped) == (0, 1)


def test_a_model_that_is_its_own_base_has_nothing_to_reduce(tmp_path):
    suite = write_family_suite(tmp_path, "llama", TOGETHER, delta="{base: ./model}")
    result = run(suite, tmp_path / "run")
    rows = open_run(tmp_path / "run").rows().values()
    assert [row.status for row in rows] == ["ok", "skipped", "skipped", "skipped"]
    assert [row.reason for row in rows if row.mode == "base"] == ["every weight is the base's own"]
    assert result.failed == 0


def refused(suite, out):
    with pytest.raises(SuiteError) as error:
        run(suite, out)
    text = str(error.value)
    assert "\n" not in text
    assert not (out / "rows.jsonl").exists()
    return text


def test_another_architecture_depth_or_shape_is_refused_at_the_suites_line_before_anything_is_scored(tmp_path):
    suite = tuned_suite(tmp_path)
    line = suite.read_text().splitlines().index("delta: {base: ./base}") + 1
    for family, said in (
        ("gpt2", "a gpt2 of 4 blocks, and the fine-tuned model is a llama of 4 blocks"),
        ("mistral", "a mistral of 4 blocks"),
    ):
        shutil.rmtree(tmp_path / "base")
        write_model(tmp_path / "base", family)
        text = refused(suite, tmp_path / "run")
        assert text.startswith(f"{suite}:{line}:")
        assert said in text
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for changes, said in (
        ({"num_hidden_layers": 3}, "a llama of 3 blocks"),
        ({"intermediate_size": 40}, "model.layers.0.mlp.down_proj.weight is (32, 40) in the base, and (32, 48) in the"),
    ):
        other = {**config, **changes}
        overrides = [f"delta.base={json.dumps({'config': other})}"]
        with pytest.raises(SuiteError, match="--set") as error:
            run(suite, tmp_path / "run", overrides=overrides)
        assert said in str(error.value)
    assert main(["check", str(suite)]) == 2


def test_a_base_without_a_slot_is_refused_by_its_name():
    from types import SimpleNamespace

    from lrbench.models.base_model import check_matching_slots

    [slot] = find_slots(tiny("llama")).select([2], ["mlp.down"])
    with pytest.raises(ModelError, match=r"base org/b: it has no model\.layers\.2\.mlp\.down_proj\.weight"):
        check_matching_slots("org/b", {}, [slot])
    [other] = find_slots(tiny("phi3")).select([2], ["attn.k"])
    moved = SimpleNamespace(about=other.about, layout=find_slots(tiny("phi3")).select([2], ["attn.v"])[0].layout)
    with pytest.raises(ModelError, match="another layout"):
        check_matching_slots("org/b", {other.name: moved}, [other])


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        ("{base: ./nowhere}", "no such checkpoint folder"),
        ("{}", "missing key 'base'"),
        ("{base: {pretrained: ./base, device: cpu}}", "'device' does not go with a base"),
        ("{base: {pretrained: ./base, dtype: bfloat16}}", "'dtype' does not go with a base"),
        ("{base: {name: almanac, pretrained: ./base}}", "either 'name'"),
        ("{bsae: ./base}", "unknown key 'bsae'"),
        ("{base: {name: almanack}}", "did you mean 'almanac'"),
        ("./base", "'delta' takes a mapping, such as {base: org/name}"),
    ],
)
def test_a_wrong_base_is_one_line_at_its_place(delta, said, tmp_path):
    suite = write_family_suite(tmp_path, "llama", TOGETHER, delta=delta)
    shutil.copytree(tmp_path / "model", tmp_path / "base")
    text = refused(suite, tmp_path / "run")
    assert text.startswith(f"{suite}:")
    assert said in text


@pytest.mark.parametrize(("key", "value"), [("inference", "factored"), ("measure", "[inference]")])
def test_factors_of_an_update_do_not_run_in_a_layers_place(key, value, tmp_path):
    text = refused(tuned_suite(tmp_path, **{key: value}), tmp_path / "run")
    assert f"'{key}' does not go with 'delta'" in text


def test_the_label_of_the_base_is_taken(tmp_path):
    suite = tuned_suite(tmp_path)
    suite.write_text(suite.read_text().replace("[svd, id]", "[svd, {id: {label: base}}]"))
    text = refused(suite, tmp_path / "run")
    assert "give the reducer another label" in text


def test_hashes_know_the_base_and_older_suites_keep_theirs(tmp_path):
    suite = tuned_suite(tmp_path)
    plain = load_suite(suite, overrides=["delta=null"])
    assert plain.delta is None
    assert "delta" not in json.dumps({key: value for key, value in plain.resolved().items() if value is not None})
    named = load_suite(suite)
    assert len({plain.hash, named.hash, load_suite(suite, overrides=["delta.base={name: almanac}"]).hash}) == 3
    run(suite, tmp_path / "one")
    run(suite, tmp_path / "plain", overrides=["delta=null"])
    fine_tuned, base, one = rows_of(tmp_path / "one")
    plain_rows = open_run(tmp_path / "plain").rows()
    assert fine_tuned.cell in plain_rows
    assert {row.cell for row in (base, *one.values())}.isdisjoint(plain_rows)
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        moved.model.layers[0].mlp.down_proj.weight.add_(0.01)
    moved.save_pretrained(tmp_path / "base")
    heard = Heard()
    run(suite, tmp_path / "one", heard=heard)
    assert heard.reused == 1
    assert len(heard.rows) == 3
    assert run(suite, tmp_path / "one").computed == 0


def test_rows_of_earlier_runs_are_read(llama):
    row = json.loads((llama / "run" / "rows.jsonl").read_text().splitlines()[0])
    del row["delta"]
    assert Row.model_validate(row).delta is None


def test_the_table_says_that_rows_are_updates_and_of_what(llama):
    board = build([open_run(llama / "run")])
    text = terminal.render(board)
    assert "Updates of ./base are edited: errors and keep targets refer to W − W_base" in text
    assert "W − W\\_base" in markdown.render(board)
    methods = {entry.row.mode: (entry.values["method"], entry.pareto) for entry in board.entries}
    assert methods["base"] == ("base", True)  # nothing keeps less


def test_the_base_is_read_in_the_fine_tuned_models_dtype(tmp_path):
    tuned_suite(tmp_path)
    loaded = load(ModelSpec(pretrained=str(tmp_path / "model"), dtype="bfloat16"), device="cpu")
    base = load_base(ModelSpec(pretrained=str(tmp_path / "base")), loaded)
    assert base.model.dtype == torch.bfloat16
    assert {piece.parameter.split(".")[-2] for piece in base.changed} == {"down_proj", "o_proj"}
    (tmp_path / "base" / "tokenizer.json").unlink()  # nothing is asked of the base
    load_base(ModelSpec(pretrained=str(tmp_path / "base")), loaded)


def test_a_broken_base_is_refused(tmp_path):
    suite = tuned_suite(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.model.layers[2].mlp.up_proj.weight[3, 4] = float("nan")
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(SuiteError, match=r"model.layers.2.mlp.up_proj.weight holds nan at \[3, 4\]"):
        run(suite, tmp_path / "run")


def exported(folder, row, form):
    target = folder / f"{form}-{row.label}-{row.cell[:6]}"
    assert main(["export", str(folder / "run"), row.cell[:12], str(target), "--format", form]) == 0
    return target


def with_adapter(folder, adapter):
    peft = pytest.importorskip("peft")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"]).eval()
    return peft.PeftModel.from_pretrained(base, adapter).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_base_and_adapter_score_what_the_row_does(family, tmp_path):
    sweep = "sweep:\n  - {mode: together, weights: [mlp.down, attn.o], rank: {rank: 1}}\n"
    run(tuned_suite(tmp_path, family, sweep), tmp_path / "run")
    rows = [row for row in open_run(tmp_path / "run").rows().values() if row.requested]
    assert {row.label for row in rows} == {"svd", "id"}
    for row in rows:
        adapter, dense = exported(tmp_path, row, "lora"), exported(tmp_path, row, "dense")
        wrapped = with_adapter(tmp_path, adapter)
        assert score(wrapped.merge_and_unload(), tmp_path) == pytest.approx(scores(row), abs=1e-5)
        model = AutoModelForCausalLM.from_pretrained(dense).eval()
        assert score(model, tmp_path) == pytest.approx(scores(row), abs=1e-5)
        torch.testing.assert_close(logits(with_adapter(tmp_path, adapter)), logits(model), rtol=1e-3, atol=1e-3)


def test_an_adapter_has_the_rows_own_factors(llama):
    from safetensors.torch import load_file

    _, _, edited = rows_of(llama / "run")
    tensors = load_file(exported(llama, edited[1], "lora") / "adapter_model.safetensors")
    for done in compute_again(open_run(llama / "run"), edited[1].cell).reductions:
        path = "base_model.model." + done.edit.weight.removesuffix(".weight")
        assert torch.equal(tensors.pop(f"{path}.lora_A.weight"), done.factors.right)
        assert torch.equal(tensors.pop(f"{path}.lora_B.weight"), done.factors.left)
    assert not tensors


def test_what_else_was_fine_tuned_goes_with_the_adapter(tmp_path):
    sweep = "sweep:\n  - {mode: layer, weights: [mlp.down], layers: [1], rank: {rank: [2]}, reducers: [svd]}\n"
    also = ["model.norm.weight", "model.layers.2.input_layernorm.weight", "model.embed_tokens.weight"]
    run(tuned_suite(tmp_path, sweep=sweep, also=also), tmp_path / "run")
    _, _, edited = rows_of(tmp_path / "run")
    adapter = exported(tmp_path, edited[2], "lora")
    wrapped = with_adapter(tmp_path, adapter)
    expected = logits(AutoModelForCausalLM.from_pretrained(exported(tmp_path, edited[2], "dense")).eval())
    torch.testing.assert_close(logits(wrapped), expected, rtol=1e-3, atol=1e-3)
    assert score(wrapped.merge_and_unload(), tmp_path) == pytest.approx(scores(edited[2]), abs=1e-5)
    from safetensors.torch import load_file

    stored = sum(tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values())
    numbers = count_parameters(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    assert stored == pytest.approx(edited[2].keep_model * numbers)


def test_a_bias_that_was_fine_tuned_with_its_weight_has_no_place_in_an_adapter(tmp_path, capsys):
    run(tuned_suite(tmp_path, "gpt2", also=["transformer.h.1.attn.c_proj.bias"]), tmp_path / "run")
    _, _, edited = rows_of(tmp_path / "run")
    arguments = ["export", str(tmp_path / "run"), edited[3].cell, str(tmp_path / "no"), "--format", "lora"]
    assert main(arguments) == 2
    assert "transformer.h.1.attn.c_proj.bias: was fine-tuned too" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_exports_that_make_no_sense_are_refused_in_one_line(llama, capsys):
    _, base, edited = rows_of(llama / "run")
    for cell, form, said in (
        (edited[3].cell, "factored", "export lora or dense"),
        (base.cell, "dense", "the base's own weights"),
    ):
        assert main(["export", str(llama / "run"), cell, str(llama / "no"), "--format", form]) == 2
        [text] = capsys.readouterr().err.strip().splitlines()
        assert said in text
    assert not (llama / "no").exists()


def test_the_card_says_of_what_it_is_an_update(llama):
    _, _, edited = rows_of(llama / "run")
    text = (exported(llama, edited[3], "lora") / "README.md").read_text()
    assert "with the updates of 8 weights from `base` replaced" in text
    assert 'from_pretrained("base")' in text
    assert "‖Δ − Δ̂‖" in text


def test_a_cell_is_not_computed_again_from_another_base(tmp_path):
    run(tuned_suite(tmp_path), tmp_path / "run")
    _, _, edited = rows_of(tmp_path / "run")
    directory = open_run(tmp_path / "run")
    assert compute_again(directory, edited[1].cell).base is not None
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.model.norm.weight.add_(1)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="bring the run's base back"):
        compute_again(directory, edited[1].cell)


def test_calibrated_methods_see_the_update_and_the_fine_tuned_models_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    words = " ".join(f"w{3 + (7 * index * index + index) % 90}" for index in range(4000))
    (tmp_path / "text.txt").write_text(words)
    sweep = "sweep:\n  - {mode: layer, weights: [mlp.down], layers: [1], rank: {rank: [1, 3]}}\n"
    suite = tuned_suite(tmp_path, sweep=sweep, calibration="{text: ./text.txt, samples: 8, length: 64}")
    suite.write_text(suite.read_text().replace("[svd, id]", "[svd, svd-llm]"))
    run(suite, tmp_path / "run")
    rows = {(row.label, row.setting): row for row in open_run(tmp_path / "run").rows().values()}
    assert {row.status for row in rows.values()} == {"ok"}
    [full], [one], [plain] = (
        rows[key].edits for key in (("svd-llm", "rank 3"), ("svd-llm", "rank 1"), ("svd", "rank 1"))
    )
    assert full.relative_error < 1e-4
    assert full.output_error < 1e-4
    assert one.output_error == pytest.approx(one.optimal_output_error, rel=2e-2)
    assert plain.relative_error < one.relative_error
    again = compute_again(open_run(tmp_path / "run"), rows["svd-llm", "rank 1"].cell)
    [done] = again.reductions
    tuned = again.loaded.model
    entering = []
    layer = tuned.model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    from lrbench.reduction.calibration.samples import draw

    samples = draw(again.suite.calibration, [words], again.loaded.tokenizer, 64)
    with torch.no_grad():
        for window in samples.windows:
            tuned(input_ids=window[None], use_cache=False)
    hook.remove()
    x = torch.cat(entering, dim=1)[0].double()
    update = (layer.weight - again.base.slot(again.cell.slots[0]).read()).double()
    lost = (x @ (update - done.factors.to(torch.float64).dense()).T).norm() / (x @ update.T).norm()
    assert one.output_error == pytest.approx(float(lost), rel=1e-4)


def test_a_base_may_be_a_bundled_name_alone(tmp_path):
    text = (
        "name: s\nmodel: {pretrained: ./model}\ntasks: [almanac_text]\nreducers: [svd]\n"
        "sweep: [{rank: {rank: 1}}]\ndelta: {base: BASE}\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "base").mkdir()
    suites = {}
    for base in ("almanac", "{name: almanac}", "./base", "{pretrained: ./base}", "org/almanac"):
        (tmp_path / "s.yaml").write_text(text.replace("BASE", base))
        suites[base] = load_suite(tmp_path / "s.yaml")
    assert suites["almanac"].delta.base.name == "almanac"
    assert suites["almanac"].hash == suites["{name: almanac}"].hash
    assert suites["./base"].hash == suites["{pretrained: ./base}"].hash
    assert suites["org/almanac"].delta.base.pretrained == "org/almanac"


def test_a_base_is_read_without_the_attention_that_it_asks_for(tmp_path):
    """It is never run, and what it would run with need not be installed here."""
    suite = tuned_suite(tmp_path)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attn_implementation": "flash_attention_2"}))
    assert run(suite, tmp_path / "out").failed == 0
