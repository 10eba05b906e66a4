"""Weights that cannot have statistics because of their place in the model."""

from __future__ import annotations

from lrbench.models.slots import WeightSlot

TOKENS = "its inputs are single tokens, not activations"


def uncalibrated(slot: WeightSlot, needs: frozenset[str]) -> str | None:
    """Why a slot cannot have statistics of the needed kinds, else None."""
    if not needs:
        return None
    if slot.about.role == "embed":
        return TOKENS
    if "fisher" in needs and slot.users > 1:
        return "its gradient includes that of a tied weight"
    return None
