"""Edited models out: dense, factored, as an adapter; what is exported is the cell that was scored."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import lrbench
from lrbench.cli import main
from lrbench.errors import ModelError
from lrbench.export import card
from lrbench.export.description import Description
from lrbench.export.load import load
from lrbench.reducers.factors.layer import FactoredLinear
from lrbench.results.directory import open_run
from tests.support.exports import OTHERS, lm_eval_says, write_family_suite
from tests.support.slow_cases import slow_cases
from tests.support.suites import MISBEHAVING, run
from tests.support.tiny_models import FAMILIES

#: Names of tests.support.tiny_models.FAMILIES and tests.support.exports.OTHERS; more may join.
ARCHITECTURES = [
    *("llama", "gpt2", "gpt_neox", "gptj", "opt", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mistral"),
    *("falcon_rotary", "bloom", "mixtral", *OTHERS),
]
IDS = torch.tensor([[1, 5, 9, 2, 7, 3, 11, 50]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def edited_rows(folder):
    return [row for row in open_run(folder).rows().values() if row.reducer is not None]


def exported(folder, row, form, capsys=None):
    target = folder / f"{form}-{row.label}"
    assert main(["export", str(folder / "run"), row.cell[:12], str(target), "--format", form]) == 0
    return target


def bytes_of_weights(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a run of svd and id over all weights of a tiny Llama, and the rows by label."""
    folder = tmp_path_factory.mktemp("llama")
    run(write_family_suite(folder, "llama"), folder / "run")
    return folder, {row.label: row for row in edited_rows(folder / "run")}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in {"llama", "gpt2", "gemma2", "bloom", "mixtral"} else pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_lm_eval_on_both_exports_gives_the_rows_numbers(family, tmp_path):
    run(write_family_suite(tmp_path, family), tmp_path / "run")
    rows = edited_rows(tmp_path / "run")
    assert [row.status for row in rows] == ["ok", "ok"]
    for row in rows:
        scores = {metric: score.value for metric, score in row.scores["which"].items()}
        dense, factored = exported(tmp_path, row, "dense"), exported(tmp_path, row, "factored")
        assert bytes_of_weights(factored) < bytes_of_weights(dense)
        plain = AutoModelForCausalLM.from_pretrained(dense).eval()
        model = load(factored)
        torch.testing.assert_close(logits(model), logits(plain), rtol=1e-3, atol=1e-3)
        for each, folder in ((plain, dense), (model, factored)):
            lm = HFLM(pretrained=each, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=32)
            assert lm_eval_says(tmp_path / "tasks", model=lm) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("weight", ["head", "embed"])
def test_one_of_a_tied_pair_is_edited_in_the_export_too_and_the_other_is_not(weight, tmp_path):
    sweep = f"sweep:\n  - {{weights: [{weight}], rank: {{keep: 0.5}}, reducers: [svd]}}\n"
    run(write_family_suite(tmp_path, "gpt2", sweep), tmp_path / "run")
    [row] = edited_rows(tmp_path / "run")
    scores = {metric: score.value for metric, score in row.scores["which"].items()}
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert original.config.tie_word_embeddings
    for form, read in (("dense", AutoModelForCausalLM.from_pretrained), ("factored", load)):
        folder = exported(tmp_path, row, form)
        model = read(folder)
        lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=32)
        assert not model.config.tie_word_embeddings
        assert lm_eval_says(tmp_path / "tasks", model=lm) == pytest.approx(scores, abs=1e-5)
        other = model.transformer.wte if weight == "head" else model.lm_head
        assert torch.equal(other.weight, original.lm_head.weight)
    assert isinstance(model.lm_head, FactoredLinear) == (weight == "head")


def test_a_dense_export_changes_nothing_but_the_edited_weights(llama):
    folder, rows = llama
    before = AutoModelForCausalLM.from_pretrained(folder / "model")
    after = AutoModelForCausalLM.from_pretrained(exported(folder, rows["svd"], "dense"))
    assert before.config.to_diff_dict().keys() == after.config.to_diff_dict().keys()
    edited = {edit.weight for edit in rows["svd"].edits}
    state = after.state_dict()
    different = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, state[name])}
    assert different == edited


def test_the_card_holds_the_rows_figures_and_how_it_was_made(llama):
    folder, rows = llama
    text = (exported(folder, rows["id"], "factored") / "README.md").read_text()
    assert f"{rows['id'].scores['which']['brier_score'].value:.6g}" in text
    assert f"lrbench export run {rows['id'].cell[:10]} DIR --format factored" in text
    assert "requested: keep 0.6; seed 0" in text
    assert "- mode: together" in text
    assert all(edit.weight in text for edit in rows["id"].edits)
    assert "that model's licence applies" in text
    assert str(folder) not in text
    assert card.LOAD_PLAIN not in text  # an interpolative decomposition is no pair of linear layers


def test_a_factored_export_describes_each_weight_and_holds_no_pickle(llama):
    folder, rows = llama
    target = folder / "factored-id"
    if not target.exists():
        exported(folder, rows["id"], "factored")
    about = Description.read(target)
    assert {weight.weight for weight in about.weights} == {edit.weight for edit in rows["id"].edits}
    assert all((weight.factors, weight.runs_as) == ("Interpolative", "factors") for weight in about.weights)
    assert not about.plain
    assert about.row == rows["id"]
    assert {file.suffix for file in target.iterdir()} == {".safetensors", ".json", ".md"}
    model = load(target)
    assert sum(isinstance(module, FactoredLinear) for module in model.modules()) == len(about.weights)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(target)


@pytest.mark.parametrize("family", ["llama", *slow_cases("gpt2")])
def test_a_low_rank_export_is_loaded_by_torch_and_transformers_alone_as_its_card_says(family, tmp_path):
    sweep = "sweep:\n  - {mode: together, weights: [mlp, attn.o], rank: {keep: 0.6}, reducers: [svd]}\n"
    run(write_family_suite(tmp_path, family, sweep), tmp_path / "run")
    [row] = edited_rows(tmp_path / "run")
    target = exported(tmp_path, row, "factored")
    code = (target / "README.md").read_text().split("without lrbench:\n\n```python\n")[1].split("```")[0]
    code = code.replace('"DIR"', repr(str(target))) + (
        "import sys, torch\n"
        f"found = model(torch.tensor({IDS.tolist()})).logits\n"
        "assert 'lrbench' not in sys.modules\n"
        f"torch.save(found.detach(), {str(tmp_path / 'found.pt')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    torch.testing.assert_close(found, logits(load(target)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_that_takes_little_away_is_an_adapter_that_peft_loads(family, tmp_path):
    peft = pytest.importorskip("peft")
    sweep = "sweep:\n  - {mode: together, weights: [mlp, attn.o], rank: {fraction: 0.8}, reducers: [svd]}\n"
    run(write_family_suite(tmp_path, family, sweep), tmp_path / "run")
    [row] = edited_rows(tmp_path / "run")
    adapter, dense = exported(tmp_path, row, "lora"), exported(tmp_path, row, "dense")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    before = logits(base)
    wrapped = peft.PeftModel.from_pretrained(base, adapter).eval()
    expected = logits(AutoModelForCausalLM.from_pretrained(dense).eval())
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(logits(wrapped), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(wrapped.merge_and_unload()), expected, rtol=1e-3, atol=1e-3)


def test_an_adapter_may_have_another_rank_in_each_layer(tmp_path):
    peft = pytest.importorskip("peft")
    from lrbench.export.peft_adapter import write_lora
    from tests.support.tiny_models import tiny

    torch.manual_seed(0)
    model = tiny("llama")
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)]
    updates = {
        name: (torch.randn(rank, 48), torch.randn(32, rank)) for name, rank in zip(names, (1, 5, 3), strict=True)
    }
    write_lora(tmp_path, updates, "base")
    wrapped = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path).eval()
    for name, (A, B) in updates.items():
        model.get_parameter(name).add_(B @ A)
    torch.testing.assert_close(logits(wrapped), logits(model), rtol=1e-3, atol=1e-3)


def test_an_edit_of_high_rank_is_refused_as_an_adapter_in_one_line(llama, capsys):
    folder, rows = llama
    line = refusal(capsys, folder / "run", rows["svd"].cell, folder / "no", "--format", "lora")
    assert "lora is for low-rank updates" in line
    assert not (folder / "no").exists()


def refusal(capsys, *arguments) -> str:
    """The one line with which an export is refused, after those that tell of its steps."""
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    *steps, line = capsys.readouterr().err.splitlines()
    assert not [step for step in steps if step.startswith("lrbench: ") or "Traceback" in step]
    return line


def test_an_unknown_cell_of_many_lists_a_few_and_says_what_lists_all(tmp_path, capsys):
    sweep = "sweep:\n  - {mode: each, weights: [attn], rank: {keep: 0.5}}\n"
    run(write_family_suite(tmp_path, "llama", sweep), tmp_path / "run")
    rows = edited_rows(tmp_path / "run")
    line = refusal(capsys, tmp_path / "run", "zzzz", tmp_path / "no")
    assert sum(row.cell[:10] in line for row in rows) == 5 < len(rows)
    assert line.endswith(f" and {len(rows) - 5} more; `lrbench leaderboard {tmp_path / 'run'} --format csv` lists them")
    assert main(["leaderboard", str(tmp_path / "run"), "--format", "csv"]) == 0
    listed = capsys.readouterr().out
    assert all(row.cell in listed for row in rows)


def test_a_file_of_a_run_is_not_taken_for_the_run(llama, capsys):
    folder, rows = llama
    line = refusal(capsys, folder / "run" / "rows.jsonl", rows["svd"].cell, folder / "no")
    assert line.endswith(f"rows.jsonl: a file; give the run's directory, {folder / 'run'}")


def test_an_unknown_or_ambiguous_cell_lists_those_there_are(llama, capsys):
    folder, rows = llama
    line = refusal(capsys, folder / "run", "zz", folder / "no")
    assert "no cell begins with 'zz'" in line
    assert all(row.cell[:10] in line for row in rows.values())
    assert "3 cells begin with ''" in refusal(capsys, folder / "run", "", folder / "no")


def test_the_baseline_and_failed_cells_are_not_exported(tmp_path, capsys):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_family_suite(tmp_path, "llama")
    run(suite, tmp_path / "run", plugin, overrides=["reducers=[raises]", "sweep.0.reducers=null"])
    rows = {row.label: row for row in open_run(tmp_path / "run").rows().values()}
    assert "is the baseline" in refusal(capsys, tmp_path / "run", rows[None].cell, tmp_path / "no")
    assert "is failed" in refusal(capsys, tmp_path / "run", rows["raises"].cell, tmp_path / "no")


def test_a_folder_that_holds_something_is_refused_before_anything_is_computed(llama, capsys):
    folder, rows = llama
    occupied = folder / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("mine")
    assert "already exists" in refusal(capsys, folder / "run", rows["svd"].cell, occupied)
    assert (occupied / "thesis.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing_behind(llama, monkeypatch, capsys):
    folder, rows = llama

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lrbench.export.factored.save_file", full)
    assert "No space left on device" in refusal(
        capsys, folder / "run", rows["svd"].cell, folder / "full", "--format", "factored"
    )
    assert not [path for path in folder.iterdir() if "full" in path.name]


def test_the_models_weights_must_be_those_of_the_run(tmp_path, capsys):
    run(write_family_suite(tmp_path, "llama"), tmp_path / "run")
    row = edited_rows(tmp_path / "run")[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "model")
    assert "its weights (SHA-256) is" in refusal(capsys, tmp_path / "run", row.cell, tmp_path / "no")


PLUGIN = '''
import lrbench


class First(lrbench.Reducer):
    """The first columns."""

    name = "first"

    def reduce(self, weight, rank, context):
        columns = {columns}
        return lrbench.ColumnSubset(weight[:, columns].clone(), columns, in_features=weight.shape[1])


import torch


@lrbench.hookimpl
def lrbench_reducers():
    return [First]
'''


def test_a_plugins_cell_is_exported_from_the_run_alone_unless_the_plugin_was_changed(tmp_path, capsys, monkeypatch):
    plugin = tmp_path / "first.py"
    plugin.write_text(PLUGIN.replace("{columns}", "torch.arange(rank)"))
    suite = write_family_suite(tmp_path, "llama")
    run(suite, tmp_path / "run", plugin, overrides=["reducers=[first]"])
    [row] = edited_rows(tmp_path / "run")
    suite.unlink()
    monkeypatch.chdir("/")
    exported(tmp_path, row, "factored")
    capsys.readouterr()
    arguments = [tmp_path / "run", row.cell, tmp_path / "other"]
    assert main(["export", *map(str, arguments[:2]), str(tmp_path / "said")]) == 0
    assert f"{tmp_path / 'run'}: runs the code in {plugin}" in capsys.readouterr().err
    plugin.write_text(PLUGIN.replace("{columns}", "torch.arange(rank) + 0"))
    assert "its code, or lrbench's, is not that of the run" in refusal(capsys, *arguments)
    plugin.write_text(PLUGIN.replace("{columns}", "torch.arange(rank) + 1"))
    assert "in the row it is" in refusal(capsys, *arguments, "--other-code")
    plugin.write_text(PLUGIN.replace("{columns}", "torch.arange(rank) + 0"))
    assert main(["export", *map(str, arguments), "--other-code"]) == 0


def test_what_is_no_factored_export_is_refused_in_one_line(llama, tmp_path):
    folder, rows = llama
    with pytest.raises(lrbench.errors.InputError, match="from_pretrained"):
        load(folder / "model")
    target = tmp_path / "torn"
    shutil.copytree(_some(folder, rows), target)
    about = json.loads((target / "lrbench.json").read_text())
    (target / "lrbench.json").write_text(json.dumps({**about, "schema": 2}))
    with pytest.raises(lrbench.errors.InputError, match=r"lrbench.json: not a factored model: schema"):
        load(target)
    about["weights"][0]["shape"] = [1, 1]
    about["weights"][0]["tensors"]["left"] = about["weights"][1]["tensors"]["left"]
    (target / "lrbench.json").write_text(json.dumps(about))
    with pytest.raises(lrbench.errors.InputError, match="its files are inconsistent"):
        load(target)
    (target / "factored.safetensors").write_bytes(b"not tensors")
    with pytest.raises(lrbench.errors.InputError, match="not a safetensors file"):
        load(target)


def _some(folder, rows):
    target = folder / "factored-svd"
    return target if target.exists() else exported(folder, rows["svd"], "factored")


@pytest.mark.parametrize(("family", "weights"), [("gpt2", "attn.q"), ("mixtral", "mlp.gate"), ("bloom", "attn.v")])
def test_parts_of_a_parameter_are_stored_apart_where_one_is_edited(family, weights, tmp_path):
    sweep = f"sweep:\n  - {{mode: together, weights: [{weights}], rank: {{keep: 0.3}}, reducers: [svd]}}\n"
    run(write_family_suite(tmp_path, family, sweep), tmp_path / "run")
    [row] = edited_rows(tmp_path / "run")
    dense, factored = exported(tmp_path, row, "dense"), exported(tmp_path, row, "factored")
    about = Description.read(factored)
    assert {weight.weight for weight in about.weights if weight.edited} == {edit.weight for edit in row.edits}
    assert {weight.factors for weight in about.weights if not weight.edited} == {"Dense"}
    assert {weight.runs_as for weight in about.weights} == {"matrix"}
    assert not about.plain
    saved = sum(4 * (edit.shape[0] * edit.shape[1] - edit.stored_numbers) for edit in row.edits)
    assert bytes_of_weights(dense) - bytes_of_weights(factored) > 0.5 * saved
    model = load(factored)
    torch.testing.assert_close(logits(model), logits(AutoModelForCausalLM.from_pretrained(dense).eval()))


def test_large_exports_are_sharded_with_an_index(llama, monkeypatch):
    folder, rows = llama
    monkeypatch.setattr("lrbench.export.factored.SHARD", "20KB")
    target = folder / "shards"
    assert main(["export", str(folder / "run"), rows["svd"].cell, str(target), "--format", "factored"]) == 0
    assert len(list(target.glob("factored-*.safetensors"))) > 2
    index = json.loads((target / "factored.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in target.glob("factored-*.safetensors")}
    torch.testing.assert_close(logits(load(target)), logits(load(_some(folder, rows))))


def test_half_precision_survives_the_round_trip(tmp_path):
    sweep = "sweep:\n  - {mode: together, weights: [mlp], rank: {keep: 0.6}}\n"
    run(write_family_suite(tmp_path, "llama", sweep), tmp_path / "run", overrides=["model.dtype=bfloat16"])
    for row in edited_rows(tmp_path / "run"):
        model = load(exported(tmp_path, row, "factored"))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        plain = AutoModelForCausalLM.from_pretrained(exported(tmp_path, row, "dense"))
        assert plain.dtype == torch.bfloat16
        torch.testing.assert_close(logits(model), logits(plain), rtol=0.1, atol=0.5)


def test_the_exported_families_are_supported_ones():
    assert set(ARCHITECTURES) <= {*FAMILIES, *OTHERS}


def test_an_export_that_asks_for_a_kernel_of_the_hub_is_refused(llama, tmp_path):
    folder, rows = llama
    done, target = folder / "factored-svd", tmp_path / "export"
    shutil.copytree(done if done.exists() else exported(folder, rows["svd"], "factored"), target)
    file = target / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attn_implementation": "org/kernel"}))
    with pytest.raises(ModelError, match="needs the kernel org/kernel of the hub"):
        load(target)
