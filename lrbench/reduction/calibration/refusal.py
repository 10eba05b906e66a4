"""Which weights can have no statistics, as far as their place in the model tells."""

from __future__ import annotations

from lrbench.models.slots import WeightSlot

TOKENS = "its inputs are single tokens, not activations"


def uncalibrated(slot: WeightSlot, needs: frozenset[str]) -> str | None:
    """Why a slot can have no statistics of the kinds needed, else None."""
    if not needs:
        return None
    if slot.about.role == "embed":
        return TOKENS
    if "fisher" in needs and slot.users > 1:
        return "its gradient is also that of the weight that it is tied to"
    return None
