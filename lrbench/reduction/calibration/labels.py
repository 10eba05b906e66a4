"""The tokens whose negative log-likelihood is differentiated, and that loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Labels:
    """The labels of the calibration windows' positions.

    The text's own next tokens give the empirical Fisher information; tokens drawn from the model's distribution give an
    unbiased estimate of the Fisher information itself (Kunstner, Balles, Hennig, 2019, arXiv 1905.12558).

    Attributes:
        fisher: `empirical` for the text's next tokens, `sampled` for tokens drawn from the model.
        seed: of the draws.
    """

    fisher: Literal["empirical", "sampled"] = "empirical"
    seed: int = 0

    @property
    def definition(self) -> dict[str, object]:
        """What identifies the labels; empty for the text's own."""
        return {} if self.fisher == "empirical" else {"fisher": self.fisher, "seed": self.seed}

    def loss(self, model: PreTrainedModel, window: torch.Tensor, number: int) -> torch.Tensor:
        """The summed negative log-likelihood of the labels after all tokens of a window but the last, in nats.

        Args:
            window: (length,) token ids.
            number: of the window, so that its draws do not depend on other windows.
        """
        logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (length - 1, vocabulary)
        labels = window[1:]
        if self.fisher == "sampled":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)  # draws on every device alike
            uniform = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64)
            cumulative = logits.detach().double().softmax(-1).cumsum(-1)
            labels = torch.searchsorted(cumulative, uniform.to(logits.device) * cumulative[:, -1:])[:, 0]
        return nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
