"""Shards of one suite become one run.

A shard is a run directory that holds some of a suite's rows, made on some machine. Rows are facts: a cell cannot have
two sets of scores, so two that differ are an error that shows both, and nothing is averaged or overruled. Of a cell
that failed here and was scored there, the scored row counts.
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

_OWN = frozenset(
    {
        *("manifest.json", "environments.jsonl", "rows.jsonl", "samples", "partial", ".lock"),
        *("leaderboard.md", "leaderboard.csv", "leaderboard.json"),
    }
)
_RANK = {"ok": 2, "skipped": 1, "failed": 0}
#: What every shard of a suite says of a model alike, however and wherever it was scored.
_OF_MODELS = ("weight_hash", "config_hash", "dtype", "numbers", "blocks", "cells")


@dataclass(frozen=True)
class _Placed:
    """A row, where it was read, and the shard it is of."""

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
    """What merging did.

    Attributes:
        directory: the run that there is now.
        rows: how many cells it has rows of, by status.
        missing: cells of the suite that no shard has.
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
    """Makes one run of several of the same suite.

    Merging again, with the result among the shards or not, changes nothing. The new directory appears whole, or, where
    anything is wrong, not at all. A run of the same suite that is there already is one of the shards, and is replaced;
    tables made of it are left out, and files that are not lrbench's are kept.

    Args:
        shards: run directories.
        out: the directory to make.

    Raises:
        InputError: a shard is no run, or given twice; two are of different suites, models or data; or two rows of a
            cell have different scores: shows both, with file and line.
    """
    places = [path.resolve() for path in shards]
    repeated = next((path for path, place in zip(shards, places, strict=True) if places.count(place) > 1), None)
    if repeated is not None:
        raise InputError(f"{repeated}: this run is given twice; give each shard once")
    runs = [open_run(path) for path in places]
    if RunDirectory(out).rows_file.exists() and out.resolve() not in [run.path for run in runs]:
        runs.insert(0, open_run(out.resolve()))  # what it has is not lost
    elif out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; give a directory")
    elif out.is_dir() and not RunDirectory(out).rows_file.exists() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty, and not a run; give another directory")
    manifest = _one_manifest(runs)
    rows = _one_of_each(runs)
    environments = _environments(runs)
    order = {cell: place for place, cell in enumerate(manifest["cells"])}
    chosen = sorted(rows.values(), key=lambda placed: order.get(placed.row.cell, len(order)))
    _write(out, manifest, environments, chosen)
    counts = {status: sum(placed.row.status == status for placed in chosen) for status in ("ok", "failed", "skipped")}
    return Merged(RunDirectory(out), counts, sum(cell not in rows for cell in order))


def _one_manifest(runs: Sequence[RunDirectory]) -> dict[str, Any]:
    """The manifest of all; its models are those of any, in the suite's order."""
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
                f"{other_file}: other reducers than {file}: they differ in {at}; run the shards with one version"
            )
        for model in manifest.get("models") or ():
            earlier_file, earlier = models.setdefault(model["label"], (other_file, model))
            if "parts" in earlier or "parts" in model:  # what is chosen from them is known only at the end
                models[model["label"]] = earlier_file, _with_all_cells(earlier, model)
                model = {**model, "cells": earlier.get("cells")}
            for key in _OF_MODELS:
                if earlier.get(key) != model.get(key):
                    at = _first_difference({key: earlier.get(key)}, {key: model.get(key)})
                    raise InputError(
                        f"{other_file}: model {model['label']!r} is not that of {earlier_file}: they differ in {at}; "
                        "its rows are of other cells"
                    )
    asked = (first.get("suite") or {}).get("models")
    labels = [str(model.get("label")) for model in asked if isinstance(model, dict)] if isinstance(asked, list) else []
    found = [models[label][1] for label in (*labels, *models) if label in models]
    found = list({model["label"]: model for model in found}.values())
    tasks: list[Any] = next((manifest["tasks"] for _, manifest in manifests if manifest.get("tasks")), [])
    cells = [cell for model in found for cell in model.get("cells") or ()] or list(
        dict.fromkeys(cell for _, manifest in manifests for cell in manifest.get("cells") or ())
    )
    return {**first, "tasks": tasks, "models": found, "cells": cells}


def _with_all_cells(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The entry of a model whose suite chooses, with the cells, and the documents they are scored on, of both."""
    cells = dict.fromkeys([*one.get("cells", ()), *other.get("cells", ())])
    return {**one, "parts": {**other.get("parts", {}), **one.get("parts", {})}, "cells": list(cells)}


def _sources(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        entry.get("label", ""): {key: entry.get(key) for key in ("reducer", "params", "source_hash")}
        for entry in manifest.get("reducers") or ()
    }


def _first_difference(one: Any, other: Any, path: str = "") -> str:
    """Where nested data first differs, with both values; empty where it does not."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            found = _first_difference(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next(
            (
                found
                for i, (a, b) in enumerate(zip(one, other, strict=True))
                if (found := _first_difference(a, b, f"{path}[{i}]"))
            ),
            "",
        )
    return "" if one == other else f"{path} ({_short(one)} and {_short(other)})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_of_each(runs: Sequence[RunDirectory]) -> dict[str, _Placed]:
    """One row a cell: scored before skipped before failed; of equals the first shard's."""
    found: dict[str, _Placed] = {}
    for run in runs:
        for placed in _placed(run):
            cell = placed.row.cell
            earlier = found.setdefault(cell, placed)
            if earlier is placed:
                continue
            if placed.row.status == earlier.row.status == "ok":
                _refuse_conflict(earlier, placed)
                if placed.samples.is_file() and not earlier.samples.is_file():
                    found[cell] = placed
            elif _RANK[placed.row.status] > _RANK[earlier.row.status]:
                found[cell] = placed
    return found


def _placed(run: RunDirectory) -> Iterator[_Placed]:
    """The last row of each cell, with its line."""
    lines: dict[str, int] = {}
    rows = run.rows()  # refuses what is no row
    with run.rows_file.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                lines[from_json(line)["cell"]] = number
    for cell, row in rows.items():
        yield _Placed(row, run, lines[cell])


def _refuse_conflict(one: _Placed, other: _Placed) -> None:
    for task in dict.fromkeys([*one.row.scores, *other.row.scores]):
        metrics = one.row.scores.get(task, {}), other.row.scores.get(task, {})
        for metric in dict.fromkeys([*metrics[0], *metrics[1]]):
            a, b = (side.get(metric) for side in metrics)
            same = a is not None and b is not None and repr((a.value, a.n)) == repr((b.value, b.n))
            if not same:
                values = [repr(score.value) if score is not None else "no score" for score in (a, b)]
                apart = one.row.environment != other.row.environment
                raise InputError(
                    f"{one.place} and {other.place}: two rows of cell {one.row.cell}, with {task} {metric} "
                    f"{values[0]} and {values[1]}{', scored in different environments' if apart else ''}; "
                    "take one of them out"
                )


def _environments(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for key, entry in run.environments().items():
            if found.setdefault(key, entry) != entry:
                raise InputError(f"{run.path / 'environments.jsonl'}: environment {key} is another one elsewhere")
    return list(found.values())


def _write(
    out: Path, manifest: dict[str, Any], environments: Sequence[dict[str, Any]], chosen: Sequence[_Placed]
) -> None:
    """Beside `out` first, then in its place: whoever looks sees the old directory or the whole new one."""
    out = out.absolute()
    try:
        with files.temporary_folder(out) as new:
            run = RunDirectory(new)
            run.write_manifest(manifest)
            _lines(new / "environments.jsonl", (json.dumps(entry, ensure_ascii=False) for entry in environments))
            (new / "samples").mkdir()
            for placed in chosen:
                if placed.samples.is_symlink():  # a shard from someone else may link to any file of this machine
                    raise InputError(f"{placed.samples}: a link; put the file there itself")
                if placed.samples.is_file():
                    shutil.copyfile(placed.samples, new / "samples" / placed.samples.name)
            _lines(new / "rows.jsonl", (placed.row.model_dump_json(by_alias=True) for placed in chosen))
            if not out.exists():
                files.replace_folder(out, new)
            elif _digest(out) != _digest(new):  # else files keep their times
                with RunDirectory(out).locked():  # a run would write its next rows to the folder that is taken away
                    files.replace_folder(out, new, [path.name for path in out.iterdir() if path.name not in _OWN])
    except files.Timeout:
        raise InputError(f"--out: {out}: lrbench is running a suite here; wait for it") from None
    except OSError as error:
        raise InputError(f"--out: cannot write {out}: {error.strerror or one_line(error)}") from None


def _lines(path: Path, lines: Iterator[str]) -> None:
    files.write(path, "".join(f"{line}\n" for line in lines))


def _digest(folder: Path) -> str:
    """Of what a run consists of; tables that were made from it are not part of it."""
    digest = hashlib.sha256()
    parts = [folder / "manifest.json", folder / "environments.jsonl", folder / "rows.jsonl"]
    for path in (*parts, *sorted((folder / "samples").glob("*.jsonl"))):
        digest.update(path.name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()
