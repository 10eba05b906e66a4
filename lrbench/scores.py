"""A score, as tasks make it and rows keep it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A record that refuses keys it does not know, and writes infinities as JSON's readers take them back."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Score(Strict):
    """One metric of one task, over `n` documents."""

    value: float
    stderr: float | None = None
    n: int
