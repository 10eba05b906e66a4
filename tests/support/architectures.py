"""Tiny random models of every architecture whose slots are known by name, and which slots each must have."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lrbench.models.slot_search import find_slots
from lrbench.models.slots import Inventory

VOCABULARY = 64
EXPERTS = 3
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
          "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA = {**COMMON, "intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "bos_token_id": 1,
       "eos_token_id": 2}  # fmt: skip
QWEN_MOE = {**LLAMA, "moe_intermediate_size": 12, "num_experts": EXPERTS, "num_experts_per_tok": 2,
            "decoder_sparse_step": 1}  # fmt: skip

QKV = {"q": "attn.q", "k": "attn.k", "v": "attn.v"}
SEPARATE = {f"self_attn.{part}_proj.weight": role for part, role in {**QKV, "o": "attn.o"}.items()}
MLP = {f"mlp.{part}_proj.weight": f"mlp.{part}" for part in ("gate", "up", "down")}
DENSE_MLP = {"mlp.dense_h_to_4h.weight": "mlp.up", "mlp.dense_4h_to_h.weight": "mlp.down"}
STACK = {
    **{f"mlp.experts.gate_up_proj[{expert}][gate]": "mlp.gate" for expert in range(EXPERTS)},
    **{f"mlp.experts.gate_up_proj[{expert}][up]": "mlp.up" for expert in range(EXPERTS)},
    **{f"mlp.experts.down_proj[{expert}]": "mlp.down" for expert in range(EXPERTS)},
}  # fmt: skip
OUTSIDE = {"model.embed_tokens.weight": "embed", "lm_head.weight": "head"}


def fused(path: str, parts: str = "qkv") -> dict[str, str]:
    """The parts of a fused projection of attention."""
    return {f"{path}.weight[{part}]": QKV[part] for part in parts}


@dataclass(frozen=True)
class Architecture:
    """A model type with a tiny configuration.

    Attributes:
        block: names in a block -> roles, all that are to be found there.
        blocks: the name of the list of blocks.
        outside: names outside the blocks -> roles.
        left_out: name -> a word of the reason; `{}` stands for the layer.
        tied: whether head and embedding share one tensor.
    """

    kind: str
    settings: dict[str, Any]
    block: dict[str, str | None]
    blocks: str = "model.layers"
    outside: dict[str, str | None] = field(default_factory=lambda: OUTSIDE)
    left_out: dict[str, str] = field(default_factory=dict)
    tied: bool = False


def _falcon(**settings: Any) -> Architecture:
    return Architecture(
        "falcon", {**COMMON, "alibi": False, **settings},
        {**fused("self_attention.query_key_value"), "self_attention.dense.weight": "attn.o", **DENSE_MLP},
        "transformer.h", {"transformer.word_embeddings.weight": "embed", "lm_head.weight": "head"}, tied=True,
    )  # fmt: skip


_GPT_OUTSIDE = {"transformer.wte.weight": "embed", "lm_head.weight": "head"}
_POSITIONS = {"transformer.wpe.weight": "held by a Embedding"}
_GPT_MLP = {"mlp.c_fc.weight": "mlp.up", "mlp.c_proj.weight": "mlp.down"}
_ROUTER = {"model.layers.{}.mlp.gate.weight": "a router"}

ARCHITECTURES = {
    "gpt2": Architecture(
        "gpt2", GPT, {**fused("attn.c_attn"), "attn.c_proj.weight": "attn.o", **_GPT_MLP}, "transformer.h",
        _GPT_OUTSIDE, _POSITIONS, tied=True,
    ),
    "gpt_neox": Architecture(
        "gpt_neox", {**COMMON, "intermediate_size": 24},
        {**fused("attention.query_key_value"), "attention.dense.weight": "attn.o", **DENSE_MLP}, "gpt_neox.layers",
        {"gpt_neox.embed_in.weight": "embed", "lm_head.weight": "head"},
    ),
    "bloom": Architecture(
        "bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_head": 4, "n_layer": 2},
        {**fused("self_attention.query_key_value"), "self_attention.dense.weight": "attn.o", **DENSE_MLP},
        "transformer.h", {"transformer.word_embeddings.weight": "embed", "lm_head.weight": "head"}, tied=True,
    ),
    "falcon": _falcon(new_decoder_architecture=False, multi_query=False),
    "falcon_alibi": _falcon(new_decoder_architecture=False, multi_query=False, alibi=True),
    "falcon_multi_query": _falcon(new_decoder_architecture=False, multi_query=True),
    "falcon_grouped": _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "gptj": Architecture(
        "gptj", {**GPT, "rotary_dim": 4},
        {"attn.k_proj.weight": "attn.k", "attn.v_proj.weight": "attn.v", "attn.q_proj.weight": "attn.q",
         "attn.out_proj.weight": "attn.o", "mlp.fc_in.weight": "mlp.up", "mlp.fc_out.weight": "mlp.down"},
        "transformer.h", _GPT_OUTSIDE,
    ),
    "opt": Architecture(
        "opt", {**COMMON, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0},
        {"self_attn.k_proj.weight": "attn.k", "self_attn.v_proj.weight": "attn.v", "self_attn.q_proj.weight": "attn.q",
         "self_attn.out_proj.weight": "attn.o", "fc1.weight": "mlp.up", "fc2.weight": "mlp.down"},
        "model.decoder.layers",
        {"model.decoder.embed_tokens.weight": "embed", "lm_head.weight": "head",
         "model.decoder.project_out.weight": None, "model.decoder.project_in.weight": None},
        {"model.decoder.embed_positions.weight": "held by a OPTLearnedPositionalEmbedding"}, tied=True,
    ),
    "llama": Architecture("llama", LLAMA, {**SEPARATE, **MLP}),
    "llama_biased": Architecture("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}, {**SEPARATE, **MLP}),
    "llama3_tied": Architecture("llama", {**LLAMA, "tie_word_embeddings": True}, {**SEPARATE, **MLP}, tied=True),
    "mistral": Architecture("mistral", {**LLAMA, "sliding_window": 4}, {**SEPARATE, **MLP}),
    "qwen2": Architecture("qwen2", LLAMA, {**SEPARATE, **MLP}),
    "qwen3": Architecture("qwen3", {**LLAMA, "head_dim": 12}, {**SEPARATE, **MLP}),
    "gemma2": Architecture("gemma2", {**LLAMA, "head_dim": 12, "sliding_window": 4}, {**SEPARATE, **MLP}, tied=True),
    "gemma3": Architecture(
        "gemma3_text", {**LLAMA, "head_dim": 12, "sliding_window": 4}, {**SEPARATE, **MLP}, tied=True,
    ),
    "phi": Architecture(
        "phi", {**LLAMA, "num_key_value_heads": 4},
        {"self_attn.q_proj.weight": "attn.q", "self_attn.k_proj.weight": "attn.k", "self_attn.v_proj.weight": "attn.v",
         "self_attn.dense.weight": "attn.o", "mlp.fc1.weight": "mlp.up", "mlp.fc2.weight": "mlp.down"},
    ),
    "phi3": Architecture(
        "phi3", LLAMA,
        {"self_attn.o_proj.weight": "attn.o", **fused("self_attn.qkv_proj"),
         **{f"mlp.gate_up_proj.weight[{part}]": f"mlp.{part}" for part in ("gate", "up")},
         "mlp.down_proj.weight": "mlp.down"},
    ),
    "olmo2": Architecture("olmo2", LLAMA, {**SEPARATE, **MLP}),
    "smollm3": Architecture("smollm3", LLAMA, {**SEPARATE, **MLP}, tied=True),
    # Square stacks and blocks: nothing in their shapes tells how they lie.
    "gpt_oss": Architecture(
        "gpt_oss",
        {**LLAMA, "head_dim": 8, "intermediate_size": 16, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
        {**SEPARATE, **STACK},
        left_out={"model.layers.{}.mlp.router.weight": "a router",
                  "model.layers.{}.mlp.experts.gate_up_proj_bias": "biases",
                  "model.layers.{}.mlp.experts.down_proj_bias": "biases"},
    ),
    "mixtral": Architecture(
        "mixtral", {**LLAMA, "intermediate_size": 16, "num_local_experts": EXPERTS}, {**SEPARATE, **STACK},
        left_out=_ROUTER,
    ),
    "qwen2_moe": Architecture(
        "qwen2_moe", {**QWEN_MOE, "shared_expert_intermediate_size": 20},
        {**SEPARATE, **STACK,
         **{f"mlp.shared_expert.{part}_proj.weight": f"mlp.{part}" for part in ("gate", "up", "down")}},
        left_out={**_ROUTER, "model.layers.{}.mlp.shared_expert_gate.weight": "a router"},
    ),
    "qwen3_moe": Architecture(
        "qwen3_moe", {**QWEN_MOE, "head_dim": 12}, {**SEPARATE, **STACK}, left_out=_ROUTER,
    ),
    # Beyond those that the documentation promises: known to the same table.
    "codegen": Architecture(
        "codegen", {**GPT, "rotary_dim": 4},
        {**fused("attn.qkv_proj", "qvk"), "attn.out_proj.weight": "attn.o", "mlp.fc_in.weight": "mlp.up",
         "mlp.fc_out.weight": "mlp.down"},
        "transformer.h", _GPT_OUTSIDE,
    ),
    "gpt_bigcode": Architecture(
        "gpt_bigcode", {**GPT, "multi_query": False},
        {**fused("attn.c_attn"), "attn.c_proj.weight": "attn.o", **_GPT_MLP}, "transformer.h", _GPT_OUTSIDE,
        _POSITIONS, tied=True,
    ),
    "gpt_bigcode_multi_query": Architecture(
        "gpt_bigcode", {**GPT, "multi_query": True},
        {**fused("attn.c_attn"), "attn.c_proj.weight": "attn.o", **_GPT_MLP}, "transformer.h", _GPT_OUTSIDE,
        _POSITIONS, tied=True,
    ),
    "gpt_neox_japanese": Architecture(
        "gpt_neox_japanese", {**COMMON, "intermediate_multiple_size": 2},
        {**fused("attention.query_key_value"), "attention.dense.weight": "attn.o", **DENSE_MLP},
        "gpt_neox_japanese.layers", {"gpt_neox_japanese.embed_in.weight": "embed", "embed_out.weight": "head"},
        tied=True,
    ),
    "openai-gpt": Architecture(
        "openai-gpt", GPT, {**fused("attn.c_attn"), "attn.c_proj.weight": "attn.o", **_GPT_MLP}, "transformer.h",
        {"transformer.tokens_embed.weight": "embed", "lm_head.weight": "head"},
        {"transformer.positions_embed.weight": "held by a Embedding"}, tied=True,
    ),
    "mpt": Architecture(
        "mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        {**fused("attn.Wqkv"), "attn.out_proj.weight": "attn.o", "ffn.up_proj.weight": "mlp.up",
         "ffn.down_proj.weight": "mlp.down"},
        "transformer.blocks", {"transformer.wte.weight": "embed", "lm_head.weight": "head"}, tied=True,
    ),
    "persimmon": Architecture(
        "persimmon", {**LLAMA, "num_key_value_heads": 4},
        {**fused("self_attn.query_key_value"), "self_attn.dense.weight": "attn.o", **DENSE_MLP},
    ),
    "glm4": Architecture(
        "glm4", {**LLAMA, "head_dim": 8},
        {**SEPARATE, **{f"mlp.gate_up_proj.weight[{part}]": f"mlp.{part}" for part in ("gate", "up")},
         "mlp.down_proj.weight": "mlp.down"},
    ),
    "glm": Architecture(
        "glm", {**LLAMA, "head_dim": 8},
        {**SEPARATE, **{f"mlp.gate_up_proj.weight[{part}]": f"mlp.{part}" for part in ("gate", "up")},
         "mlp.down_proj.weight": "mlp.down"},
    ),
    "llama4": Architecture(
        "llama4_text",
        {**LLAMA, "head_dim": 8, "intermediate_size": 16, "intermediate_size_mlp": 20, "num_local_experts": EXPERTS,
         "interleave_moe_layer_step": 1},
        {**SEPARATE, **{name.replace("mlp.experts", "feed_forward.experts"): role for name, role in STACK.items()},
         **{f"feed_forward.shared_expert.{part}_proj.weight": f"mlp.{part}" for part in ("gate", "up", "down")}},
        left_out={"model.layers.{}.feed_forward.router.weight": "a router"},
    ),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    """A fresh random model, whose biases and norms are random as well."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture.kind, **architecture.settings)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@cache
def shared(name: str) -> tuple[PreTrainedModel, Inventory]:
    """A model that several tests share, and its slots: whoever edits it puts it back."""
    model = build(name)
    return model, find_slots(model)
