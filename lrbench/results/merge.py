"""Merges shards of one suite into one run.

A shard is a run directory with some of a suite's rows. If two shards have different scores for a cell, merging is
refused with an error that shows both rows; nothing is averaged. If a cell failed in one shard and was scored in
another, the scored row is kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory, open_run
from lrbench.results.rows import Row
from lrbench.system import files
from lrbench.system.text import one_line

_RUN_FILES = frozenset(
    {
        *("manifest.json", "environments.jsonl", "rows.jsonl", "samples", "partial", ".lock"),
        *("leaderboard.md", "leaderboard.csv", "leaderboard.json"),
    }
)
#: Of two rows of a cell, that of the higher status is kept.
_PRECEDENCE = {"ok": 2, "skipped": 1, "failed": 0}
#: Entries of a model in the manifest that must be equal in all shards of a suite.
_COMMON_KEYS = ("weight_hash", "config_hash", "dtype", "numbers", "blocks", "cells")


@dataclass(frozen=True)
class _ShardRow:
    """A row with its shard and its line in the shard's file."""

    row: Row
    shard: RunDirectory
    line: int

    @property
    def place(self) -> str:
        return f"{self.shard.rows_file}:{self.line}"

    @property
    def samples(self) -> Path:
        return self.shard.samples_file(self.row.cell)


@dataclass
class Merged:
    """The result of merging.

    Attributes:
        directory: the merged run.
        rows: number of cells with a row, by status.
        missing: number of cells of the suite without a row in any shard.
    """

    directory: RunDirectory
    rows: dict[str, int] = field(default_factory=dict)
    missing: int = 0

    def summary(self) -> str:
        """One line for the terminal."""
        counts = ", ".join(f"{count} {status}" for status, count in self.rows.items() if count)
        missing = f"; {self.missing} cells of the suite are in no shard" if self.missing else ""
        return f"{sum(self.rows.values())} rows ({counts}) in {self.directory.path}{missing}"


def merge(shards: Sequence[Path], out: Path) -> Merged:
    """Merges several runs of the same suite into one.

    Merging again, with or without the result among the shards, changes nothing. The new directory appears complete,
    or not at all after an error. A run of the same suite that exists at `out` counts as a shard and is replaced:
    its tables are dropped, and files that are not lrbench's are kept.

    Args:
        shards: run directories.
        out: the directory to make.

    Raises:
        InputError: a shard is not a run, or is listed twice; shards have different suites, models or data; or two rows
            of a cell have different scores (the message shows both, with file and line).
    """
    places = [path.resolve() for path in shards]
    repeated = next((path for path, place in zip(shards, places, strict=True) if places.count(place) > 1), None)
    if repeated is not None:
        raise InputError(f"{repeated}: this run is given twice; give each shard once")
    runs = [open_run(path) for path in places]
    if RunDirectory(out).rows_file.exists() and out.resolve() not in [run.path for run in runs]:
        runs.insert(0, open_run(out.resolve()))  # its rows are kept
    elif out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; give a directory")
    elif out.is_dir() and not RunDirectory(out).rows_file.exists() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty, and not a run; give another directory")
    manifest = _merged_manifest(runs)
    rows = _merged_rows(runs)
    environments = _environments(runs)
    order = {cell: place for place, cell in enumerate(manifest["cells"])}
    ordered = sorted(rows.values(), key=lambda shard_row: order.get(shard_row.row.cell, len(order)))
    _write(out, manifest, environments, ordered)
    counts = {status: sum(entry.row.status == status for entry in ordered) for status in ("ok", "failed", "skipped")}
    return Merged(RunDirectory(out), counts, sum(cell not in rows for cell in order))


def _merged_manifest(runs: Sequence[RunDirectory]) -> dict[str, Any]:
    """The merged manifest, with the models of all shards in the suite's order."""
    manifests = [(run.manifest_file, run.manifest()) for run in runs]
    file, first = manifests[0]
    models: dict[str, tuple[Path, dict[str, Any]]] = {}
    for other_file, manifest in manifests:
        if manifest.get("suite_hash") != first.get("suite_hash"):
            at = _first_difference(first.get("suite"), manifest.get("suite"))
            raise InputError(
                f"{other_file}: another suite ({manifest.get('suite_hash')}) than {file} ({first.get('suite_hash')}); "
                f"they differ in {at}; only shards of one suite can be merged"
            )
        at = _first_difference(_sources(first), _sources(manifest))
        if at:
            raise InputError(
                f"{other_file}: other reducers than {file}: they differ in {at}; run all shards with the same version"
            )
        for model in manifest.get("models") or ():
            earlier_file, earlier = models.setdefault(model["label"], (other_file, model))
            if "parts" in earlier or "parts" in model:  # the chosen cells are known only at the end of a run
                models[model["label"]] = earlier_file, _with_all_cells(earlier, model)
                model = {**model, "cells": earlier.get("cells")}
            for key in _COMMON_KEYS:
                if earlier.get(key) != model.get(key):
                    at = _first_difference({key: earlier.get(key)}, {key: model.get(key)})
                    raise InputError(
                        f"{other_file}: model {model['label']!r} differs from that of {earlier_file} in {at}; "
                        "merge only runs of the same model"
                    )
    suite_models = (first.get("suite") or {}).get("models")
    labels = (
        [str(model.get("label")) for model in suite_models if isinstance(model, dict)]
        if isinstance(suite_models, list)
        else []
    )
    entries = [models[label][1] for label in (*labels, *models) if label in models]
    entries = list({model["label"]: model for model in entries}.values())
    tasks: list[Any] = next((manifest["tasks"] for _, manifest in manifests if manifest.get("tasks")), [])
    cells = [cell for model in entries for cell in model.get("cells") or ()] or list(
        dict.fromkeys(cell for _, manifest in manifests for cell in manifest.get("cells") or ())
    )
    return {**first, "tasks": tasks, "models": entries, "cells": cells}


def _with_all_cells(entry: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A model's manifest entry with the cells and documents of both entries, for suites with `select`."""
    cells = dict.fromkeys([*entry.get("cells", ()), *other.get("cells", ())])
    return {**entry, "parts": {**other.get("parts", {}), **entry.get("parts", {})}, "cells": list(cells)}


def _sources(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        entry.get("label", ""): {key: entry.get(key) for key in ("reducer", "params", "source_hash")}
        for entry in manifest.get("reducers") or ()
    }


def _first_difference(left: Any, right: Any, path: str = "") -> str:
    """The path of the first difference in nested data, with both values; empty if the data are equal."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = dict.fromkeys([*left, *right])
        children = [(f"{path}.{key}" if path else str(key), left.get(key), right.get(key)) for key in keys]
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        children = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(left, right, strict=True))]
    else:
        return "" if left == right else f"{path} ({_short(left)} and {_short(right)})"
    differences = (_first_difference(a, b, child) for child, a, b in children)
    return next(filter(None, differences), "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _merged_rows(runs: Sequence[RunDirectory]) -> dict[str, _ShardRow]:
    """One row per cell: a scored row before a skipped before a failed one; among equals, the first shard's."""
    rows: dict[str, _ShardRow] = {}
    for run in runs:
        for shard_row in _rows_of_shard(run):
            cell = shard_row.row.cell
            earlier = rows.setdefault(cell, shard_row)
            if earlier is shard_row:
                continue
            if shard_row.row.status == earlier.row.status == "ok":
                _refuse_conflict(earlier, shard_row)
                if shard_row.samples.is_file() and not earlier.samples.is_file():
                    rows[cell] = shard_row
            elif _PRECEDENCE[shard_row.row.status] > _PRECEDENCE[earlier.row.status]:
                rows[cell] = shard_row
    return rows


def _rows_of_shard(run: RunDirectory) -> Iterator[_ShardRow]:
    """The last row of each cell, with its line."""
    lines: dict[str, int] = {}
    rows = run.rows()  # checks every line
    with run.rows_file.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                lines[from_json(line)["cell"]] = number
    for cell, row in rows.items():
        yield _ShardRow(row, run, lines[cell])


def _refuse_conflict(first: _ShardRow, second: _ShardRow) -> None:
    for task in dict.fromkeys([*first.row.scores, *second.row.scores]):
        metrics = first.row.scores.get(task, {}), second.row.scores.get(task, {})
        for metric in dict.fromkeys([*metrics[0], *metrics[1]]):
            a, b = (side.get(metric) for side in metrics)
            equal = a is not None and b is not None and repr((a.value, a.n)) == repr((b.value, b.n))
            if not equal:
                values = [repr(score.value) if score is not None else "no score" for score in (a, b)]
                apart = first.row.environment != second.row.environment
                raise InputError(
                    f"{first.place} and {second.place}: two rows of cell {first.row.cell}, with {task} {metric} "
                    f"{values[0]} and {values[1]}{', scored in different environments' if apart else ''}; "
                    "remove one of them"
                )


def _environments(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    environments: dict[str, dict[str, Any]] = {}
    for run in runs:
        for key, entry in run.environments().items():
            if environments.setdefault(key, entry) != entry:
                raise InputError(
                    f"{run.path / 'environments.jsonl'}: environment {key} differs from that of another shard; restore "
                    "the file"
                )
    return list(environments.values())


def _write(
    out: Path, manifest: dict[str, Any], environments: Sequence[dict[str, Any]], rows: Sequence[_ShardRow]
) -> None:
    """Writes a folder beside `out`, then renames it: readers see the old directory or the complete new one."""
    out = out.absolute()
    try:
        with files.temporary_folder(out) as new:
            run = RunDirectory(new)
            run.write_manifest(manifest)
            _lines(new / "environments.jsonl", (json.dumps(entry, ensure_ascii=False) for entry in environments))
            (new / "samples").mkdir()
            for shard_row in rows:
                if shard_row.samples.is_symlink():  # a shard of another user may link to any file of this machine
                    raise InputError(f"{shard_row.samples}: a link; replace it by the file itself")
                if shard_row.samples.is_file():
                    shutil.copyfile(shard_row.samples, new / "samples" / shard_row.samples.name)
            _lines(new / "rows.jsonl", (shard_row.row.model_dump_json(by_alias=True) for shard_row in rows))
            if not out.exists():
                files.replace_folder(out, new)
            elif _digest(out) != _digest(new):  # else files keep their modification times
                with RunDirectory(out).locked():  # a run in progress would write its next rows to the replaced folder
                    files.replace_folder(out, new, [path.name for path in out.iterdir() if path.name not in _RUN_FILES])
    except files.Timeout:
        raise InputError(f"--out: {out}: lrbench is running a suite here; wait for it") from None
    except OSError as error:
        raise InputError(f"--out: cannot write {out}: {error.strerror or one_line(error)}") from None


def _lines(path: Path, lines: Iterator[str]) -> None:
    files.write(path, "".join(f"{line}\n" for line in lines))


def _digest(folder: Path) -> str:
    """SHA-256 of a run's files, without the tables made from them."""
    digest = hashlib.sha256()
    parts = [folder / "manifest.json", folder / "environments.jsonl", folder / "rows.jsonl"]
    for path in (*parts, *sorted((folder / "samples").glob("*.jsonl"))):
        digest.update(path.name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()
