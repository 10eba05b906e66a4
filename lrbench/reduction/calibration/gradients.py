"""The Fisher information of each weight's inputs: one forward and backward pass per calibration window."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.models.slots import WeightSlot


def fisher(
    model: PreTrainedModel, slots: Sequence[WeightSlot], windows: torch.Tensor
) -> tuple[Mapping[str, torch.Tensor], float]:
    """F_j = Σ_i E[(∂loss/∂W_ij)²] for the inputs j of every slot, averaged over windows.

    The loss is the mean negative log-likelihood of a window's tokens. Each window has its own backward pass, so that
    gradients of single samples are squared. A gradient is freed as soon as it is summed.

    Args:
        model: with its original weights; left unchanged.
        slots: none of them on a parameter that several modules use.
        windows: (samples, length) token ids.

    Returns:
        Slot's name -> (in,) float32 on the CPU; and the seconds per slot.
    """
    started = time.perf_counter()
    device = model.device
    sums = {
        slot.name: torch.zeros(slot.about.shape[1], dtype=torch.float64, device=slot.tensor().device) for slot in slots
    }
    parameters = {id(slot.tensor()): slot.tensor() for slot in slots}
    before = {key: parameter.requires_grad for key, parameter in parameters.items()}

    def accumulate(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is None:
            return
        for slot in slots:
            if slot.tensor() is parameter:
                part = slot.layout.read(gradient)  # (out, in)
                sums[slot.name] += part.float().square().sum(0, dtype=torch.float64)

    hooks = []
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            hooks.append(parameter.register_post_accumulate_grad_hook(accumulate))
        with torch.enable_grad():
            for window in windows.to(device):
                logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
                loss = nn.functional.cross_entropy(logits.float(), window[1:].to(logits.device))
                if loss.requires_grad:  # else it depends on none of the slots
                    loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for key, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(before[key])
    means = {name: (total / len(windows)).float().cpu() for name, total in sums.items()}
    return means, (time.perf_counter() - started) / max(1, len(slots))
