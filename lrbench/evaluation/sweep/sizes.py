"""How much memory there is, and what fits."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from lrbench.evaluation.sweep.batches import Batch

TOKENS = {"cpu": 1024, "cuda": 16384}  # of a batch
LEAST_TOKENS = 64  # below this, halving batches saves no memory to speak of
LOGITS = {"cpu": 2**25, "cuda": 2**27}  # positions × vocabulary, float32, at once; fewer slow a large head down
SCORES = {"cpu": 2**26, "cuda": 2**29}  # numbers, attention scores of a batch where the model holds them
LONGEST = 4096  # tokens; how long a row may become by sharing, whatever its costs: its mask has the square of it


def of(sizes: dict[str, int], device: torch.device) -> int:
    """The entry for a kind of device; any accelerator counts as a GPU."""
    return sizes["cpu" if device.type == "cpu" else "cuda"]


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, with what torch holds of it and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def split(batches: Sequence[Batch], bytes_per_token: int, budget: int) -> list[list[Batch]]:
    """Parts such that the states of each part's tokens fit a budget in bytes; a part has one batch at least."""
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
