"""Writes `manifest.json`: what a run was to do, and with which models, reducers and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench._version import __version__
from lrbench.models.slots import count_parameters
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import Suite

if TYPE_CHECKING:
    from lrbench.evaluation.base_engine import BaseEngine
    from lrbench.models.base_model import Base
    from lrbench.models.load import LoadedModel
    from lrbench.reducers.registry import Registry
    from lrbench.reduction.calibration.statistics import Calibration
    from lrbench.reduction.plan import Method
    from lrbench.tasks.task_set import TaskSet


@dataclass(frozen=True)
class Part:
    """Some of the documents that a model's cells are scored on.

    Attributes:
        name: as `Selection.part`.
        engine: bound to these documents.
        setting: what defines the rows on these documents beside the cells themselves.
    """

    name: str
    engine: BaseEngine
    setting: Mapping[str, Any]


class ManifestWriter:
    """Writes a run's manifest, one model after the other.

    A model's entry by an earlier run of the same suite stays until this run reaches the model, so that a run that fails
    removes nothing from the tables.

    Attributes:
        changed: labels of the methods whose code is not that of an earlier run in the directory.
    """

    def __init__(self, directory: RunDirectory, suite: Suite, methods: Sequence[Method], registry: Registry) -> None:
        self._directory = directory
        earlier = directory.manifest() if directory.manifest_file.exists() else {}
        labels = [spec.display_name for spec in suite.models]
        entries = {model["label"]: model for model in earlier.get("models", ())}
        self._models: dict[str, dict[str, Any]] = {label: entries[label] for label in labels if label in entries}
        self._labels = labels
        self._begun: set[str] = set()
        self._content: dict[str, Any] = {
            "schema": 1,
            "lrbench": __version__,
            "suite": suite.resolved(),
            "suite_hash": suite.hash,
            "paths": suite.local_paths(),
            "tasks": earlier.get("tasks", []),
            "reducers": [_of_method(method, registry) for method in methods],
        }
        hashes = {entry.get("label"): entry.get("source_hash") for entry in earlier.get("reducers") or ()}
        self.changed = [m.label for m in methods if hashes.get(m.label, m.source_hash) != m.source_hash]

    def add_model(
        self,
        loaded: LoadedModel,
        tasks: TaskSet,
        engine: BaseEngine,
        setting: Mapping[str, Any],
        cells: list[str],
        calibration: Calibration | None = None,
        base: Base | None = None,
        *,
        at_work: bool,
        part: Part | None = None,
    ) -> None:
        """Writes a model's entry before its cells, or some of them, are scored.

        The first call for a model begins its list of cells anew; further calls add to it.

        Args:
            engine: bound to the requests of all tasks.
            setting: what defines the rows beside the cells themselves.
            cells: hashes of the cells, in the order of the plan.
            calibration: None if the suite has none.
            base: the model before fine-tuning, if updates are reduced.
            at_work: whether the engine has cells to score; else the description of the earlier engine stays.
            part: the documents that the cells are scored on, if they are not all of the suite's.
        """
        earlier = self._models.get(loaded.label, {})
        cells = [*(earlier["cells"] if loaded.label in self._begun else ()), *cells]
        self._begun.add(loaded.label)
        parts = dict(earlier.get("parts") or {})
        if part is not None:
            entry = parts.get(part.name)
            described = part.engine.describe() if at_work or entry is None else entry["engine"]
            parts[part.name] = {"engine": described, "setting": dict(part.setting)}
        self._models[loaded.label] = {
            "label": loaded.label,
            **loaded.source,
            "weight_hash": loaded.weight_hash,
            "config_hash": loaded.config_hash,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "numbers": count_parameters(loaded.model),
            "blocks": len(loaded.inventory.blocks),
            "engine": engine.describe() if at_work or "engine" not in earlier else earlier["engine"],
            "setting": dict(setting),
            **({"calibration": calibration.describe()} if calibration is not None else {}),
            **({"delta": base.describe()} if base is not None else {}),
            **({"parts": parts} if part is not None else {}),
            "cells": list(dict.fromkeys(cells)),
        }
        self._content["tasks"] = [{"task": name, "subtasks": parts} for name, parts in tasks.named.items()]
        self._write()

    def update_engine(self, loaded: LoadedModel, engine: BaseEngine, part: str | None = None) -> None:
        """Writes an engine's description after it has scored, when its fallbacks are known."""
        entry = self._models[loaded.label]
        (entry if part is None else entry["parts"][part])["engine"] = engine.describe()
        self._write()

    def _write(self) -> None:
        models = [self._models[label] for label in self._labels if label in self._models]
        cells_of_all = [cell for model in models for cell in model["cells"]]
        self._directory.write_manifest({**self._content, "models": models, "cells": cells_of_all})


def _of_method(method: Method, registry: Registry) -> dict[str, Any]:
    name = method.reducer.name
    source = registry.source(name)
    return {
        "label": method.label,
        "reducer": name,
        "params": dict(method.params),
        "source": source,
        **({"file": str(Path(source).resolve())} if registry.is_file(name) else {}),
        "source_hash": method.source_hash,
    }
