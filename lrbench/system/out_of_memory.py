"""Telling that memory ran out from other failures."""

from __future__ import annotations

import torch

ALLOCATOR_SAYS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. On a CPU torch raises a RuntimeError that only its text tells."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATOR_SAYS)
