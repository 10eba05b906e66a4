"""A model's loss on the calibration windows."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

_LOGIT_BYTES = 2**28  # of a forward pass in float32


@torch.no_grad()
def text_loss(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """The mean negative log-likelihood of the predicted tokens, in nats.

    Args:
        windows: (samples, length) token ids; the first token of a window is not predicted. Of length 1, the loss is 0.
    """
    samples, length = windows.shape
    if length < 2:
        return 0.0
    vocabulary = model.config.get_text_config().vocab_size
    at_once = max(1, _LOGIT_BYTES // (4 * length * vocabulary))
    total = 0.0
    for start in range(0, samples, at_once):
        batch = windows[start : start + at_once].to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]  # (batch, length - 1, vocabulary)
        targets = batch[:, 1:].to(logits.device)
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        total += float(losses.sum(dtype=torch.float64))
    return total / (samples * (length - 1))
