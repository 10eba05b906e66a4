"""A run made again from its own directory, and everything in which the second differs from the first.

Differences are reported in the order in which they explain one another: machine and versions, what was asked and with
what data and code, then cell by cell whatever a row or its documents say, times excepted.
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
from lrbench.run.recompute import SuiteAgain, reopen

#: What of a row is a time, or names the machine: it says how the cell was done, not what came out.
TIMES = frozenset({"allocate_seconds", "calibrate_seconds", "decompose_seconds", "evaluate_seconds", "inference"})
_NAMING = frozenset({"cell", "environment", "suite"})


@dataclass(frozen=True)
class Asked:
    """What a run was asked to do, and how it went about it.

    Attributes:
        again: its suite and reducers.
        engine: that scored its cells.
        device: where, if that was the CPU; None leaves it to the suite, since a GPU's number means little elsewhere.
        threads: that torch computed with; None where rows do not tell, or not alike.
    """

    again: SuiteAgain
    engine: str
    device: str | None
    threads: int | None


@dataclass(frozen=True)
class Difference:
    """One field of one cell, in the first run and in the second."""

    cell: str
    field: str
    first: str
    second: str


@dataclass(frozen=True)
class Repetition:
    """Two runs that should say the same.

    Attributes:
        comparison: of their scores, and of all that is not a number of a cell.
        differences: in numbers, cell by cell.
        cells: how many both have.
    """

    comparison: Comparison
    differences: tuple[Difference, ...]
    cells: int

    @property
    def same(self) -> bool:
        """Whether every cell of one is in the other, with the same numbers to the last bit."""
        return not (self.differences or self.comparison.only_first or self.comparison.only_second)


def asked_of(run: RunDirectory, plugins: list[Path], notify: Callable[[str], None]) -> Asked:
    """What a run was asked to do, from its directory alone.

    Args:
        plugins: files, instead of those that the run was given.
        notify: told which files and folders of the run's are code, before it is run.

    Raises:
        InputError: no manifest, or not one that a suite can be read from; a plugin, model or task folder is gone.
    """
    again = reopen(run, plugins, notify)
    engines = [model.engine.name for model in again.manifest.models]
    if not engines or any(engine not in ENGINES for engine in engines):
        raise InputError(f"{run.manifest_file}: names no engine that scored its cells; run the suite instead")
    known, wanted = run.environments(), set(again.manifest.cells)
    used = {row.environment for cell, row in run.rows().items() if cell in wanted}
    entries = [known[name] for name in sorted(used) if name in known]
    threads = [entry.get("threads") for entry in entries]
    alike = bool(threads) and all(type(count) is int and 0 < count == threads[0] for count in threads)
    on_cpu = bool(entries) and all(entry.get("device") == "cpu" for entry in entries)
    return Asked(again, str(engines[0]), "cpu" if on_cpu else None, threads[0] if alike else None)


def compare_repetition(first: RunDirectory, second: RunDirectory) -> Repetition:
    """Everything in which a run differs from the one that it repeats, times excepted.

    Raises:
        InputError: a run's files cannot be read.
    """
    found = compare_runs(first, second)
    differences = [difference for match in found.matches for difference in _of_match(match, first, second)]
    return Repetition(found, tuple(differences), len(found.matches))


def _of_match(match: Match, first: RunDirectory, second: RunDirectory) -> Iterator[Difference]:
    one, other = (dict(_flat(_facts(row))) for row in (match.first, match.second))
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            yield Difference(match.name, name, one.get(name, "—"), other.get(name, "—"))
    ours, theirs = _documents(first, match.first), _documents(second, match.second)
    if not (ours and theirs):  # a published run may have been stripped of them
        return
    for task in dict.fromkeys(task for task, _ in [*ours, *theirs]):
        both = [key for key in ours.keys() | theirs.keys() if key[0] == task]
        others = sum(ours.get(key) != theirs.get(key) for key in both)
        if others:
            yield Difference(match.name, f"samples.{task}", f"{len(both)} documents", f"{others} answered otherwise")


def _facts(row: Row) -> dict[str, Any]:
    return row.model_dump(mode="python", exclude=set(TIMES | _NAMING))


def _documents(run: RunDirectory, row: Row) -> dict[tuple[str, int], str]:
    if not run.has_samples(row.cell):
        return {}
    return {(sample["task"], sample["doc"]): json.dumps(sample, sort_keys=True) for sample in run.samples(row.cell)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested data as `key.key` -> the shortest text that gives the same number back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, str(value)
