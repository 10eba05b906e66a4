"""The result of reducing one slot, and the sizes of an edited model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Factors
from lrbench.results.rows import AllocationTrial, Edit


@dataclass(frozen=True)
class Reduction:
    """One slot reduced to one rank.

    Attributes:
        factors: the stored factors, in the model's dtype.
        edit: the row's record of the edit.
        seconds: the shared preparation and this rank's construction, synchronized.
        calibrate_seconds: the slot's fraction of the time that collecting statistics took.
        base: the slot that the factors are added to, on any device; None if they replace the weight itself.
        allocate_seconds: the time that the allocation took for this slot, beyond `seconds`.
        trial: of the allocation that chose the rank; the same for all weights of a cell.
        rank, chosen: for `WeightJob.measure`, which makes the record of the edit.
    """

    factors: Factors
    edit: Edit
    seconds: float
    calibrate_seconds: float = 0.0
    base: WeightSlot | None = None
    allocate_seconds: float = 0.0
    trial: AllocationTrial | None = None
    rank: int = 0
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def matrix(self) -> torch.Tensor:
        """The replacement of W (out, in): the product of the factors in at least float32, added to the base if any."""
        product = self.factors.to(dtype=working_dtype(self.factors.dtype)).dense()
        return product if self.base is None else product + base_weight(self.base, self.factors).to(product.dtype)


def sizes(
    slots: Sequence[WeightSlot], reductions: Sequence[Reduction], parameters: int, unedited: int | None = None
) -> dict[str, float | None]:
    """keep of the targets and of the model, and the compression ratio (None if nothing is stored).

    A part of a fused or stacked parameter replaces only itself. A tied weight is replaced only if all modules that use
    it are edited; otherwise its factors are stored in addition.

    Args:
        slots, reductions: one of each per edited weight.
        parameters: of the baseline.
        unedited: for updates, the parameters stored beside the base and the factors; see `Base.extra_parameters`.
    """
    stored = sum(reduction.edit.stored_numbers for reduction in reductions)
    dense = sum(slot.size for slot in slots)
    if unedited is None:
        places = {slot: slot.place for slot in slots}
        edited_users = Counter(places.values())
        whole = {place: slot.size for slot, place in places.items() if edited_users[place] == slot.users}
        unedited = parameters - sum(whole.values())
    model = (unedited + stored) / parameters
    return {
        "keep_targets": stored / dense if dense else 1.0,
        "keep_model": model,
        "compression_ratio": 1 / model if model else None,
    }


def base_weight(base: WeightSlot, other: torch.Tensor | Factors) -> torch.Tensor:
    """The base's weight (out, in) in the dtype and on the device of `other`."""
    return base.read().to(dtype=other.dtype, device=other.device)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that reducers compute in: float64 for float64, else float32."""
    return dtype if dtype == torch.float64 else torch.float32
