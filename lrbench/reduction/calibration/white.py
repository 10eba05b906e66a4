"""Statistics of white inputs and gradients, for timing calibrated methods before statistics are collected."""

from __future__ import annotations

import torch

from lrbench.models.slots import WeightSlot
from lrbench.reduction.calibration.loss_moments import LossMoments


class WhiteInputs:
    """A substitute for `Calibration`: independent inputs and output gradients of unit variance."""

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[dict[str, torch.Tensor], float]:
        """As `Calibration.statistics`, for any slot."""
        outputs, inputs = (torch.ones(size, device=slot.tensor().device) for size in slot.about.shape)
        white = {"second_moment": inputs.diag, "output_gradient_moment": outputs.diag}
        return {kind: white[kind]() if kind in white else inputs for kind in needs}, 0.0

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """(in, in)."""
        return self.statistics(slot, frozenset({"second_moment"}))[0]["second_moment"]

    def loss_moments(self, slot: WeightSlot) -> LossMoments | None:
        """None: no predicted loss is measured."""
        return None

    def loss(self) -> float:
        """Always 0."""
        return 0.0

    @property
    def held_out_tokens(self) -> int:
        """0."""
        return 0

    def held_out_loss(self) -> float:
        """Always 0."""
        return 0.0
