"""Memory limits per kind of device, free memory, and the split of batches into parts that fit."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from lrbench.evaluation.sweep.batches import Batch

TOKENS = {"cpu": 1024, "cuda": 16384}  # per batch
LEAST_TOKENS = 64  # below this, smaller batches save hardly any memory
LOGITS = {"cpu": 2**25, "cuda": 2**27}  # positions × vocabulary, float32, at once; fewer slow down a large head
SCORES = {"cpu": 2**26, "cuda": 2**29}  # attention scores per batch, if the model materialises them
LONGEST = 4096  # tokens per row of merged queries; its mask has the square of this many entries


def of(sizes: dict[str, int], device: torch.device) -> int:
    """The entry for a device; any accelerator counts as a GPU."""
    return sizes["cpu" if device.type == "cpu" else "cuda"]


def free_bytes(device: torch.device) -> int:
    """Free memory of a device in bytes, including memory that torch has reserved but does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def split(batches: Sequence[Batch], bytes_per_token: int, budget: int) -> list[list[Batch]]:
    """Splits batches into parts whose hidden states fit a budget in bytes; a part has at least one batch."""
    parts: list[list[Batch]] = []
    used = 0
    for batch in batches:
        size = batch.ids.numel() * bytes_per_token
        if not parts or used + size > budget:
            parts.append([])
            used = 0
        parts[-1].append(batch)
        used += size
    return parts
