"""The typed entries of a manifest, which another person or another version of lrbench may have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lrbench.results.rows import Row


class _Entry(BaseModel):
    """Checks the types of the keys that are read. Other keys are ignored; null counts as a missing key."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class TaskRequest(_Entry):
    """A task or group that the suite names."""

    task: str
    subtasks: list[str] = []


class TaskRecord(_Entry):
    """A task as it was scored: metric -> whether higher is better; hashes of documents, prompts, tokens, metrics."""

    higher_is_better: dict[str, Any] = {}
    hashes: dict[str, str] = {}


class EngineEntry(_Entry):
    """An engine, its tasks, and the tasks of each group."""

    name: Any = None
    tasks: dict[str, TaskRecord] = {}
    groups: dict[str, list[str]] = {}


class PartEntry(_Entry):
    """The engine and setting of cells scored on some of the documents."""

    engine: EngineEntry = EngineEntry()
    setting: dict[str, Any] = {}


class ModelEntry(EngineEntry):
    """A model. Its tasks and groups stand here, or with its engine."""

    label: str
    blocks: Annotated[int, Field(ge=0, le=100_000)] | None = None
    dtype: str | None = None
    weight_hash: str | None = None
    config_hash: str | None = None
    cells: list[str] = []
    engine: EngineEntry = EngineEntry()
    setting: dict[str, Any] = {}
    parts: dict[str, PartEntry] = {}
    calibration: dict[str, Any] = {}
    delta: dict[str, Any] = {}


class ReducerEntry(_Entry):
    """A reducer with its parameters, and where its code came from."""

    label: str | None = None
    reducer: str | None = None
    params: dict[str, Any] = {}
    source: str | None = None
    source_hash: str | None = None
    file: str | None = None


class Manifest(_Entry):
    """A run's manifest; `lrbench` is the version that wrote it."""

    lrbench: str | None = None
    suite: dict[str, Any] = {}
    suite_hash: str | None = None
    paths: dict[str, str] = {}
    tasks: list[TaskRequest] = []
    models: list[ModelEntry] = []
    reducers: list[ReducerEntry] = []
    cells: list[str] = []

    def rows_of_suite(self, rows: Mapping[str, Row]) -> dict[str, Row]:
        """Cell -> row of those that the suite asks for, in its order; all rows where the manifest names no cells."""
        cells = self.cells if "cells" in self.model_fields_set else rows
        return {cell: rows[cell] for cell in cells if cell in rows}


def parse(manifest: Mapping[str, Any]) -> Manifest:
    """Raises ValueError, in one line, where something in a manifest is not of the type that its readers rely on."""
    try:
        return Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
