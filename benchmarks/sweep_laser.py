"""LASER's way of scoring one cell, started by `sweep.py`: load a checkpoint, then one request after the other.

    python sweep_laser.py CHECKPOINT REQUESTS DEVICE DTYPE THREADS

Prints the seconds that scoring took, without the imports and the load. Nothing is edited: an edit costs no time to
score, and factorizations are left out of every figure. Reference: Sharma, Ash, Misra, "The Truth is in There:
Improving Reasoning in Language Models with Layer-Selective Rank Reduction", 2023; its scripts run one (layer, matrix,
rate) per process, and one prompt per forward pass.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@torch.no_grad()
def score(model: torch.nn.Module, context: list[int], continuation: list[int], max_length: int, device: str) -> float:
    """The log-likelihood of one continuation, from logits at all positions."""
    row = (context + continuation)[-(max_length + 1) :]
    logits = model(torch.tensor([row[:-1]], device=device)).logits[0].float()
    targets = torch.tensor(continuation, device=device)
    return float(logits.log_softmax(-1)[-len(continuation) :].gather(-1, targets[:, None]).sum())


def main() -> None:
    """Loads, scores, prints."""
    checkpoint, file, device, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    asked = json.loads(Path(file).read_text())
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    model.to(device).eval()
    context, continuation = asked["requests"][0]
    score(model, context, continuation, asked["max_length"], device)  # first use of libraries: not the requests' time
    started = time.perf_counter()
    for context, continuation in asked["requests"]:
        score(model, context, continuation, asked["max_length"], device)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
