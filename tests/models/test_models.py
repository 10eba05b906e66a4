"""Weight slots, roles, editing and restoring, loading."""

from types import SimpleNamespace

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
from lrbench.models.load import bundled, load, load_structure, weight_hash
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import count_parameters
from lrbench.reduction.reduced_weight import sizes as sizes_of
from lrbench.suite.load import ModelSpec
from lrbench.suite.roles import is_fused, is_router, role_of
from lrbench.system.device import choose_device
from tests.support.architectures import build, shared

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


def test_memory_that_runs_out_during_an_edit_is_told_as_such_and_leaves_the_model_as_it_was(monkeypatch):
    model = tiny(LLAMA)
    first, second = (slot for slot in find_slots(model).slots if slot.about.role == "mlp.down" and slot.about.layer < 2)
    before, clones, clone = weight_hash(model), [], torch.Tensor.clone

    def second_clone_fails(tensor, *args, **kwargs):
        clones.append(tensor)
        if len(clones) == 2:
            raise torch.OutOfMemoryError("no memory")
        return clone(tensor, *args, **kwargs)

    edit = {slot: torch.zeros(slot.about.shape) for slot in (first, second)}
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "clone", second_clone_fails)
        with pytest.raises(torch.OutOfMemoryError), edited(edit):
            pytest.fail("the edit is in place")
    assert weight_hash(model) == before


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
    assert count_parameters(untied) - count_parameters(model) == 64 * 16


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
        ("mlp.gate", r"'mlp.gate' selects no weight: this model has attn.q, attn.k"),
        ("*.nothing.*", r"selects no weight"),
    ],
)
def test_a_word_that_selects_nothing_is_refused_with_a_way_out(word, message):
    with pytest.raises(ModelError, match=message):
        find_slots(tiny(GPT2)).select([0, 1], [word])


class Block(torch.nn.Module):
    """Of an architecture never seen: some names are usual, some are not."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.ModuleDict({"wq": torch.nn.Linear(8, 8), "Wqkv": torch.nn.Linear(8, 24)})
        self.mixer = torch.nn.Linear(8, 8)
        self.moe = torch.nn.ModuleDict({"gate": torch.nn.Linear(8, 2), "router": torch.nn.Linear(8, 2)})
        self.experts = torch.nn.ParameterDict({"down_proj": torch.nn.Parameter(torch.zeros(2, 8, 8))})
        self.filter = torch.nn.Conv1d(8, 8, 3)
        self.eight_bit = torch.nn.Linear(8, 8)
        self.eight_bit.weight = torch.nn.Parameter(torch.zeros(8, 8).to(torch.float8_e4m3fn), requires_grad=False)


class NeverSeen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = LlamaConfig(vocab_size=11, hidden_size=8, num_attention_heads=2)
        self.tokens = torch.nn.Embedding(11, 8)
        self.adapt = torch.nn.Linear(8, 8)
        self.layers = torch.nn.ModuleList([Block(), Block()])

    def get_input_embeddings(self):
        return self.tokens

    def get_output_embeddings(self):
        return None


def test_of_an_architecture_never_seen_everything_is_accounted_for():
    inventory = find_slots(NeverSeen())
    of_a_block = {"attention.wq.weight": "attn.q", "attention.Wqkv.weight": None, "mixer.weight": None}
    inside = {f"layers.{layer}.{name}": role for layer in (0, 1) for name, role in of_a_block.items()}
    assert {slot.name: slot.about.role for slot in inventory.slots} == {
        **inside, "tokens.weight": "embed", "adapt.weight": None,
    }  # fmt: skip
    assert dict(inventory.unnamed) == {
        **{f"layers.{n}.mixer.weight": "role not recognised" for n in (0, 1)},
        **{
            f"layers.{n}.attention.Wqkv.weight": (
                "several roles fused in one matrix, in an order that is unknown for llama"
            )
            for n in (0, 1)
        },
        "adapt.weight": "outside the decoder blocks",
    }
    reasons = {
        "moe.gate.weight": "a router, which is never edited",
        "moe.router.weight": "a router, which is never edited",
        "experts.down_proj": "a stack of matrices of unknown layout",
        "filter.weight": "a stack of matrices of unknown layout",
        "eight_bit.weight": "not a floating-point matrix (quantized?)",
    }
    assert dict(inventory.left_out) == {f"layers.{n}.{name}": why for n in (0, 1) for name, why in reasons.items()}
    assert [slot.name for slot in inventory.select([1], ["*.Wqkv.weight"])] == ["layers.1.attention.Wqkv.weight"]
    with pytest.raises(ModelError, match="selects no weight"):
        inventory.select([0, 1], ["*.gate.weight"])


def test_a_repositorys_own_code_is_not_taken_for_the_model_type_that_it_claims():
    own = type("Phi3ForCausalLM", (type(shared("phi3")[0]),), {"__module__": "transformers_modules.someone.modeling"})
    model = build("phi3")
    model.__class__ = own
    inventory = find_slots(model)
    assert {slot.about.role for slot in inventory.slots} == {"attn.o", "mlp.down", "head", "embed", None}
    assert {why for _, why in inventory.unnamed} == {
        "several roles fused in one matrix, in an order that is unknown for this model"
    }
    assert [s.about.shape for s in inventory.select([0], ["*.qkv_proj.weight"])] == [(64, 32)]


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("phi3", "*.self_attn.qkv_proj.weight[q]", ["self_attn.qkv_proj.weight[q]"]),
        ("phi3", "model.layers.[01].self_attn.qkv_proj.weight[q]", ["self_attn.qkv_proj.weight[q]"]),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight[v]", ["self_attn.qkv_proj.weight[v]"]),
        ("phi3", "*.gate_up_proj.weight", ["mlp.gate_up_proj.weight[gate]", "mlp.gate_up_proj.weight[up]"]),
        ("phi3", "*[[]up]", ["mlp.gate_up_proj.weight[up]"]),
        ("mixtral", "*.experts.gate_up_proj[2][gate]", ["mlp.experts.gate_up_proj[2][gate]"]),
        ("mixtral", "*.experts.gate_up_proj[*][up]", [f"mlp.experts.gate_up_proj[{n}][up]" for n in range(3)]),
        ("mixtral", "*.experts.down_proj", [f"mlp.experts.down_proj[{n}]" for n in range(3)]),
        ("mixtral", "mlp.down", [f"mlp.experts.down_proj[{n}]" for n in range(3)]),
        ("mixtral", "*.self_attn.[qk]_proj.weight", ["self_attn.q_proj.weight", "self_attn.k_proj.weight"]),
    ],
)
def test_parts_are_selected_by_role_by_name_and_by_glob(name, word, expected):
    _, inventory = shared(name)
    assert [slot.name for slot in inventory.select([1], [word])] == [f"model.layers.1.{path}" for path in expected]


def test_a_part_replaces_its_own_numbers_and_a_tied_one_none_until_all_that_use_it_are_edited():
    def sizes(name, *names, stored=1):
        model, inventory = shared(name)
        slots = tuple(next(s for s in inventory.slots if s.name.endswith(one)) for one in names)
        edits = [SimpleNamespace(edit=SimpleNamespace(stored_numbers=stored)) for _ in slots]
        numbers = count_parameters(model)
        found = sizes_of(slots, edits, numbers)
        return found["keep_targets"], round(found["keep_model"] * numbers) - numbers

    assert sizes("phi3", "0.self_attn.qkv_proj.weight[k]", stored=100) == (100 / (16 * 32), 100 - 16 * 32)
    both = sizes("phi3", "0.self_attn.qkv_proj.weight[k]", "0.self_attn.qkv_proj.weight[q]", stored=100)
    assert both == (200 / (48 * 32), 200 - 48 * 32)
    assert sizes("mixtral", "0.mlp.experts.down_proj[1]", "0.mlp.experts.gate_up_proj[1][up]") == (
        2 / (2 * 16 * 32), 2 - 2 * 16 * 32,
    )  # fmt: skip
    assert sizes("llama3_tied", "lm_head.weight") == (1 / (64 * 32), 1)
    assert sizes("llama3_tied", "lm_head.weight", "embed_tokens.weight") == (2 / (2 * 64 * 32), 2 - 64 * 32)
    assert sizes("llama", "lm_head.weight") == (1 / (64 * 32), 1 - 64 * 32)


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
        ("mlp.router", None),
        ("mlp.shared_expert_gate", None),
        ("mlp.shared_expert.gate_proj", "mlp.gate"),
        ("block_sparse_moe.experts.3.down_proj", "mlp.down"),
        ("self_attn.qkv_proj", None),
        ("mlp.gate_up_proj", None),
    ],
)
def test_a_role_is_read_from_the_path_in_the_block(path, role):
    assert role_of(path) == role
    assert is_fused(path) == path.endswith(("qkv_proj", "gate_up_proj"))
    assert is_router(path) == path.endswith((".gate", "router", "expert_gate"))


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
    with pytest.raises(ModelError, match=r"has no config.json"):
        load(ModelSpec(pretrained=str(tmp_path)), device="cpu")
    with pytest.raises(ModelError, match="no decoder blocks"):
        find_slots(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ModelError, match=name):
        choose_device(name)
