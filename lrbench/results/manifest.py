"""What readers of a manifest rely on: a run may come from someone else, or from another version of lrbench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Shape(BaseModel):
    """Keys that are read have these types; there may be others, and none has to be there unless it says so."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Asked(_Shape):
    """A task, or a group of some."""

    task: str
    subtasks: list[str] | None = None


class _About(_Shape):
    """What is known of a task."""

    higher_is_better: dict[str, Any] | None = None
    hashes: dict[str, str] | None = None


class _Engine(_Shape):
    tasks: dict[str, _About] | None = None
    groups: dict[str, list[str]] | None = None


class _Model(_Engine):
    label: str
    blocks: Annotated[int, Field(ge=0, le=100_000)] = 0
    weight_hash: str | None = None
    cells: list[str] | None = None
    engine: _Engine | None = None
    setting: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None


class _Reducer(_Shape):
    label: str | None = None
    reducer: str | None = None
    params: dict[str, Any] | None = None
    source: str | None = None
    source_hash: str | None = None
    file: str | None = None


class _Manifest(_Shape):
    suite: dict[str, Any] | None = None
    suite_hash: str | None = None
    paths: dict[str, str] | None = None
    tasks: list[_Asked] | None = None
    models: list[_Model] | None = None
    reducers: list[_Reducer] | None = None
    cells: list[str] = Field(default_factory=list)


def refuse_other(manifest: Mapping[str, Any]) -> None:
    """Raises ValueError, in one line, where something in a manifest is not of the type that its readers rely on."""
    try:
        _Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
