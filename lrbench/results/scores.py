"""A score, as tasks make it and rows keep it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Counts, ranks, seeds, bytes: whole numbers that a float can be made of.
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]
Number = float | Annotated[int, Field(gt=-(2**63), lt=2**63)]


class Strict(BaseModel):
    """A record that refuses keys it does not know, and writes infinities as JSON's readers take them back."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Score(Strict):
    """One metric of one task, over `n` documents."""

    value: float
    stderr: float | None = None
    n: Whole
