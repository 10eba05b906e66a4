"""Reading a clock beside a device that works on its own."""

from __future__ import annotations

import torch


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was told: what is timed from now on is not paid for what came before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
