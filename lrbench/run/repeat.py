"""Repeats a run from its own directory, and compares the repetition with the original.

Possible causes of differences come first: machine, versions, suite, data and code. Then, cell by cell, everything in
rows and samples except times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench.analysis.comparison import Comparison, Match, compare_runs
from lrbench.errors import InputError
from lrbench.evaluation import ENGINES
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row
from lrbench.run.recompute import ReopenedSuite, reopen

#: Fields of a row that hold times.
TIMES = frozenset({"allocate_seconds", "calibrate_seconds", "decompose_seconds", "evaluate_seconds", "inference"})
#: Times within other fields.
_TIMES_WITHIN: dict[str, Any] = {"allocation_trial": {"seconds"}}
#: Fields that hold names of cells, environments and suites; those of cells differ if the code is another.
_NAMING: dict[str, Any] = {"cell": True, "environment": True, "suite": True, "selection": {"validation_cells"}}


@dataclass(frozen=True)
class RunSettings:
    """How a run was made.

    Attributes:
        reopened: its suite and reducers.
        engine: the engine that scored its cells.
        device: `cpu` if the cells were scored there; None leaves it to the suite, because a GPU's index means little on
            another machine.
        threads: of torch; None if the environments do not say, or differ.
    """

    reopened: ReopenedSuite
    engine: str
    device: str | None
    threads: int | None


@dataclass(frozen=True)
class FieldDifference:
    """A field of a cell that differs between two runs; `field` is its path in the row, the values are text."""

    cell: str
    field: str
    first: str
    second: str


@dataclass(frozen=True)
class Repetition:
    """The comparison of a run with its repetition.

    Attributes:
        comparison: of scores, environments, suites, data and code.
        differences: of rows and samples, cell by cell.
        cells: the number of cells in both runs.
    """

    comparison: Comparison
    differences: tuple[FieldDifference, ...]
    cells: int

    @property
    def same(self) -> bool:
        """Whether both runs have the same cells with bit-identical values."""
        return not (self.differences or self.comparison.only_first or self.comparison.only_second)


def settings_of(run: RunDirectory, plugins: list[Path], notify: Callable[[str], None]) -> RunSettings:
    """Reads from a run's directory how it was made. Arguments and errors as `reopen`."""
    reopened = reopen(run, plugins, notify)
    engines = [model.engine.name for model in reopened.manifest.models]
    if not engines or any(engine not in ENGINES for engine in engines):
        raise InputError(f"{run.manifest_file}: names no engine that scored its cells; run the suite instead")
    environments, cells = run.environments(), set(reopened.manifest.cells)
    used = {row.environment for cell, row in run.rows().items() if cell in cells}
    entries = [environments[name] for name in sorted(used) if name in environments]
    threads = [entry.get("threads") for entry in entries]
    alike = bool(threads) and all(type(count) is int and 0 < count == threads[0] for count in threads)
    on_cpu = bool(entries) and all(entry.get("device") == "cpu" for entry in entries)
    return RunSettings(reopened, str(engines[0]), "cpu" if on_cpu else None, threads[0] if alike else None)


def compare_repetition(first: RunDirectory, second: RunDirectory) -> Repetition:
    """Compares a run with its repetition, except for times.

    Raises:
        InputError: a run's files cannot be read.
    """
    comparison = compare_runs(first, second)
    differences = [difference for match in comparison.matches for difference in _differences(match, first, second)]
    return Repetition(comparison, tuple(differences), len(comparison.matches))


def _differences(match: Match, first: RunDirectory, second: RunDirectory) -> Iterator[FieldDifference]:
    fields, other_fields = (dict(_flat(_fields(row))) for row in (match.first, match.second))
    for name in dict.fromkeys([*fields, *other_fields]):
        if fields.get(name) != other_fields.get(name):
            yield FieldDifference(match.name, name, fields.get(name, "—"), other_fields.get(name, "—"))
    samples, other_samples = _samples(first, match.first), _samples(second, match.second)
    if not (samples and other_samples):  # published runs may have no samples
        return
    for task in dict.fromkeys(task for task, _ in [*samples, *other_samples]):
        keys = [key for key in samples.keys() | other_samples.keys() if key[0] == task]
        changed = sum(samples.get(key) != other_samples.get(key) for key in keys)
        if changed:
            counts = f"{len(keys)} documents", f"{changed} answered otherwise"
            yield FieldDifference(match.name, f"samples.{task}", *counts)


def _fields(row: Row) -> dict[str, Any]:
    return row.model_dump(mode="python", exclude={**dict.fromkeys(TIMES, True), **_TIMES_WITHIN, **_NAMING})


def _samples(run: RunDirectory, row: Row) -> dict[tuple[str, int], str]:
    if not run.has_samples(row.cell):
        return {}
    return {(sample["task"], sample["doc"]): json.dumps(sample, sort_keys=True) for sample in run.samples(row.cell)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested data as pairs of a path (`key.key`) and a text; a number's text is the shortest that gives it back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, str(value)
