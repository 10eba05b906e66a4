"""One slot reduced to one rank, and what a cell's reductions come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Factors
from lrbench.results.rows import Edit


@dataclass(frozen=True)
class Reduction:
    """One slot reduced to one rank.

    Attributes:
        factors: what would be stored, in the model's dtype.
        edit: the row's record of it.
        seconds: the shared preparation and this rank's construction, synchronized.
        calibrate_seconds: the slot's share of what collecting its statistics cost.
        base: what the factors are an update of, on whatever device; None where they stand in for the weight itself.
        allocate_seconds: what finding its rank took where numbers are shared out, beyond `seconds`.
    """

    factors: Factors
    edit: Edit
    seconds: float
    calibrate_seconds: float = 0.0
    base: WeightSlot | None = None
    allocate_seconds: float = 0.0

    def matrix(self) -> torch.Tensor:
        """What stands in for W (out, in): the product of the stored factors, computed in float32 or better.

        Of an update, the base's weight with the product added to it.
        """
        product = self.factors.to(dtype=working_dtype(self.factors.dtype)).dense()
        return product if self.base is None else product + beside(self.base, self.factors).to(product.dtype)


def sizes(
    slots: Sequence[WeightSlot], reductions: Sequence[Reduction], numbers: int, beside: int | None = None
) -> dict[str, float | None]:
    """keep of the targets and of the model, and the compression ratio; None where nothing at all is stored.

    A part of a fused or stacked parameter replaces its own numbers. A tied weight is replaced only when all that use it
    are edited; else its factors come on top of it.

    Args:
        slots, reductions: one of each for each edited weight.
        numbers: parameters of the baseline.
        beside: of updates, what else must be stored on top of the base; see `Base.numbers_beside`.
    """
    stored = sum(reduction.edit.stored_numbers for reduction in reductions)
    dense = sum(slot.numbers for slot in slots)
    if beside is None:
        places = {slot: slot.place for slot in slots}
        edited_users = Counter(places.values())
        whole = {place: slot.numbers for slot, place in places.items() if edited_users[place] == slot.users}
        beside = numbers - sum(whole.values())
    model = (beside + stored) / numbers
    return {
        "keep_targets": stored / dense if dense else 1.0,
        "keep_model": model,
        "compression_ratio": 1 / model if model else None,
    }


def beside(base: WeightSlot, other: torch.Tensor | Factors) -> torch.Tensor:
    """A base's weight (out, in) in the dtype of what it stands beside, and on its device."""
    return base.read().to(dtype=other.dtype, device=other.device)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What reducers compute in: float64 stays, everything else is float32."""
    return dtype if dtype == torch.float64 else torch.float32
