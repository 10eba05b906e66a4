"""The bundled model as a GGUF file, written as llama.cpp's converter writes a Llama."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from lrbench.models.load import bundled

KINDS = {kind.name: kind for kind in gguf.GGMLQuantizationType}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def write_gguf(
    path: Path,
    kind: str = "F32",
    *,
    architecture: str = "llama",
    tensors: dict[str, np.ndarray] | None = None,
    left_out: str = "",
    metadata: dict[str, object] | None = None,
) -> Path:
    """Writes the bundled model, with its tokenizer.

    Args:
        kind: how matrices are stored, such as `Q8_0`.
        architecture: its name in the file.
        tensors: more tensors, stored as they are.
        left_out: the name of a tensor that is not written.
        metadata: more keys, or others for those that are written.
    """
    folder = bundled()["almanac"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    values = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.dimension_count": config.head_dim,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if number == 0 else 1 for _, number in vocabulary],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        **(metadata or {}),
    }
    writer = gguf.GGUFWriter(str(path), architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        adders.get(type(value), writer.add_array)(key, value)
    for name, tensor in model.named_parameters():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if name == left_out:
            continue
        heads = config.num_attention_heads if "attn_q." in name or "attn_k." in name else None
        array = (tensor if heads is None else _interleaved(tensor, heads)).detach().numpy()
        stored = KINDS[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in llama.cpp's order, in which those that rotary positions turn together are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns).contiguous()
