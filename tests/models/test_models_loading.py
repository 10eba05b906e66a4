"""What a suite can say of a model: checkpoints, random weights, adapters, devices, repositories' own code."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lrbench.cli import main
from lrbench.errors import ModelError
from lrbench.models import load as loading
from lrbench.models.edit import edited
from lrbench.models.load import bundled, load, load_structure
from lrbench.models.slot_search import find_slots
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import ModelSpec, load_suite
from lrbench.system import device
from tests.support.architectures import COMMON, LLAMA

TINY = {**LLAMA, "vocab_size": 2048, "model_type": "llama"}


def random(**changes):
    return ModelSpec(config={**TINY, **changes})


def refusal(spec, **options):
    with pytest.raises(ModelError) as caught:
        load(spec, device=None if spec.device_map else "cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def checkpoint(folder, **changes):
    """A folder with a tiny model and its tokenizer."""
    settings = {key: value for key, value in {**TINY, **changes}.items() if key != "model_type"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled()["almanac"]).save_pretrained(folder)
    return model


# --- random weights


def test_random_weights_are_those_of_their_seed_whatever_was_drawn_before():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load(random(), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, explicit = load(random(), device="cpu"), load(ModelSpec(config=TINY, seed=0), device="cpu")
    other = load(ModelSpec(config=TINY, seed=1), device="cpu")
    assert first.weight_hash == again.weight_hash == explicit.weight_hash != other.weight_hash
    assert first.config_hash == other.config_hash
    assert first.label == "random llama"
    assert first.source["config"] == TINY
    assert first.source["seed"] == 0
    assert first.dtype == torch.float32
    assert load(ModelSpec(config=TINY, dtype="bfloat16"), device="cpu").dtype == torch.bfloat16
    assert len(first.tokenizer) <= TINY["vocab_size"]


def test_a_configuration_may_stand_in_a_file_a_folder_or_a_bundled_model(tmp_path):
    AutoConfig.for_model(**TINY).save_pretrained(tmp_path)
    hashes = {
        load(ModelSpec(config=str(where)), device="cpu").weight_hash for where in (tmp_path, tmp_path / "config.json")
    }
    assert hashes == {load(random(), device="cpu").weight_hash}
    almanac = load(ModelSpec(config="almanac", seed=2), device="cpu")
    real = load(ModelSpec(name="almanac"), device="cpu")
    assert [slot.about for slot in almanac.inventory.slots] == [slot.about for slot in real.inventory.slots]
    assert almanac.weight_hash != real.weight_hash


def test_a_suite_names_a_configuration_beside_it(tmp_path):
    AutoConfig.for_model(**TINY).save_pretrained(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "models: [{config: config.json, seed: 3}, {config: {model_type: llama, hidden_size: 8}}]\n"
        "tasks: [almanac_facts]\nreducers: [svd]\nsweep: [{rank: {keep: 0.5}}]\n"
    )
    suite = load_suite(tmp_path / "s.yaml")
    assert [model.display_name for model in suite.models] == ["random config.json", "random llama"]
    assert suite.resolved()["models"][0]["config"] == "config.json"
    assert load(suite.models[0], device="cpu").source["config"] == "config.json"
    moved = load_suite(tmp_path / "s.yaml", ["models.0.config=" + str(tmp_path / "config.json")])
    assert moved.hash != suite.hash


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "unknown model_type 'lama'; did you mean 'llama'?"),
        ({**TINY, "hiden_size": 8}, "its configuration has no 'hiden_size'; did you mean 'hidden_size'?"),
        ({**TINY, "hidden_size": "wide"}, "a random llama: cannot be loaded: "),
        (
            {**TINY, "vocab_size": 100},
            "its vocabulary of 100 is too small for the 2048 tokens of almanac; give a larger",
        ),
        ({"model_type": "t5"}, "t5 is an encoder with a decoder, not a causal language model"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": "xlm", "emb_dim": 64, "n_layers": 2, "n_heads": 4}, "depends on later tokens"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(config, message):
    assert message in refusal(ModelSpec(config=config))


ENCODER = {**COMMON, "vocab_size": 2048, "intermediate_size": 64}


@pytest.mark.parametrize("kind", ["bert", "roberta", "rembert", "electra"])
def test_an_encoder_that_passes_for_a_language_model_is_refused_before_its_weights(kind):
    spec = ModelSpec(config={**ENCODER, "model_type": kind})
    for read in (load_structure, load):
        with pytest.raises(
            ModelError, match=f"{kind} with `is_decoder: false` is an encoder.*write `is_decoder: true`"
        ):
            read(spec)
    decoder = ModelSpec(config={**ENCODER, "model_type": kind, "is_decoder": True})
    assert len(load_structure(decoder).slots) == len(load(decoder, device="cpu").inventory.slots) > 0


def test_a_checkpoint_of_an_encoder_is_refused_and_one_of_its_decoder_is_not(tmp_path):
    for folder, changes in (("encoder", {}), ("decoder", {"is_decoder": True})):
        config = AutoConfig.for_model("bert", **ENCODER, **changes)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / folder)
        AutoTokenizer.from_pretrained(bundled()["almanac"]).save_pretrained(tmp_path / folder)
    encoder = ModelSpec(pretrained=str(tmp_path / "encoder"))
    assert "is an encoder" in refusal(encoder)
    assert "name a checkpoint that was trained from left to right" in refusal(encoder)
    with pytest.raises(ModelError, match="is an encoder"):
        load_structure(encoder)
    assert load(ModelSpec(pretrained=str(tmp_path / "decoder")), device="cpu").inventory.slots


def test_a_remnant_of_a_switch_does_not_make_an_encoder_of_a_decoder():
    assert load_structure(ModelSpec(config={**COMMON, "model_type": "gpt_neox", "is_decoder": False})).slots
    assert load_structure(random(is_decoder=False, add_cross_attention=False)).slots


def test_a_setting_by_an_older_name_is_taken():
    assert load(random(rope_theta=123.0), device="cpu").config_hash != load(random(), device="cpu").config_hash


# --- checkpoints


def test_a_checkpoint_with_gaps_is_refused_rather_than_filled_with_random_numbers(tmp_path):
    checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert "the checkpoint has no model.layers.1.mlp.down_proj.weight and 2 more" in refusal(
        ModelSpec(pretrained=str(tmp_path))
    )


def test_what_does_not_go_together_with_a_folder_is_refused(tmp_path):
    checkpoint(tmp_path)
    spec = {"pretrained": str(tmp_path)}
    assert "a folder has no revisions" in refusal(ModelSpec(**spec, revision="main"))
    assert "nonsense" in refusal(ModelSpec(**spec, attn_implementation="nonsense"))
    assert "not a local folder" in refusal(ModelSpec(**spec, tokenizer="someone/nothing"))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds a PEFT adapter; name its base under 'pretrained'" in refusal(ModelSpec(**spec))


def test_the_suites_tokenizer_stands_in_for_one_that_is_not_there(tmp_path):
    checkpoint(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refusal(ModelSpec(pretrained=str(tmp_path)))
    loaded = load(ModelSpec(pretrained=str(tmp_path), tokenizer="almanac"), device="cpu")
    assert loaded.source["tokenizer"] == "almanac"
    assert len(loaded.tokenizer) == 2048


def test_the_attention_asked_for_is_the_one_that_runs():
    loaded = load(ModelSpec(name="almanac", attn_implementation="eager"), device="cpu")
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.source["attn_implementation"] == "eager"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RevisionNotFoundError, "a/b: the Hugging Face hub has no revision 'v9' of it"),
        (
            RepositoryNotFoundError,
            "a/b: not a local folder, and the Hugging Face hub has no such model, or not for you",
        ),
        (GatedRepoError, "a/b: gated on the Hugging Face hub; accept its terms at https://huggingface.co/a/b"),
    ],
)
def test_what_the_hub_answers_is_told_apart(monkeypatch, error, message):
    def answer(*args, **kwargs):
        raise error("404\nnot here", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", answer)
    assert message in refusal(ModelSpec(pretrained="a/b", revision="v9"))


def test_the_commit_that_a_revision_led_to_is_recorded(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--a--b"
    checkpoint(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = load(ModelSpec(pretrained="a/b"), device="cpu")
    assert loaded.source == {"pretrained": "a/b", "revision": None, "commit": commit}
    assert load(ModelSpec(pretrained="a/b", revision="main"), device="cpu").source["commit"] == commit
    assert "commit" not in load(ModelSpec(name="almanac"), device="cpu").source


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    message = refusal(ModelSpec(pretrained="someone/a-model", revision="v9"))
    assert message.startswith("someone/a-model at revision v9: not a local folder, and the Hugging Face hub cannot be")


# --- memory and devices


def test_a_model_that_memory_will_not_do_is_refused_before_it_is_read(monkeypatch, tmp_path):
    model = checkpoint(tmp_path)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "model.safetensors").unlink()  # nothing is read
    monkeypatch.setattr(device, "free_bytes", lambda device: 2**18)
    message = refusal(ModelSpec(pretrained=str(tmp_path), dtype="bfloat16"))
    assert (
        f"its {numbers:,} parameters take {2 * numbers / 2**20:.1f} MiB in bfloat16, "
        "and cpu has 0.2 MiB free" in message
    )
    assert f"{4 * numbers / 2**20:.1f} MiB in float32" in refusal(ModelSpec(pretrained=str(tmp_path)))
    monkeypatch.setattr(device, "free_bytes", lambda device: 2 * numbers)
    assert "not stored as safetensors" in refusal(ModelSpec(pretrained=str(tmp_path), dtype="bfloat16"))


@pytest.mark.parametrize("device_map", ["auto", "balanced", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_a_device_map_places_the_same_model(device_map, tmp_path):
    if torch.cuda.is_available() and isinstance(device_map, str):
        pytest.skip("the GPU's tests do this")
    checkpoint(tmp_path)
    plain = load(ModelSpec(pretrained=str(tmp_path)), device="cpu")
    mapped = load(ModelSpec(pretrained=str(tmp_path), device_map=device_map))
    assert mapped.weight_hash == plain.weight_hash
    assert mapped.device == torch.device("cpu")
    assert mapped.source["device_map"] == device_map
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(mapped.model(tokens).logits, plain.model(tokens).logits)
    told = load(ModelSpec(pretrained=str(tmp_path), device_map={"": "cuda:7"}), device="cpu")  # the command line wins
    assert "device_map" not in told.source


def test_a_device_map_that_puts_weights_aside_is_refused(tmp_path):
    checkpoint(tmp_path)
    spec = ModelSpec(pretrained=str(tmp_path), device_map={"model": "cpu", "lm_head": "disk"})
    assert "weights on 'disk' come and go, and cannot be edited" in refusal(spec)
    assert "cuda:93" in refusal(ModelSpec(pretrained=str(tmp_path), device_map={"": 93}))
    source = loading.find(ModelSpec(name="almanac"), trust_remote_code=False)
    with pytest.raises(ModelError, match=r"does not fit its devices: .* were offloaded"):
        loading._refuse_offloaded(source, loading.structure(source))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu_a_device_map_places_the_same_model_or_says_what_was_put_aside(tmp_path):
    checkpoint(tmp_path)
    plain = load(ModelSpec(pretrained=str(tmp_path)), device="cuda")
    for device_map in ("auto", {"": 0}, {"model": "cuda:0", "lm_head": 0}):
        mapped = load(ModelSpec(pretrained=str(tmp_path), device_map=device_map))
        assert mapped.weight_hash == plain.weight_hash
        assert mapped.device.type == "cuda"
    assert "offloaded" in refusal(ModelSpec(pretrained=str(tmp_path), device_map={"model": 0, "lm_head": "cpu"}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi3", "mixtral"])
def test_on_the_gpu_slots_are_edited_where_they_are(kind, dtype):
    settings = {**TINY, "intermediate_size": 32, "model_type": kind}
    loaded = load(ModelSpec(config=settings, dtype=dtype), device="cuda")
    tokens = torch.arange(3, 12, device="cuda")[None]
    plain, before = loaded.model(tokens).logits, loading.weight_hash(loaded.model)
    for slot in loaded.inventory.slots:
        assert slot.read().device.type == "cuda"
        with edited({slot: slot.read().clone()}):
            assert torch.equal(loaded.model(tokens).logits, plain), slot.name
    assert loading.weight_hash(loaded.model) == before == loaded.weight_hash


# --- adapters


def adapter(folder, base, **changes):
    """A LoRA adapter of a model like `base`, with random numbers; the weights its merge should give."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **changes}
    wrapped = get_peft_model(base, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.save_pretrained(folder)
    merged = {}
    for name, module in wrapped.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            change = 6 / 2 * module.lora_B["default"].weight @ module.lora_A["default"].weight
            merged[f"{name}.weight"] = (module.base_layer.weight + change).detach()
    return merged


def test_an_adapter_is_merged_into_the_weights_and_is_part_of_the_models_identity(tmp_path):
    merged = adapter(tmp_path / "lora", checkpoint(tmp_path / "base"))
    plain = load(ModelSpec(pretrained=str(tmp_path / "base")), device="cpu")
    spec = ModelSpec(pretrained=str(tmp_path / "base"), adapter=str(tmp_path / "lora"))
    loaded = load(spec, device="cpu")
    assert type(loaded.model) is type(plain.model)
    assert loaded.weight_hash != plain.weight_hash
    assert loaded.source["adapter"] == str(tmp_path / "lora")
    assert len(merged) == 4
    before = {slot.name: slot.read() for slot in plain.inventory.slots}
    assert [slot.name for slot in loaded.inventory.slots] == list(before)
    for slot in loaded.inventory.slots:
        torch.testing.assert_close(slot.read(), merged.get(slot.name, before[slot.name]))
        assert not slot.tensor().requires_grad
    assert [slot.about for slot in load_structure(spec).slots] == [slot.about for slot in loaded.inventory.slots]


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(tmp_path, monkeypatch):
    base, lora = tmp_path / "base", tmp_path / "lora"
    adapter(lora, checkpoint(base))
    checkpoint(tmp_path / "wide", hidden_size=64)
    spec = ModelSpec(pretrained=str(base), adapter=str(lora))
    assert "does not fit the model: RuntimeError" in refusal(
        ModelSpec(pretrained=str(tmp_path / "wide"), adapter=str(lora))
    )
    checkpoint(tmp_path / "deep", num_hidden_layers=3)
    assert "it lacks weights for" in refusal(ModelSpec(pretrained=str(tmp_path / "deep"), adapter=str(lora)))
    checkpoint(tmp_path / "shallow", num_hidden_layers=1)
    assert "it has weights for no" in refusal(ModelSpec(pretrained=str(tmp_path / "shallow"), adapter=str(lora)))
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["elsewhere"]}))
    assert "Target modules {'elsewhere'} not found" in refusal(spec)
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    assert "no file adapter_model.safetensors" in refusal(spec)
    assert "adapter someone/nothing: not a local folder" in refusal(
        ModelSpec(pretrained=str(base), adapter="someone/nothing")
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the peft package; pip install 'lrbench\[peft\]'"):
        load_structure(spec)


# --- repositories' own code


@pytest.fixture
def with_own_code(tmp_path, monkeypatch):
    """A checkpoint whose architecture is code beside it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    checkpoint(folder)
    (folder / "own_code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_code'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own_code", "auto_map": names}))
    return folder


def test_a_repositorys_own_code_runs_only_when_suite_and_command_line_say_so(with_own_code):
    silent, asking = (ModelSpec(pretrained=str(with_own_code), trust_remote_code=word) for word in (None, True))
    for allowed in (False, True):
        message = refusal(silent, trust_remote_code=allowed)
        assert "'trust_remote_code: true' in the suite and --trust-remote-code on the command line" in message
    assert "also needs --trust-remote-code on the command line" in refusal(asking)
    with pytest.raises(ModelError, match="command line"):
        load_structure(asking)
    assert not list(with_own_code.parent.glob("modules/**/own_code.py"))
    loaded = load(asking, device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnForCausalLM"
    assert loaded.source["trust_remote_code"] is True
    assert [s.about for s in load_structure(asking, trust_remote_code=True).slots] == [
        s.about for s in find_slots(loaded.model).slots
    ]


def test_the_command_line_says_what_is_missing_to_trust_code(with_own_code, capsys):
    suite = with_own_code.parent / "s.yaml"
    suite.write_text(
        f"model: {{pretrained: {with_own_code}, trust_remote_code: true}}\n"
        "tasks: [almanac_facts]\nreducers: [svd]\nsweep: [{rank: {keep: 0.5}}]\n"
    )
    for verb in (["check"], ["run", "--dry-run"], ["run", "--out", str(suite.parent / "out")]):
        assert main([verb[0], str(suite), *verb[1:]]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{suite}:1:" in error
        assert "also needs --trust-remote-code on the command line" in error
    assert main(["check", str(suite), "--trust-remote-code"]) == 0
    assert "2 blocks" in capsys.readouterr().out


# --- what is found


def test_check_shows_what_was_found_and_what_was_not(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        "models:\n"
        "  - {config: {model_type: gpt_oss, vocab_size: 2048, hidden_size: 32, num_attention_heads: 4, head_dim: 8,\n"
        "     num_key_value_heads: 2, num_hidden_layers: 2, num_local_experts: 3, intermediate_size: 16}}\n"
        "  - {config: {model_type: minimax, vocab_size: 2048, hidden_size: 32, num_attention_heads: 4, head_dim: 8,\n"
        "     num_key_value_heads: 2, num_hidden_layers: 2, num_local_experts: 3, intermediate_size: 16}}\n"
        "tasks: [almanac_facts]\nreducers: [svd]\nsweep: [{weights: [mlp.down], rank: {keep: 0.5}}]\n"
    )
    assert main(["check", str(tmp_path / "s.yaml")]) == 0
    oss, minimax = capsys.readouterr().out.split("model random ")[1:]
    assert "mlp.gate     6 x (16, 32)    model.layers.0.mlp.experts.gate_up_proj[0][gate] ..." in oss
    assert "not editable: model.layers.0.mlp.router.weight and 1 more (a router, which is never edited)" in oss
    assert "(biases, which are never edited)" in oss
    assert "not found:" not in oss
    assert "only by glob: model.layers.1.self_attn.qkv_proj.weight (several" in minimax
    assert "several roles fused in one matrix, in an order that is unknown for minimax" in minimax


def test_a_run_on_fused_and_stacked_weights_counts_what_each_part_replaces(tmp_path):
    shared = "vocab_size: 2048, hidden_size: 32, num_attention_heads: 4, num_hidden_layers: 2, intermediate_size: 16"
    (tmp_path / "s.yaml").write_text(
        "models:\n"
        f"  - {{config: {{model_type: gpt_neox, {shared}}}}}\n"
        f"  - {{config: {{model_type: gpt_oss, {shared}, head_dim: 8, num_key_value_heads: 2, num_local_experts: 3,\n"
        "     num_experts_per_tok: 2}}\n"
        "tasks: [{task: almanac_agreement, limit: 2}]\nreducers: [svd]\n"
        "sweep: [{mode: layer, layers: [1], weights: [attn.q, mlp.down], rank: {rank: [3, 1000]}},\n"
        "        {mode: together, weights: [all], rank: {fraction: 1.0}}]\n"
    )
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    directory = RunDirectory(tmp_path / "out")
    numbers = {model["label"]: model["numbers"] for model in directory.manifest()["models"]}
    rows = list(directory.rows().values())
    assert len(rows) == 8
    for row in rows:
        if row.requested == {"rank": 1000}:
            assert row.status == "failed"
            continue
        assert row.status == "ok"
        stored = sum(edit.stored_numbers for edit in row.edits)
        dense = sum(edit.shape[0] * edit.shape[1] for edit in row.edits)
        assert row.keep_model == pytest.approx(1 - (dense - stored) / numbers[row.model])
        names = [edit.weight for edit in row.edits]
        if row.requested == {"rank": 3} and row.model == "random gpt_neox":
            block = "gpt_neox.layers.1."
            assert names == [f"{block}attention.query_key_value.weight[q]", f"{block}mlp.dense_4h_to_h.weight"]
        elif row.requested == {"rank": 3}:
            assert names[1:] == [f"model.layers.1.mlp.experts.down_proj[{expert}]" for expert in range(3)]
        elif row.reducer is not None:  # at full rank nothing is stored but what was there
            assert stored == dense
            assert max(edit.relative_error for edit in row.edits) < 1e-5
