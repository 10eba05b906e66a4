"""The second moments that predict the loss of a change of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lrbench.linalg import predicted_loss
from lrbench.reducers.base import Prepared

#: The statistics that a predicted loss needs.
MOMENTS = frozenset({"second_moment", "output_gradient_moment"})


@dataclass(frozen=True)
class LossMoments:
    """H = E[x xᵀ] and G = E[g gᵀ] of one weight, without damping.

    Attributes:
        second_moment: H (in, in).
        output_gradient_moment: G (out, out).
        per_token: tokens that reached the weight, per predicted token of the text; below 1 for an expert.
    """

    second_moment: torch.Tensor
    output_gradient_moment: torch.Tensor
    per_token: float = 1.0

    def of_change(self, change: torch.Tensor) -> float:
        """½ tr(G Δ H Δᵀ) of a change Δ (out, in) of the weight, in nats per predicted token."""
        return self.per_token * predicted_loss(change, self.second_moment, self.output_gradient_moment)

    def of_ranks(self, prepared: Prepared, ranks: Sequence[int]) -> list[float] | None:
        """The same for the factors of each rank; None if the method does not know it."""
        losses = prepared.predicted_losses(ranks, self.second_moment, self.output_gradient_moment)
        return None if losses is None else [self.per_token * float(loss) for loss in losses]
