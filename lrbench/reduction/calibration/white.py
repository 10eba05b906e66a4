"""The statistics of white inputs, to time a calibrated method with where none have been collected."""

from __future__ import annotations

import torch

from lrbench.models.slots import WeightSlot


class WhiteInputs:
    """In place of a `Calibration`: independent inputs of unit variance, which cost nothing to collect."""

    def statistics(self, slot: WeightSlot, needs: frozenset[str]) -> tuple[dict[str, torch.Tensor], float]:
        """As `Calibration.statistics`, for any slot."""
        ones = torch.ones(slot.about.shape[1], device=slot.tensor().device)  # (in,)
        return {kind: torch.diag(ones) if kind == "second_moment" else ones for kind in needs}, 0.0

    def second_moment(self, slot: WeightSlot) -> torch.Tensor:
        """(in, in)."""
        return self.statistics(slot, frozenset({"second_moment"}))[0]["second_moment"]

    def loss(self) -> float:
        """Of no text."""
        return 0.0
