"""Tiny random models of many families, and their plain answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lrbench.evaluation.sweep.answers import Tally
from lrbench.evaluation.sweep.queries import Query
from lrbench.evaluation.sweep.sweeper import Sweeper

VOCABULARY = 97
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
LLAMA = {**COMMON, "intermediate_size": 48, "max_position_embeddings": 512, "num_key_value_heads": 2, "pad_token_id": 0}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 512}
SLIDING = {**LLAMA, "sliding_window": 8}
GEMMA = {**SLIDING, "head_dim": 8}

#: name -> model type, configuration, and the mode that the self-check must find
FAMILIES = {
    "llama": ("llama", LLAMA, "packed"),
    "gpt2": ("gpt2", GPT, "packed"),
    "gpt_neox": ("gpt_neox", {**COMMON, "intermediate_size": 64, "max_position_embeddings": 512}, "packed"),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}, "packed"),
    "opt": ("opt", {**COMMON, "ffn_dim": 64, "max_position_embeddings": 512, "word_embed_proj_dim": 32}, "packed"),
    "opt_projected": (
        "opt", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "packed",
    ),
    "qwen2": ("qwen2", LLAMA, "packed"),
    "qwen2_sliding": ("qwen2", {**SLIDING, "use_sliding_window": True, "max_window_layers": 2}, "packed"),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 8}, "packed"),
    "gemma2": ("gemma2", {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}, "packed"),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window_pattern": 2}, "packed"),
    "phi3": ("phi3", SLIDING, "packed"),
    "mistral": ("mistral", SLIDING, "packed"),
    "falcon_rotary": ("falcon", {**COMMON, "alibi": False, "new_decoder_architecture": True}, "packed"),
    "falcon_alibi": ("falcon", {**COMMON, "alibi": True}, "padded"),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_head": 4, "n_layer": 4}, "padded"),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4}, "packed"),
    "mamba2": (
        "mamba2",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_heads": 4, "head_dim": 16,
            "state_size": 8, "n_groups": 1,
        },
        "padded",
    ),
    "cohere_scaled": ("cohere", {**LLAMA, "logit_scale": 0.25}, "packed"),
}  # fmt: skip


def tiny(family: str, dtype: torch.dtype = torch.float32, **changed: Any) -> PreTrainedModel:
    """A random model whose answers depend on what it attends to. `changed`: settings of its configuration."""
    kind, settings, _ = FAMILIES[family]
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**settings, **special, **changed})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.to(dtype).requires_grad_(False)


def query(context: Sequence[int], continuation: Sequence[int]) -> Query:
    """A query without truncation."""
    return Query(np.array([*context, *continuation][:-1]), np.array(continuation))


def some_queries(seed: int = 0) -> list[Query]:
    """Choices that share contexts, documents that share examples, one longer than any window, and single ones."""
    random = np.random.default_rng(seed)

    def tokens(low, high):
        return random.integers(1, VOCABULARY, random.integers(low, high)).tolist()

    queries = []
    examples = tokens(20, 21)
    for _ in range(4):
        context = tokens(3, 9)
        queries += [query(context, tokens(1, 7)) for _ in range(3)]
        queries += [query([*examples, *context], tokens(1, 3)) for _ in range(2)]
    queries += [query([0], tokens(300, 301)), query(tokens(1, 2), tokens(4, 30))]
    split = tokens(12, 13)
    return [*queries, query(split[:3], split[3:]), query(split[:8], split[8:]), query(split[:3], split[3:])]


@torch.no_grad()
def plainly(model: PreTrainedModel, queries: Sequence[Query]) -> list[tuple[float, bool]]:
    """Each query by itself: the reference."""
    answers = []
    for one in queries:
        targets = torch.from_numpy(one.targets)
        logits = model(torch.from_numpy(one.tokens)[None]).logits[0, -len(targets) :].double().log_softmax(-1)
        chosen = logits.gather(1, targets[:, None])
        answers.append((float(chosen.sum()), bool((logits.argmax(-1) == targets).all())))
    return answers


def swept(sweeper: Sweeper, queries: Sequence[Query], block: int = 0) -> list[tuple[float, bool]]:
    """Answers from `block` on."""
    tally = Tally(len(queries))
    for part in sweeper.parts:
        sweeper.score(part, block, sweeper.advance(part, block), tally)
    return tally.answers()


def same(ours, theirs, absolute=1e-3, relative=1e-4) -> bool:
    """Whether answers agree as the sweep engine promises."""
    return all(
        abs(mine - other) <= max(absolute, relative * abs(other)) and mine_greedy == other_greedy
        for (mine, mine_greedy), (other, other_greedy) in zip(ours, theirs, strict=True)
    )
