"""A row's provenance: request, model, environment and result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lrbench.analysis.edit_summary import describe, optimal_error, relative_error
from lrbench.reports.render.json import finite
from lrbench.reports.render.number_format import clean
from lrbench.results.directory import RunDirectory
from lrbench.results.manifest import parse
from lrbench.results.rows import Row
from lrbench.system.text import printable


@dataclass(frozen=True)
class Run:
    """A run for its page.

    Attributes:
        name: of the directory, without its path.
        manifest: without paths of the machine; empty if missing.
        suite: the resolved suite as YAML.
        rows: the rows that the suite includes.
        environments: hash -> entry.
    """

    name: str
    key: str
    manifest: Mapping[str, Any]
    suite: str
    rows: Mapping[str, Row]
    environments: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, directory: RunDirectory, name: str, key: str) -> Run:
        """Reads a run's directory.

        Raises:
            InputError: one of its files cannot be read.
        """
        manifest = _public(directory.manifest()) if directory.manifest_file.is_file() else {}
        suite = manifest.get("suite")
        return cls(
            name=name,
            key=key,
            manifest=manifest,
            suite=_as_yaml(_without_nulls(suite)) if suite else "",
            rows=parse(manifest).rows_of_suite(directory.rows()),
            environments=directory.environments(),
        )

    @property
    def counts(self) -> dict[str, int]:
        """Rows by status."""
        counts = {"ok": 0, "failed": 0, "skipped": 0}
        for row in self.rows.values():
            counts[row.status] += 1
        return counts

    @property
    def models(self) -> list[dict[str, Any]]:
        """The manifest's entries of models."""
        return [model for model in self.manifest.get("models") or () if isinstance(model, dict)]

    def model(self, label: str) -> dict[str, Any]:
        """The manifest's entry of one model; empty if missing."""
        return next((model for model in self.models if model.get("label") == label), {})

    @property
    def reducers(self) -> list[dict[str, Any]]:
        """The manifest's entries of methods, with all keys that a page shows."""
        keys = ("label", "reducer", "params", "source", "source_hash")
        entries = [entry for entry in self.manifest.get("reducers") or () if isinstance(entry, dict)]
        return [dict.fromkeys(keys, "") | {"params": {}} | entry for entry in entries]

    def reducer(self, row: Row) -> dict[str, Any]:
        """The manifest's entry of a row's method; empty if missing."""
        entries = [entry for entry in self.manifest.get("reducers") or () if isinstance(entry, dict)]
        return next((entry for entry in entries if entry.get("label") == row.label), {})


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flattens nested data to (`a · b`, value); lists of plain values become one entry."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = clean(str(key)).replace("_", " ")
        if isinstance(value, Mapping):
            lines += [(f"{name} · {inner}", text) for inner, text in facts(value)] or [(name, "none")]
        elif isinstance(value, list | tuple):
            lines.append((name, ", ".join(_word(item) for item in value) or "none"))
        else:
            lines.append((name, _word(value)))
    return lines


def model_facts(model: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """A model's manifest entry in two parts: the model, and its engine with the self-check."""
    engine = {key: value for key, value in _mapping(model.get("engine")).items() if key != "tasks"}
    rest = {key: value for key, value in model.items() if key not in ("engine", "cells", "setting", "parts")}
    return {"Model": facts(rest), "Engine and self-check": facts(engine)}


def task_facts(model: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The recorded facts of each task: versions, documents, requests, hashes."""
    tasks = {**_mapping(model.get("tasks")), **_mapping(_mapping(model.get("engine")).get("tasks"))}
    return [(clean(name), facts(about)) for name, about in tasks.items() if isinstance(about, Mapping)]


def row_facts(row: Row) -> list[tuple[str, str]]:
    """A row's settings, sizes, errors and times as text."""
    error, optimum = relative_error(row.edits), optimal_error(row.edits)
    pairs: list[tuple[str, Any]] = [
        ("suite", row.suite), ("model", row.model), ("method", row.method), ("reducer", row.reducer),
        ("mode", row.mode), ("requested", row.setting), ("seed", row.seed), ("edited", describe(row.edits)),
        ("kept of the edited weights", row.keep_targets), ("kept of the model", row.keep_model),
        ("dense over stored parameters", row.compression_ratio), ("relative error", error),
        ("least error of these ranks", optimum), ("calibration, s", row.calibrate_seconds),
        ("decomposition, s", row.decompose_seconds), ("evaluation, s", row.evaluate_seconds),
    ]  # fmt: skip
    if row.selection is not None:
        pairs += [
            ("scored on", f"{row.selection.split} documents"), ("chosen for", row.selection.chosen_for),
            ("chosen among cells", row.selection.candidates),
            ("chosen on documents", sum((row.selection.validated_on or {}).values()) or None),
            ("stopped in a race after", sum(row.selection.documents.values()) if row.selection.stopped else None),
        ]  # fmt: skip
    return [(name, _word(value)) for name, value in pairs if value not in (None, "")]


def as_json(row: Row) -> str:
    """The row of `rows.jsonl`, indented; null for NaN and infinities."""
    data = json.loads(row.model_dump_json(by_alias=True))
    return json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    return clean(value if isinstance(value, str) else json.dumps(finite(value), ensure_ascii=False))


def _public(manifest: dict[str, Any]) -> dict[str, Any]:
    """Removes paths of the machine that ran it."""
    reducers = [
        {key: value for key, value in entry.items() if key != "file"} if isinstance(entry, dict) else entry
        for entry in manifest.get("reducers") or ()
    ]
    return {key: value for key, value in manifest.items() if key != "paths"} | {"reducers": reducers}


def _as_yaml(suite: Any) -> str:
    """A suite as YAML, with control characters escaped."""
    text = yaml.safe_dump(suite, sort_keys=False, allow_unicode=True)
    if all(printable(line) == line for line in text.split("\n")):
        return text
    return yaml.safe_dump(suite, sort_keys=False)


def _without_nulls(value: Any) -> Any:
    """Removes keys that are null, which stand for defaults."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
