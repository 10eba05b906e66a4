"""Choosing and synchronizing a device, its free memory, and out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterable

import psutil
import torch

from lrbench.errors import ModelError
from lrbench.system.text import one_line

ALLOCATOR_SAYS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def choose_device(name: str | None) -> torch.device:
    """The named device, else the GPU if there is one, else the CPU. Raises ModelError: the device does not exist."""
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used here: {one_line(error)}; cpu always can") from error
    return device


def synchronize(device: torch.device) -> None:
    """Waits until a device has finished its queued work, so that a timing does not include earlier work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_room(label: str, parameters: int, dtype: torch.dtype, devices: Iterable[torch.device]) -> None:
    """Refuses a model that does not fit into the free memory of its devices.

    Args:
        parameters: how many the model has, tied ones counted once.
        dtype: the dtype of the loaded weights.

    Raises:
        ModelError: too little memory is free; gives both sizes.
    """
    distinct = list(dict.fromkeys(devices))
    need, free = parameters * dtype.itemsize, sum(map(free_bytes, distinct))
    if need > free:
        names = ", ".join(map(str, distinct))
        raise ModelError(
            f"{label}: its {parameters:,} parameters take {_gib(need)} in {str(dtype).removeprefix('torch.')}, and "
            f"{names} {'has' if len(distinct) == 1 else 'have'} {_gib(free)} free; "
            "choose a smaller dtype, or a device or device_map with more memory"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error. On a CPU torch raises a RuntimeError, recognized by its text."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATOR_SAYS)
