"""Compares two runs or two rows: differences of scores with tests, and all other differences.

A difference is always second minus first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lrbench.analysis.edit_summary import describe, ranks
from lrbench.analysis.scored_run import ByDocument, Contrasts, ScoredRun
from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row
from lrbench.stats import LEVEL, Difference, holm
from lrbench.stats.metric_names import primary

#: Manifest entries that describe the course of a run, not its inputs.
_NO_INPUT = frozenset({"cells", "suite_hash", "schema"})
_NO_ENGINE_INPUT = frozenset({"self_check", "out_of_memory", "tokens_asked", "tokens_computed", "parts"})


@dataclass(frozen=True)
class Contrast:
    """One metric of one task in two cells.

    Attributes:
        first, second: the metric's values.
        main: whether it is the task's primary metric.
        difference: second minus first, paired by document; None if the cells cannot be paired.
        p_holm: the exact test's p-value after Holm's correction over the compared cells.
        unpaired: the reason why there is no test.
    """

    task: str
    metric: str
    first: float
    second: float
    main: bool
    difference: Difference | None = None
    p_holm: float | None = None
    unpaired: str = ""

    @property
    def delta(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def same(self) -> bool:
        """Whether both values are bit-identical."""
        return self.first == self.second or (math.isnan(self.first) and math.isnan(self.second))

    @property
    def significant(self) -> bool | None:
        """Whether the difference is significant; None if it was not tested."""
        return None if self.p_holm is None else self.p_holm <= LEVEL


@dataclass(frozen=True)
class Match:
    """A pair of matching cells.

    Attributes:
        by: the criterion of the match: the hash; model, label, setting, weights and seed; or the user's request.
        name: a description of the cell.
    """

    first: Row
    second: Row
    by: Literal["hash", "description", "request"]
    name: str
    contrasts: tuple[Contrast, ...]

    @property
    def same(self) -> bool:
        """Whether status and all scores are identical."""
        return self.first.status == self.second.status and all(contrast.same for contrast in self.contrasts)


@dataclass(frozen=True)
class Comparison:
    """The result of `lrbench compare`.

    Attributes:
        names: of the two runs or rows.
        matches: cells present in both.
        only_first, only_second: cells present in only one, with descriptions.
        other_differences: further differences: (area, key, first, second).
    """

    names: tuple[str, str]
    matches: list[Match]
    only_first: list[tuple[str, Row]]
    only_second: list[tuple[str, Row]]
    other_differences: list[tuple[str, str, str, str]]


def compare_runs(first: RunDirectory, second: RunDirectory) -> Comparison:
    """Compares two runs cell by cell.

    Cells are matched by hash, the remaining ones by model, label, setting, edited weights and seed.

    Raises:
        InputError: a run's files cannot be read.
    """
    names = _names(first, second)
    runs = ScoredRun(first, names[0]), ScoredRun(second, names[1])
    pairs: list[tuple[Row, Row, Literal["hash", "description", "request"]]] = []
    left, right = dict(runs[0].rows), dict(runs[1].rows)
    for cell in [cell for cell in left if cell in right]:
        pairs.append((left.pop(cell), right.pop(cell), "hash"))
    described: dict[Hashable, list[Row]] = {}
    for row in right.values():
        described.setdefault(_description(row), []).append(row)
    for row in list(left.values()):
        candidates = described.get(_description(row))
        if candidates:
            other = candidates.pop(0)
            pairs.append((left.pop(row.cell), right.pop(other.cell), "description"))
    return Comparison(
        names,
        _matches(runs, pairs),
        [(name_of(row, runs[0]), row) for row in left.values()],
        [(name_of(row, runs[1]), row) for row in right.values()],
        [*_environments(*runs), *_manifests(runs[0].manifest, runs[1].manifest)],
    )


def compare_rows(first: RunDirectory, second: RunDirectory, hashes: tuple[str, str]) -> Comparison:
    """Compares any two rows of one or two runs, each named by a prefix of its cell's hash.

    Raises:
        InputError: no row or several rows have the prefix.
    """
    same = first.path.resolve() == second.path.resolve()
    first_run = ScoredRun(first, first.path.name)
    runs = first_run, first_run if same else ScoredRun(second, second.path.name)
    rows = _by_hash(runs[0], hashes[0]), _by_hash(runs[1], hashes[1])
    others = [
        ("cell", *difference)
        for difference in _differing(
            *(_about(row, run.blocks.get(row.model)) for row, run in zip(rows, runs, strict=True))
        )
    ]
    others += [] if same else _manifests(runs[0].manifest, runs[1].manifest)
    others += _environments(*runs, rows)
    names = name_of(rows[0], runs[0]), name_of(rows[1], runs[1])
    return Comparison(names, _matches(runs, [(*rows, "request")]), [], [], others)


def name_of(row: Row, run: ScoredRun) -> str:
    """Describes a cell: `svd keep 0.5, L4-7 mlp (12), seed 1`; in a selection, with its documents."""
    documents = [f"on {row.selection.part}"] if row.selection is not None else []
    if row.reducer is None:
        return ", ".join([f"{row.model}, baseline", *documents])
    words = [f"{row.label or row.reducer} {row.setting}".strip(), describe(row.edits, run.blocks.get(row.model))]
    return ", ".join([row.model, *filter(None, words), *([f"seed {row.seed}"] if row.seed else []), *documents])


def _matches(
    runs: tuple[ScoredRun, ScoredRun], pairs: Sequence[tuple[Row, Row, Literal["hash", "description", "request"]]]
) -> list[Match]:
    sides: list[tuple[Sequence[ByDocument], ByDocument]] = []
    groups = []
    for first, second, _ in pairs:
        ours, document_groups = runs[1].scores(second)
        sides.append(([ours], runs[0].scores(first)[0]))
        groups.append(document_groups)
    contrasts = Contrasts(sides, groups, runs[1].leaves)
    cell_contrasts = [list(_contrasts(runs, *pair, place, contrasts)) for place, pair in enumerate(pairs)]
    metrics: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, cell in enumerate(cell_contrasts):
        for j, c in enumerate(cell):
            metrics.setdefault((c.task, c.metric), []).append((i, j))
    for places in metrics.values():
        values = [cell_contrasts[i][j] for i, j in places]
        adjusted = holm([c.difference.p_value if c.difference is not None else None for c in values])
        for (i, j), c, p in zip(places, values, adjusted, strict=True):
            cell_contrasts[i][j] = replace(c, p_holm=p)
    return [
        Match(first, second, by, name_of(first, runs[0]), tuple(cell))
        for (first, second, by), cell in zip(pairs, cell_contrasts, strict=True)
    ]


def _contrasts(
    runs: tuple[ScoredRun, ScoredRun], first: Row, second: Row, by: str, place: int, contrasts: Contrasts
) -> Iterator[Contrast]:
    for task, scores in second.scores.items():
        for metric, score in scores.items():
            other = first.scores.get(task, {}).get(metric)
            if other is None:
                continue
            difference, reason = None, ""
            documents = runs[0].document_hashes(first, task), runs[1].document_hashes(second, task)
            if by != "hash" and documents[0] != documents[1]:
                reason = "other documents"
            elif math.isfinite(score.value - other.value):
                difference = contrasts.difference(place, task, metric, score.value - other.value)
                reason = "" if difference is not None else "no samples that give both scores"
            else:
                reason = "not finite"
            main = metric == primary(scores)
            yield Contrast(task, metric, other.value, score.value, main, difference, unpaired=reason)


def _names(first: RunDirectory, second: RunDirectory) -> tuple[str, str]:
    names = first.path.resolve().name, second.path.resolve().name
    return names if names[0] != names[1] else (str(first.path), str(second.path))


def _description(row: Row) -> Hashable:
    weights = tuple(sorted(edit.weight for edit in row.edits))
    documents = row.selection.part if row.selection is not None else None
    request = tuple(sorted(row.requested.items())), row.allocation
    return row.model, row.label, request, weights, row.seed if row.reducer else None, documents


def _by_hash(run: ScoredRun, prefix: str) -> Row:
    matching = [row for cell, row in run.rows.items() if cell.startswith(prefix)] if prefix else []
    if len(matching) == 1:
        return matching[0]
    problem = f"{len(matching)} rows match; give more of the hash" if matching else "no row matches"
    raise InputError(f"--rows {prefix}: {problem}; `lrbench leaderboard {run.run.path} --format csv` lists the cells")


def _about(row: Row, blocks: int | None) -> dict[str, Any]:
    return {
        "model": row.model, "reducer": row.reducer, "label": row.label, "params": row.params, "mode": row.mode,
        "requested": row.requested, "allocation": row.allocation,
        "seed": row.seed, "edited": describe(row.edits, blocks),
        "ranks": ranks(row.edits), "keep_model": row.keep_model, "status": row.status,
    }  # fmt: skip


def _environments(
    first: ScoredRun, second: ScoredRun, rows: tuple[Row, Row] | None = None
) -> list[tuple[str, str, str, str]]:
    """Differences of hardware and versions between the rows' environments; a run may have several."""
    sides = []
    for run, row in ((first, rows and rows[0]), (second, rows and rows[1])):
        known = run.run.environments()
        used = {row.environment} if row else {other.environment for other in run.rows.values()}
        values: dict[str, dict[str, None]] = {}
        for environment in sorted(used):
            for key, value in _flat(known.get(environment, {})):
                if key != "hash":
                    values.setdefault(key, {})[value] = None
        sides.append({key: " | ".join(several) for key, several in values.items()})
    return [("environment", *difference) for difference in _differing_flat(*sides)]


def _manifests(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Differences of suite, models, tasks, reducers and engine."""
    differences = []
    for area in dict.fromkeys([*first, *second]):
        if area in _NO_INPUT:
            continue
        sides = (dict(_flat({area: side[area]})) if area in side else {} for side in (first, second))
        for key, value, other in _differing_flat(*sides):
            name = key.removeprefix(f"{area}.") if key != area else area
            differences.append((area, name, value, other))
    return differences


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return _differing_flat(dict(_flat(first)), dict(_flat(second)))


def _differing_flat(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Keys with different values. A missing key equals null: an older version of lrbench did not write it."""
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key, "null") != second.get(key, "null")]
    return [(key, first.get(key, ""), second.get(key, "")) for key in keys]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Flattens nested data to `key.key` -> text; named entries of lists are keyed by their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _NO_ENGINE_INPUT and not (path and key == "cells"):
                yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            name = next((str(item[key]) for key in ("label", "task") if isinstance(item, dict) and key in item), index)
            yield from _flat(item, f"{path}[{name}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
