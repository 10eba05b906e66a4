"""Weight slots, roles, editing and restoring, loading."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from lrbench.errors import EvaluationError, ModelError
from lrbench.models.edit import edited
from lrbench.models.load import bundled, choose_device, load, load_structure, weight_hash
from lrbench.models.roles import is_fused, role_of
from lrbench.models.slots import count_numbers, find_slots
from lrbench.suite import ModelSpec

LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
GPTJ = GPTJConfig(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, rotary_dim=4)
NEOX = GPTNeoXConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=32,
)  # fmt: skip
OPT = OPTConfig(
    vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
    word_embed_proj_dim=16,
)  # fmt: skip


def tiny(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


IDS = torch.tensor([[1, 5, 9, 2, 7, 3]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("config", "roles"),
    [
        (LLAMA, {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down", "head", "embed"}),
        (GPT2, {"attn.o", "mlp.up", "mlp.down", "head", "embed"}),
        (GPTJ, {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "head", "embed"}),
        (NEOX, {"attn.o", "mlp.up", "mlp.down", "head", "embed"}),
        (OPT, {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "head", "embed"}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_every_role_of_a_family_is_found_once_in_each_block(config, roles):
    inventory = find_slots(tiny(config))
    assert set(inventory.roles) == roles
    for layer in range(len(inventory.blocks)):
        own = [slot.about.role for slot in inventory.slots if slot.about.layer == layer and slot.about.role]
        assert sorted(own) == sorted(roles - {"head", "embed"})


@pytest.mark.parametrize("config", [LLAMA, GPT2, GPTJ, NEOX, OPT], ids=lambda config: config.model_type)
def test_a_slot_reads_the_matrix_that_y_equals_Wx_uses(config):
    model = tiny(config)
    inventory = find_slots(model)
    seen = {}
    hooks = [
        slot.module.register_forward_hook(lambda _, args, out, slot=slot: seen.update({slot.name: (args[0], out)}))
        for slot in inventory.slots
        if slot.about.role != "embed"
    ]
    logits(model)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks)
    for slot in inventory.slots:
        W = slot.read()
        assert tuple(W.shape) == slot.about.shape
        if slot.about.role == "embed":
            one_hot = torch.nn.functional.one_hot(IDS, W.shape[1]).float()
            torch.testing.assert_close(one_hot @ W.T, slot.module(IDS))
            continue
        x, y = seen[slot.name]
        bias = getattr(slot.module, "bias", None)
        torch.testing.assert_close(x @ W.T + (0 if bias is None else bias), y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, GPT2, GPTJ, NEOX, OPT], ids=lambda config: config.model_type)
def test_an_edit_acts_and_its_end_restores_the_model_bit_for_bit(config):
    model = tiny(config)
    before, plain = weight_hash(model), logits(model)
    parameters = dict(model.named_parameters())
    for slot in find_slots(model).slots:
        with edited({slot: torch.zeros(slot.about.shape)}):
            assert not torch.equal(logits(model), plain), slot.name
        with edited({slot: slot.read().clone()}):
            assert torch.equal(logits(model), plain), slot.name
    assert weight_hash(model) == before
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(logits(model), plain)


def test_an_edit_is_undone_when_scoring_raises():
    model = tiny(LLAMA)
    before = weight_hash(model)
    slot = find_slots(model).slots[0]
    with pytest.raises(RuntimeError, match="boom"), edited({slot: torch.zeros(slot.about.shape)}):
        raise RuntimeError("boom")
    assert weight_hash(model) == before


def test_an_original_that_is_written_to_while_it_stands_aside_is_noticed():
    model = tiny(LLAMA)
    slot = find_slots(model).slots[0]
    original = slot.tensor()

    def write() -> None:
        with edited({slot: torch.zeros(slot.about.shape)}), torch.no_grad():
            original.add_(1)

    with pytest.raises(EvaluationError, match="written to"):
        write()


def test_an_edit_of_a_tied_head_leaves_the_embedding_alone():
    model = tiny(LLAMA)
    inventory = find_slots(model)
    head = next(slot for slot in inventory.slots if slot.about.role == "head")
    embed = next(slot for slot in inventory.slots if slot.about.role == "embed")
    assert head.users == embed.users == 2
    before = embed.read().clone()
    with edited({head: torch.zeros(head.about.shape)}):
        assert torch.equal(embed.read(), before)
        assert not logits(model).any()


def test_tied_numbers_are_counted_once():
    model = tiny(LLAMA)
    untied = tiny(LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": False}))
    assert count_numbers(untied) - count_numbers(model) == 64 * 16


@pytest.mark.parametrize(
    ("layers", "weights", "expected"),
    [
        ([0, 2], ["mlp"], {(layer, role) for layer in (0, 2) for role in ("mlp.gate", "mlp.up", "mlp.down")}),
        ([1], ["q_proj", "attn.o"], {(1, "attn.q"), (1, "attn.o")}),
        ([1], ["fc_in"], {(1, "mlp.gate")}),
        ([1], ["fc_up"], {(1, "mlp.up")}),
        ([1], ["fc_out"], {(1, "mlp.down")}),
        ([0, 1, 2], ["head"], {(None, "head")}),
        ([0, 1, 2], ["*.2.*.v_proj.weight"], {(2, "attn.v")}),
        (
            [0],
            ["all", "mlp.up"],
            {(0, role) for role in find_slots(tiny(LLAMA)).roles if role not in ("head", "embed")},
        ),
    ],
)
def test_weights_are_selected_by_role_group_alias_and_glob(layers, weights, expected):
    chosen = find_slots(tiny(LLAMA)).select(layers, weights)
    assert {(slot.about.layer, slot.about.role) for slot in chosen} == expected
    assert len(chosen) == len(expected)


def test_without_a_gate_fc_in_is_the_up_projection_and_fc_up_is_nothing():
    inventory = find_slots(tiny(GPTJ))
    assert [slot.about.role for slot in inventory.select([0], ["fc_in"])] == ["mlp.up"]
    with pytest.raises(ModelError, match="fc_up"):
        inventory.select([0], ["fc_up"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mlp.dwon", r"unknown role 'mlp.dwon'; did you mean 'mlp.down'\?"),
        ("attn.q", r"'attn.q' selects no weight: this model has attn.o.*fused weights are selected by a glob"),
        ("*.nothing.*", r"selects no weight"),
    ],
)
def test_a_word_that_selects_nothing_is_refused_with_a_way_out(word, message):
    with pytest.raises(ModelError, match=message):
        find_slots(tiny(GPT2)).select([0, 1], [word])


def test_fused_and_unnamed_weights_are_reported_not_lost():
    inventory = find_slots(tiny(GPT2))
    assert {name for name, why in inventory.unnamed if "fused" in why} == {
        f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(2)
    }
    assert [slot.about.shape for slot in inventory.select([0], ["*c_attn.weight"])] == [(48, 16)]
    assert ("transformer.wpe.weight", "held by a Embedding") in inventory.left_out


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("self_attn.q_proj", "attn.q"),
        ("attn.attention.out_proj", "attn.o"),
        ("self_attn.out_proj", "attn.o"),
        ("attention.dense", "attn.o"),
        ("mlp.dense_4h_to_h", "mlp.down"),
        ("mlp.c_proj", "mlp.down"),
        ("attn.c_proj", "attn.o"),
        ("fc1", "mlp.up"),
        ("mlp.gate", None),  # a router
        ("block_sparse_moe.gate", None),
        ("self_attn.qkv_proj", None),
        ("mlp.gate_up_proj", None),
    ],
)
def test_a_role_is_read_from_the_path_in_the_block(path, role):
    assert role_of(path) == role
    assert is_fused(path) == path.endswith(("qkv_proj", "gate_up_proj"))


def test_a_local_checkpoint_loads_with_its_dtype_and_its_structure_without_weights(tmp_path):
    tiny(LLAMA).to(torch.bfloat16).save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(bundled()["almanac"]).save_pretrained(tmp_path)
    loaded = load(ModelSpec(pretrained=str(tmp_path)), device="cpu")
    assert loaded.dtype == torch.bfloat16
    assert load(ModelSpec(pretrained=str(tmp_path), dtype="float32"), device="cpu").dtype == torch.float32
    structure = load_structure(ModelSpec(pretrained=str(tmp_path)))
    assert [slot.about for slot in structure.slots] == [slot.about for slot in loaded.inventory.slots]
    assert [slot.users for slot in structure.slots] == [slot.users for slot in loaded.inventory.slots]


def test_the_weight_hash_sees_every_bit():
    model = tiny(LLAMA)
    before = weight_hash(model)
    model.model.layers[1].mlp.down_proj.weight.data.view(torch.int32)[3, 4] ^= 1
    assert weight_hash(model) != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec(name="almanak"), "unknown bundled model 'almanak'; did you mean 'almanac'?"),
        (ModelSpec(pretrained="./nowhere"), "./nowhere: no such folder"),
        (ModelSpec(pretrained="someone/a-model-that-is-not-there"), "not a local folder, and the Hugging Face hub"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(spec, message):
    with pytest.raises(ModelError) as error:
        load(spec, device="cpu")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_checkpoint_and_a_model_without_blocks_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config.json there"):
        load(ModelSpec(pretrained=str(tmp_path)), device="cpu")
    with pytest.raises(ModelError, match="no decoder blocks"):
        find_slots(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ModelError, match=name):
        choose_device(name)
