"""Statistics of white inputs, for timing calibrated methods before statistics are collected."""

from __future__ import annotations

import torch

from lrbench.models.slots import WeightSlot


class WhiteInputs:
    """A substitute for `Calibration`: independent inputs of unit variance."""

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[dict[str, torch.Tensor], float]:
        """As `Calibration.statistics`, for any slot."""
        ones = torch.ones(slot.about.shape[1], device=slot.tensor().device)  # (in,)
        return {kind: torch.diag(ones) if kind == "second_moment" else ones for kind in needs}, 0.0

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """(in, in)."""
        return self.statistics(slot, frozenset({"second_moment"}))[0]["second_moment"]

    def loss(self) -> float:
        """Always 0."""
        return 0.0
