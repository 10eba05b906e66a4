"""Random-weight models and synthetic lm-eval tasks for `sweep.py`: no download, and token counts as designed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lrbench.models.load import DTYPES, LoadedModel
from lrbench.models.slot_search import find_slots

CONFIGS = ("llama-12x384", "tiny", "gptj", "llama-3.1-8b")
END = "<|end|>"


@dataclass(frozen=True)
class Lengths:
    """Token counts: `least` plus a log-normal variate."""

    least: int
    median: float
    sigma: float

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        return self.least + int(rng.lognormal(np.log(self.median), self.sigma))


@dataclass(frozen=True)
class Workload:
    """What a synthetic task is like.

    Attributes:
        documents: by default, and with `--quick`.
        context, choice: lengths in tokens; without choices, `context` is that of a rolling document.
        choices: a document's; 0 for rolling perplexity.
        shots: worked examples in front of each context, drawn anew for each document by lm-eval.
        max_length: of a row in tokens.
        targets: ratios to lm-eval that are to be reached, over all blocks and the last third.
    """

    name: str
    about: str
    documents: int
    quick: int
    context: Lengths
    choice: Lengths = Lengths(0, 1, 0)
    choices: int = 0
    shots: int = 0
    max_length: int = 2048
    targets: tuple[float, float] | None = None


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "piqa", "PIQA-like, zero-shot, 2 choices", 1838, 16,
            Lengths(4, 14, 0.7), Lengths(2, 24, 0.7), choices=2, targets=(2.3, 4.0),
        ),
        Workload(
            "hellaswag", "HellaSwag-like, ten-shot, 4 choices", 120, 2,
            Lengths(8, 45, 0.45), Lengths(4, 22, 0.5), choices=4, shots=10, targets=(6.0, 12.0),
        ),
        Workload("rolling", "rolling perplexity, windows of 512", 60, 2, Lengths(64, 2500, 0.8), max_length=512),
        Workload(
            "counterfact", "CounterFact-like, 2 answers of 1 or 2 tokens", 2000, 60,
            Lengths(5, 5, 0.4), Lengths(1, 0.6, 0.6), choices=2,
        ),
    )
}  # fmt: skip
MAIN = ("piqa", "hellaswag", "rolling")


def make_model(config: str, vocabulary: int, device: torch.device, dtype: str, max_length: int = 2048) -> LoadedModel:
    """A random-weight model, seeded, with a word-level tokenizer of as many words."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(_config(config, vocabulary), dtype=DTYPES[dtype]).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if config in ("llama-12x384", "tiny") and parameter.ndim == 2:
            parameter.mul_(2)  # so that the logits of so small a model differ by more than rounding
    return LoadedModel(
        label=config,
        source={"random": config, "seed": 0},
        model=model,
        tokenizer=_tokenizer(vocabulary, max_length),
        inventory=find_slots(model),
        weight_hash="",
        config_hash="",
        device=device,
        dtype=DTYPES[dtype],
    )


def write_task(workload: Workload, documents: int, vocabulary: int, folder: Path) -> str:
    """Writes a task (YAML and JSON lines) that lm-eval reads from `folder`; returns its name. Seeded."""
    rng = np.random.default_rng([documents, vocabulary, *workload.name.encode()])

    def words(lengths: Lengths) -> str:
        return " ".join(f"w{token}" for token in rng.integers(1, vocabulary, lengths.draw(rng)))

    def question() -> dict[str, Any]:
        return {
            "context": words(workload.context),
            "choices": [words(workload.choice) for _ in range(workload.choices)],
            "gold": int(rng.integers(workload.choices)),
        }

    name = f"benchmark_{workload.name}_{documents}_{vocabulary}"
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "test_split": "test",
        "num_fewshot": workload.shots,
        "metadata": {"version": 1.0},
    }
    files = {"test": folder / f"{name}.jsonl"}
    if workload.choices:
        _write(files["test"], (question() for _ in range(documents)))
        config |= {
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [_metric("acc", "mean", True), _metric("acc_norm", "mean", True)],
        }
        if workload.shots:
            files["train"] = folder / f"{name}_train.jsonl"
            _write(files["train"], (question() for _ in range(10 * workload.shots)))
            config["fewshot_split"] = "train"
    else:
        _write(files["test"], ({"text": words(workload.context)} for _ in range(documents)))
        config |= {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [
                _metric("word_perplexity", "weighted_perplexity", False),
                _metric("bits_per_byte", "bits_per_byte", False),
            ],
        }
    config["dataset_kwargs"] = {
        "data_files": {split: str(file) for split, file in files.items()},
        "cache_dir": str(folder / "cache"),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return name


def _metric(name: str, aggregation: str, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def _write(file: Path, documents: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))


def _config(name: str, vocabulary: int) -> PretrainedConfig:
    if name == "gptj":
        return GPTJConfig(vocab_size=vocabulary)
    if name == "llama-3.1-8b":
        return LlamaConfig(
            vocab_size=vocabulary, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        )  # fmt: skip
    blocks, width, heads = (3, 32, 2) if name == "tiny" else (12, 384, 6)
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048,
    )  # fmt: skip


def _tokenizer(vocabulary: int, max_length: int) -> PreTrainedTokenizerBase:
    """One word, one token."""
    ids = {END: 0} | {f"w{token}": token for token in range(1, vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=END))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, unk_token=END,
        model_max_length=max_length, clean_up_tokenization_spaces=False,
    )  # fmt: skip
