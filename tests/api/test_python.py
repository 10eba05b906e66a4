"""The Python interface: what the documentation shows runs, and what is wrong is said."""

import builtins
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lrbench
from lrbench.errors import InputError, LrbenchError
from tests.support.exports import write_family_suite
from tests.support.suites import run
from tests.support.tiny_models import tiny

REPOSITORY = Path(__file__).parents[2]
IDS = torch.tensor([[1, 5, 9, 2, 7, 3]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_the_documentations_snippets_run_in_order_and_print_what_they_say(monkeypatch, capsys):
    pytest.importorskip("pandas")
    monkeypatch.chdir(REPOSITORY)
    text = (REPOSITORY / "docs" / "python.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 6
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    shown = [line.split("# ", 1)[1] for snippet in snippets for line in snippet.splitlines() if ")  # " in line]
    assert len(shown) == 4
    for line in shown:
        assert line in printed


def test_importing_lrbench_loads_neither_torch_nor_transformers():
    code = "import sys, lrbench; lrbench.__version__; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reduce_edits_in_place_and_restores_the_same_objects():
    model = tiny("llama")
    before, weight = logits(model), model.model.layers[1].mlp.down_proj.weight
    reduced = lrbench.reduce(model, "svd", layers=1, weights="mlp.down", keep=0.5)
    assert [edit.weight for edit in reduced.edits] == ["model.layers.1.mlp.down_proj.weight"]
    factors = reduced.factors["model.layers.1.mlp.down_proj.weight"]
    assert torch.allclose(model.model.layers[1].mlp.down_proj.weight, factors.dense())
    assert reduced.keep_targets <= 0.5 < reduced.keep_model < 1
    assert not torch.equal(logits(model), before)
    reduced.restore()
    assert model.model.layers[1].mlp.down_proj.weight is weight
    assert torch.equal(logits(model), before)
    reduced.restore()  # once more does nothing


def test_reduce_gives_what_a_suite_gives(tmp_path):
    run(write_family_suite(tmp_path, "llama"), tmp_path / "run")
    for row in lrbench.read_results(tmp_path / "run"):
        if row.reducer is not None:
            with lrbench.reduce(tiny("llama"), row.reducer, keep=0.6) as reduced:
                assert [edit.relative_error for edit in reduced.edits] == pytest.approx(
                    [edit.relative_error for edit in row.edits], rel=1e-5
                )
                assert (reduced.keep_targets, reduced.keep_model) == (row.keep_targets, row.keep_model)


def test_an_error_inside_restores_too():
    model = tiny("llama")
    before = logits(model)
    with pytest.raises(AttributeError, match="weight"), lrbench.reduce(model, keep=0.3, inference="factored"):
        print(model.model.layers[0].mlp.down_proj.weight)  # a layer of factors has none
    assert torch.equal(logits(model), before)


class Halves(lrbench.Reducer):
    """The first columns, by an instance."""

    name = "halves"
    power: int = 1

    def reduce(self, weight, rank, context):
        columns = torch.arange(rank)
        return lrbench.ColumnSubset(weight[:, :rank] ** self.power, columns, in_features=weight.shape[1])


def test_a_reducer_may_be_an_instance_and_parameters_go_to_the_named_one():
    with lrbench.reduce(tiny("llama"), Halves(), weights="attn.o", rank=3) as reduced:
        assert {edit.rank for edit in reduced.edits} == {3}
    with lrbench.reduce(tiny("llama"), "id", side="columns", weights="attn.o", rank=3) as reduced:
        assert {factors.side for factors in reduced.factors.values()} == {"columns"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of keep, fraction, rank, energy, error; got none"),
        ({"keep": 0.5, "rank": 3}, "got keep, rank"),
        ({"keep": 1.5}, "above 0 and at most 1"),
        ({"keep": True}, "keep=True"),
        ({"rank": 0}, "a whole number from 1"),
        ({"rank": 2.5}, "a whole number from 1"),
        ({"keep": float("nan")}, "keep=nan"),
        ({"keep": 0.5, "reducer": "sdv"}, "did you mean 'svd'"),
        ({"keep": 0.5, "reducer": 3}, "a name or an instance"),
        ({"keep": 0.5, "reducer": Halves(), "power": 2}, "is an instance"),
        ({"keep": 0.5, "reducer": "id", "sides": "rows"}, "sides"),
        ({"keep": 0.5, "layers": 9}, "out of range"),
        ({"keep": 0.5, "layers": "lats half"}, "did you mean 'last half'"),
        ({"keep": 0.5, "weights": "mlp.dwon"}, "mlp.down"),
        ({"rank": 30, "weights": "attn.k"}, "16"),
    ],
)
def test_what_is_wrong_is_one_line_and_changes_nothing(arguments, message):
    model = tiny("llama")
    before = logits(model)
    with pytest.raises(LrbenchError, match=re.escape(message)) as raised:
        lrbench.reduce(model, **arguments)
    assert "\n" not in str(raised.value)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("format", ["dense", "factored"])
def test_a_reduced_model_is_exported_and_restored(format, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny("gpt2")
    before = logits(model)
    reduced = lrbench.reduce(model, "svd", weights=["mlp", "head"], keep=0.5)
    edited = logits(model)
    reduced.export(tmp_path / "out", format=format)
    assert torch.equal(logits(model), before)
    read = lrbench.load if format == "factored" else AutoModelForCausalLM.from_pretrained
    torch.testing.assert_close(logits(read(tmp_path / "out").eval()), edited, rtol=1e-3, atol=1e-3)
    assert "It was not scored." in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="dense, factored, lora"):
        reduced.export(tmp_path / "more", format="onnx")


@pytest.mark.slow
def test_a_frame_has_a_line_for_each_row_and_a_column_for_each_score(tmp_path):
    pytest.importorskip("pandas")
    run(write_family_suite(tmp_path, "llama", measure="inference"), tmp_path / "run")
    results = lrbench.read_results(tmp_path / "run")
    frame = results.to_pandas()
    assert len(frame) == len(results) == 3
    assert frame["which/acc"].tolist() == [row.scores["which"]["acc"].value for row in results]
    assert frame["method"].tolist()[1:] == ["svd", "id"]
    assert frame["params.side"].tolist()[2] == "auto"
    assert frame["rank_kind"].tolist()[1:] == ["keep", "keep"]
    assert (frame["inference/factored/batch8/decode_tokens_per_second"].dropna() > 0).sum() == 2


def test_without_pandas_the_rows_are_there_and_a_frame_is_refused_in_one_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    results = lrbench.read_results(REPOSITORY / "results" / "published" / "quickstart")
    assert results[0].reducer is None
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install"):
        results.to_pandas()


def test_where_there_is_no_run_it_is_said(tmp_path):
    with pytest.raises(InputError, match="no run here"):
        lrbench.read_results(tmp_path)


def test_edits_of_one_weight_are_restored_in_reverse_order_and_not_otherwise():
    model = tiny("llama")
    weight = model.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    first = lrbench.reduce(model, "svd", rank=4, layers=1, weights="mlp.down")
    second = lrbench.reduce(model, "id", rank=2, layers=1, weights="mlp.down")
    with pytest.raises(InputError, match="later edit of the same weights"):
        first.restore()
    second.restore()
    first.restore()
    first.restore()
    assert model.model.layers[1].mlp.down_proj.weight is weight
    assert torch.equal(weight, kept)
    with pytest.raises(InputError, match="has been restored"):
        first.export("nowhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": "0.5"}, "keep='0.5': must be one number"),
        ({"keep": [0.5, 0.25]}, "one number"),
        ({"keep": 0.5, "inference": "foo"}, "inference='foo': choose one of dense, factored"),
        ({"keep": 0.5, "seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"keep": 0.5, "plugins": "nope.py"}, "nope.py: no such plugin file"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(arguments, words):
    with pytest.raises(InputError, match=re.escape(words)):
        lrbench.reduce(tiny("llama"), "svd", **arguments)
    with pytest.raises(InputError, match="a transformers model"):
        lrbench.reduce("almanac", "svd", keep=0.5)


def test_numbers_of_numpy_and_iterables_of_layers_are_taken():
    model = tiny("llama")
    edits = {}
    for name, layers, options in (
        ("plain", [0, 1], {"rank": 4, "oversample": 8, "seed": 3}),
        ("numpy", np.array([0, 1]), {"rank": np.int64(4), "oversample": np.int32(8), "seed": np.uint8(3)}),
        ("range", range(2), {"rank": torch.tensor(4), "oversample": 8, "seed": 3}),
        ("generator", (layer for layer in (np.int64(1), 0)), {"rank": 4, "oversample": 8, "seed": 3}),
        ("tensor", torch.arange(2), {"rank": 4, "oversample": 8, "seed": 3}),
    ):
        with lrbench.reduce(model, "rsvd", layers=layers, weights="mlp.down", **options) as reduced:
            edits[name] = [(edit.weight, edit.rank, edit.relative_error) for edit in reduced.edits]
    assert len(edits["plain"]) == 2
    assert all(edit == edits["plain"] for edit in edits.values())
    with lrbench.reduce(model, keep=np.float32(0.5), layers=np.int64(1), weights="mlp.down") as reduced:
        assert [edit.weight for edit in reduced.edits] == ["model.layers.1.mlp.down_proj.weight"]
    for wrong in ({"rank": np.float64(4)}, {"rank": np.array([4, 5])}, {"rank": True}, {"rank": np.bool_(True)}):
        with pytest.raises(InputError, match="rank="):
            lrbench.reduce(model, "svd", **wrong)
    for layers in (True, [True], [0.5], np.array([0.5]), range(0)):
        with pytest.raises(InputError, match="layers"):
            lrbench.reduce(model, "svd", rank=1, layers=layers)


def test_a_weight_that_runs_on_factors_is_not_reduced_once_more():
    model = tiny("llama")
    before = logits(model)
    with lrbench.reduce(model, "svd", rank=4, layers=1, weights="mlp", inference="factored"):
        during = logits(model)
        for weights in ("mlp.down", "all"):
            with pytest.raises(InputError, match=r"_proj.weight.* runs? on factors of an earlier edit.*restore\(\)"):
                lrbench.reduce(model, "id", rank=2, layers=[0, 1], weights=weights)
        with lrbench.reduce(model, "id", rank=2, layers=0, weights="mlp"):
            assert not torch.equal(logits(model), during)
        assert torch.equal(logits(model), during)
    assert torch.equal(logits(model), before)
    with (
        lrbench.reduce(model, "svd", rank=4, layers=1, weights="mlp.down"),
        lrbench.reduce(model, "id", rank=2, layers=1, weights="mlp.down", inference="factored") as second,
    ):
        assert second.edits[0].rank == 2
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", ["svd-llm", "asvd", "fwsvd", "nystrom"])
def test_a_calibrated_method_is_refused_with_the_way_to_it(name):
    with pytest.raises(InputError, match=f"{name} needs calibration .*run it in a suite with `calibration`"):
        lrbench.reduce(tiny("llama"), name, keep=0.5)
    text = " ".join((REPOSITORY / "docs" / "python.md").read_text().split())
    assert "Methods that need calibration (`lrbench plugins show NAME` says so) are refused" in text


def test_where_there_is_nothing_to_load_it_is_said(tmp_path):
    with pytest.raises(
        InputError, match="nope: no such folder; give one that `lrbench export --format factored` wrote"
    ):
        lrbench.load(tmp_path / "nope")
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(InputError, match=r"file\.json: a file; give the folder of a factored export, "):
        lrbench.load(tmp_path / "file.json")
    with pytest.raises(InputError, match="a dense export is loaded by AutoModelForCausalLM"):
        lrbench.load(tmp_path)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_model_changed_after_it_was_reduced_is_not_exported(name, tmp_path):
    model = tiny("llama")
    reduced = lrbench.reduce(model, "svd", layers=1, weights="mlp.down", keep=0.5)
    with torch.no_grad():
        model.get_parameter(name).mul_(2)
    with pytest.raises(InputError, match=f"^{name} was changed after the model was reduced.*reduce again$"):
        reduced.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    reduced.restore()
    again = lrbench.reduce(model, "svd", layers=1, weights="mlp.down", keep=0.5)
    during = logits(model)
    again.export(tmp_path / "out", format="factored")
    torch.testing.assert_close(logits(lrbench.load(tmp_path / "out")), during, rtol=1e-3, atol=1e-3)


def test_a_module_replaced_after_the_reduction_is_not_exported(tmp_path):
    model = tiny("llama")
    with lrbench.reduce(model, "svd", layers=1, weights="mlp.down", keep=0.5) as reduced:
        model.model.norm = type(model.model.norm)(model.config.hidden_size)
        with pytest.raises(InputError, match=r"model\.norm\.weight was changed"):
            reduced.export(tmp_path / "out", format="factored")
