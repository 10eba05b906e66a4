"""A tiny random model with a tokenizer and a local multiple-choice task, as a suite in a folder."""

import json
import random
from pathlib import Path
from textwrap import dedent
from unittest import mock

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Tokenizer

from tests.support.tiny_models import COMMON, FAMILIES, LLAMA, VOCABULARY, tiny

MOE = {**LLAMA, "moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
#: name -> model type and configuration, of architectures that the sweep engine's tests have no need of.
OTHERS = {
    "phi": ("phi", {**COMMON, "intermediate_size": 64, "max_position_embeddings": 512}),
    "olmo2": ("olmo2", LLAMA),
    "smollm3": ("smollm3", LLAMA),
    "gpt_oss": ("gpt_oss", {**LLAMA, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "head_dim": 8}),
}

DOCUMENTS = 12
TASK = """\
task: which
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
metadata: {version: 1}
"""


#: Of these `AutoTokenizer` takes the architecture's own class, whatever the folder says; it is byte-level BPE.
BYTE_LEVEL = {"qwen2": Qwen2Tokenizer}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}


def save_tokenizer(folder: Path, family: str) -> None:
    """One token a word: w0, w1, ...; or where its tokenizer must be byte-level, one for "w" and for each digit."""
    if family in BYTE_LEVEL:
        pieces = ["<pad>", "<s>", "</s>", "w", "Ġ", *map(str, range(10)), "Ġw"]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        BYTE_LEVEL[family](vocab=vocabulary, merges=[("Ġ", "w")], **SPECIAL).save_pretrained(folder)
        return
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, **SPECIAL).save_pretrained(folder)


def write_task(folder: Path) -> Path:
    """A folder of one multiple-choice task over random words."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(0)

    def words(low, high):
        return " ".join(f"w{dice.randrange(3, VOCABULARY)}" for _ in range(dice.randint(low, high)))

    documents = [
        {"question": words(3, 9), "choices": [words(1, 4) for _ in range(3)], "answer": dice.randrange(3)}
        for _ in range(DOCUMENTS)
    ]
    (folder / "which.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n")
    (folder / "which.yaml").write_text(TASK.replace("FILE", str(folder / "which.jsonl")))
    return folder


def write_model(folder: Path, family: str) -> Path:
    """A tiny random model with its tokenizer, as a checkpoint."""
    if family in FAMILIES:
        model = tiny(family)
    else:
        kind, settings = OTHERS[family]
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{"bos_token_id": 1, "eos_token_id": 2, **settings})
        model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder, family)
    return folder


def write_family_suite(folder: Path, family: str, sweep: str = "", **keys: str) -> Path:
    """A suite of two cells, with the model and the task beside it, all paths relative."""
    write_model(folder / "model", family)
    write_task(folder / "tasks")
    text = dedent("""\
        name: out
        model: {pretrained: ./model, device: cpu}
        task_paths: [./tasks]
        tasks: [which]
        reducers: [svd, id]
        """)
    text += sweep or "sweep:\n  - {mode: together, weights: [all], rank: {keep: 0.6}}\n"
    text += "".join(f"{key}: {value}\n" for key, value in keys.items())
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def lm_eval_says(tasks: Path, **model) -> dict[str, float]:
    """lm-eval's own figures: metric -> value."""
    with mock.patch("lm_eval.evaluator.add_env_info"):  # asks pip and git, a second a time
        results = simple_evaluate(
            **model,
            tasks=["which"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            batch_size=32,
            device="cpu",
        )["results"]["which"]
    return {name.partition(",")[0]: results[name] for name in results if name in ("acc,none", "brier_score,none")}
