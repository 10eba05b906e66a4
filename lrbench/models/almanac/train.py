"""Trains the bundled model from scratch: `python -m lrbench.models.almanac.train --out DIR`.

One pass over the training documents, AdamW, a cosine schedule with warm-up, bfloat16 autocast. The published
checkpoint was trained with the defaults; `checkpoint/README.md` has its scores and `training.json` its loss curve.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrbench.models.almanac.corpus import DOCUMENTS, Corpus
from lrbench.models.almanac.world import SEED

END = "<|endoftext|>"
VOCABULARY = 2048
ROW = 256  # tokens
ROWS = 32  # per step
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 100  # steps


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 tokens, trained on the first 20,000 training documents."""
    bpe = ByteLevelBPETokenizer()
    text = (document for document, _ in corpus.training(20_000))
    bpe.train_from_iterator(text, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=ROW
    )


def configuration(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """8 Llama blocks of width 192: 3.5 million parameters without the embedding, to which the head is tied."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=ROW, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def rows(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, documents: int) -> Iterator[list[int]]:
    """Rows of ROW + 1 tokens: whole documents, of which the last is cut.

    At random, half of the rows begin with the end-of-text token, since task prompts occur with and without it.
    """
    end = tokenizer.eos_token_id
    draw = random.Random(f"rows-{corpus.seed}")
    row: list[int] = []
    batch: list[str] = []

    def encoded() -> Iterator[list[int]]:
        for text, _ in corpus.training(documents):
            batch.append(text)
            if len(batch) == 1000:
                yield from tokenizer(batch)["input_ids"]
                batch.clear()
        if batch:
            yield from tokenizer(batch)["input_ids"]

    for ids in encoded():
        row += [end, *ids] if row or draw.random() < 0.5 else ids
        if len(row) > ROW:
            yield row[: ROW + 1]
            row = []


def main() -> None:
    """Trains the model and saves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=0, help="steps between intermediate checkpoints")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    corpus = Corpus(args.seed)
    tokenizer = train_tokenizer(corpus)
    data = torch.tensor(list(rows(corpus, tokenizer, args.documents)))  # (rows, ROW + 1)
    model = LlamaForCausalLM(configuration(tokenizer))
    body = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    steps = len(data) // ROWS
    print(f"{body:,} non-embedding parameters, {data.numel():,} tokens, {steps:,} steps", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    curve: list[dict[str, float]] = []
    started, recent = time.perf_counter(), []

    def save() -> None:
        args.out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
        summary = {"seed": args.seed, "documents": args.documents, "tokens": steps * ROWS * ROW, "steps": steps,
                   "torch": torch.__version__, "curve": curve}  # fmt: skip
        (args.out / "training.json").write_text(json.dumps(summary, indent=1) + "\n")

    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)
        batch = data[step * ROWS : (step + 1) * ROWS]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            mean, recent = sum(recent) / len(recent), []
            tokens = (step + 1) * ROWS * ROW
            curve.append({"step": step + 1, "loss": round(mean, 4)})
            speed = tokens / (time.perf_counter() - started)
            print(
                f"step {step + 1:5d}  {tokens / 1e6:5.2f}M tokens  {speed:,.0f} tokens/s  loss {mean:.4f}", flush=True
            )
        if args.save_every and (step + 1) % args.save_every == 0:
            save()
    save()


if __name__ == "__main__":
    main()
