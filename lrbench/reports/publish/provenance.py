"""Where a row comes from: what was asked, of what, on which machine, with which answer."""

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
    """A run, as its page shows it.

    Attributes:
        name: of the directory, not the path to it.
        manifest: without paths of the machine; empty where there is none.
        suite: the resolved suite as YAML.
        rows: those that the suite asks for.
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
            suite=_as_yaml(_without_nothing(suite)) if suite else "",
            rows=parse(manifest).rows_of_suite(directory.rows()),
            environments=directory.environments(),
        )

    @property
    def counts(self) -> dict[str, int]:
        """Rows by status."""
        found = {"ok": 0, "failed": 0, "skipped": 0}
        for row in self.rows.values():
            found[row.status] += 1
        return found

    @property
    def models(self) -> list[dict[str, Any]]:
        """The manifest's entries of models."""
        return [model for model in self.manifest.get("models") or () if isinstance(model, dict)]

    def model(self, label: str) -> dict[str, Any]:
        """The entry of one; empty where there is none."""
        return next((model for model in self.models if model.get("label") == label), {})

    @property
    def reducers(self) -> list[dict[str, Any]]:
        """The manifest's entries of methods, each with all keys that a page shows."""
        keys = ("label", "reducer", "params", "source", "source_hash")
        entries = [entry for entry in self.manifest.get("reducers") or () if isinstance(entry, dict)]
        return [dict.fromkeys(keys, "") | {"params": {}} | entry for entry in entries]

    def reducer(self, row: Row) -> dict[str, Any]:
        """The manifest's entry of a row's method; empty where there is none."""
        entries = [entry for entry in self.manifest.get("reducers") or () if isinstance(entry, dict)]
        return next((entry for entry in entries if entry.get("label") == row.label), {})


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested plain data as lines `a.b`, `value`; lists of plain values on one line, nothing left out."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = clean(str(key)).replace("_", " ")
        if isinstance(value, Mapping):
            found += [(f"{name} · {inner}", text) for inner, text in facts(value)] or [(name, "none")]
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(_word(item) for item in value) or "none"))
        else:
            found.append((name, _word(value)))
    return found


def model_facts(model: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """A manifest's entry of a model in three parts: itself, its engine with the self-check, its tasks."""
    engine = {key: value for key, value in _mapping(model.get("engine")).items() if key != "tasks"}
    rest = {key: value for key, value in model.items() if key not in ("engine", "cells", "setting", "parts")}
    return {"Model": facts(rest), "Engine and self-check": facts(engine)}


def task_facts(model: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is known of each task: versions, documents, requests, hashes."""
    tasks = {**_mapping(model.get("tasks")), **_mapping(_mapping(model.get("engine")).get("tasks"))}
    return [(clean(name), facts(about)) for name, about in tasks.items() if isinstance(about, Mapping)]


def row_facts(row: Row) -> list[tuple[str, str]]:
    """What a row was and cost, in words."""
    error, optimum = relative_error(row.edits), optimal_error(row.edits)
    pairs: list[tuple[str, Any]] = [
        ("suite", row.suite), ("model", row.model), ("method", row.method), ("reducer", row.reducer),
        ("mode", row.mode), ("asked for", row.setting), ("seed", row.seed), ("edited", describe(row.edits)),
        ("kept of the edited weights", row.keep_targets), ("kept of the model", row.keep_model),
        ("dense numbers over stored ones", row.compression_ratio), ("relative error", error),
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
    """The row as it stands in `rows.jsonl`, indented; null for what JSON cannot say."""
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
    """Without what says where files lie on the machine that ran it."""
    reducers = [
        {key: value for key, value in entry.items() if key != "file"} if isinstance(entry, dict) else entry
        for entry in manifest.get("reducers") or ()
    ]
    return {key: value for key, value in manifest.items() if key != "paths"} | {"reducers": reducers}


def _as_yaml(suite: Any) -> str:
    """A suite as YAML, with signs that a terminal or an editor would act on written as escapes."""
    text = yaml.safe_dump(suite, sort_keys=False, allow_unicode=True)
    if all(printable(line) == line for line in text.split("\n")):
        return text
    return yaml.safe_dump(suite, sort_keys=False)


def _without_nothing(value: Any) -> Any:
    """Without keys that are null: they stand for the defaults."""
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value
