"""Two runs, or two rows, held side by side: which scores differ, by how much, how surely, and what else differs.

A difference is always the second less the first.
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

#: What says how a run went, not what it was.
_NO_INPUT = frozenset({"cells", "suite_hash", "schema"})
_NO_ENGINE_INPUT = frozenset({"self_check", "out_of_memory", "tokens_asked", "tokens_computed", "parts"})


@dataclass(frozen=True)
class Contrast:
    """One metric of one task in two cells.

    Attributes:
        first, second: its values.
        main: whether the metric is the one that stands for its task.
        difference: second less first, by document; None where it cannot be paired.
        p_holm: of the exact test, after Holm's correction over the compared cells.
        unpaired: why there is no test.
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
        """Second less first."""
        return self.second - self.first

    @property
    def same(self) -> bool:
        """Whether the two are one number, bit for bit."""
        return self.first == self.second or (math.isnan(self.first) and math.isnan(self.second))

    @property
    def significant(self) -> bool | None:
        """Whether the difference is more than chance; None where it was not tested."""
        return None if self.p_holm is None else self.p_holm <= LEVEL


@dataclass(frozen=True)
class Match:
    """A cell that both have.

    Attributes:
        by: how it was found: the same hash; the same model, label, setting, weights and seed; or as asked for.
        name: the cell in words.
    """

    first: Row
    second: Row
    by: Literal["hash", "description", "request"]
    name: str
    contrasts: tuple[Contrast, ...]

    @property
    def same(self) -> bool:
        """Whether status and all scores are the same."""
        return self.first.status == self.second.status and all(contrast.same for contrast in self.contrasts)


@dataclass(frozen=True)
class Comparison:
    """What `lrbench compare` found.

    Attributes:
        names: of the two runs, or rows.
        matches: cells that both have.
        only_first, only_second: cells of one of them, in words.
        elsewhere: what else differs: (area, key, first, second).
    """

    names: tuple[str, str]
    matches: list[Match]
    only_first: list[tuple[str, Row]]
    only_second: list[tuple[str, Row]]
    elsewhere: list[tuple[str, str, str, str]]


def compare_runs(first: RunDirectory, second: RunDirectory) -> Comparison:
    """Two runs, cell by cell.

    Cells are matched by hash; those left over by model, label, setting, edited weights and seed.

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
        alike = described.get(_description(row))
        if alike:
            other = alike.pop(0)
            pairs.append((left.pop(row.cell), right.pop(other.cell), "description"))
    return Comparison(
        names,
        _matches(runs, pairs),
        [(name_of(row, runs[0]), row) for row in left.values()],
        [(name_of(row, runs[1]), row) for row in right.values()],
        [*_environments(*runs), *_manifests(runs[0].manifest, runs[1].manifest)],
    )


def compare_rows(first: RunDirectory, second: RunDirectory, hashes: tuple[str, str]) -> Comparison:
    """Any two rows, of one run or of two, each by the beginning of its cell's hash.

    Raises:
        InputError: no row has such a hash, or several have.
    """
    same = first.path.resolve() == second.path.resolve()
    one = ScoredRun(first, first.path.name)
    runs = one, one if same else ScoredRun(second, second.path.name)
    rows = _by_hash(runs[0], hashes[0]), _by_hash(runs[1], hashes[1])
    elsewhere = [
        ("cell", *found)
        for found in _differing(*(_about(row, run.blocks.get(row.model)) for row, run in zip(rows, runs, strict=True)))
    ]
    elsewhere += [] if same else _manifests(runs[0].manifest, runs[1].manifest)
    elsewhere += _environments(*runs, rows)
    names = name_of(rows[0], runs[0]), name_of(rows[1], runs[1])
    return Comparison(names, _matches(runs, [(*rows, "request")]), [], [], elsewhere)


def name_of(row: Row, run: ScoredRun) -> str:
    """A cell in words: `svd keep 0.5, L4-7 mlp (12), seed 1`; of a selection, on which documents it is scored."""
    share = [f"on {row.selection.share}"] if row.selection is not None else []
    if row.reducer is None:
        return ", ".join([f"{row.model}, baseline", *share])
    words = [f"{row.label or row.reducer} {row.setting}".strip(), describe(row.edits, run.blocks.get(row.model))]
    return ", ".join([row.model, *filter(None, words), *([f"seed {row.seed}"] if row.seed else []), *share])


def _matches(
    runs: tuple[ScoredRun, ScoredRun], pairs: Sequence[tuple[Row, Row, Literal["hash", "description", "request"]]]
) -> list[Match]:
    sides: list[tuple[Sequence[ByDocument], ByDocument]] = []
    groups = []
    for first, second, _ in pairs:
        ours, of_documents = runs[1].scores(second)
        sides.append(([ours], runs[0].scores(first)[0]))
        groups.append(of_documents)
    contrasts = Contrasts(sides, groups, runs[1].leaves)
    found = [list(_contrasts(runs, pair[0], pair[1], pair[2], place, contrasts)) for place, pair in enumerate(pairs)]
    columns = dict.fromkeys((c.task, c.metric) for of_cell in found for c in of_cell)
    for task, metric in columns:
        places = [
            (i, j)
            for i, of_cell in enumerate(found)
            for j, c in enumerate(of_cell)
            if (c.task, c.metric) == (task, metric)
        ]
        values = [found[i][j] for i, j in places]
        adjusted = holm([c.difference.p_value if c.difference is not None else None for c in values])
        for (i, j), c, p in zip(places, values, adjusted, strict=True):
            found[i][j] = replace(c, p_holm=p)
    return [
        Match(first, second, by, name_of(first, runs[0]), tuple(of_cell))
        for (first, second, by), of_cell in zip(pairs, found, strict=True)
    ]


def _contrasts(
    runs: tuple[ScoredRun, ScoredRun], first: Row, second: Row, by: str, place: int, contrasts: Contrasts
) -> Iterator[Contrast]:
    for task, scores in second.scores.items():
        for metric, score in scores.items():
            theirs = first.scores.get(task, {}).get(metric)
            if theirs is None:
                continue
            difference, why = None, ""
            documents = runs[0].document_hashes(first, task), runs[1].document_hashes(second, task)
            if by != "hash" and documents[0] != documents[1]:
                why = "other documents"
            elif math.isfinite(score.value - theirs.value):
                difference = contrasts.difference(place, task, metric, score.value - theirs.value)
                why = "" if difference is not None else "no samples that give both scores"
            else:
                why = "not finite"
            main = metric == primary(scores)
            yield Contrast(task, metric, theirs.value, score.value, main, difference, unpaired=why)


def _names(first: RunDirectory, second: RunDirectory) -> tuple[str, str]:
    names = first.path.resolve().name, second.path.resolve().name
    return names if names[0] != names[1] else (str(first.path), str(second.path))


def _description(row: Row) -> Hashable:
    weights = tuple(sorted(edit.weight for edit in row.edits))
    share = row.selection.share if row.selection is not None else None
    asked = tuple(sorted(row.requested.items())), row.allocation
    return row.model, row.label, asked, weights, row.seed if row.reducer else None, share


def _by_hash(run: ScoredRun, prefix: str) -> Row:
    found = [row for cell, row in run.rows.items() if cell.startswith(prefix)] if prefix else []
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} rows begin so; give more of the hash" if found else "no row begins so"
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
    """Hardware and versions of the rows that were scored; several values where a run has several environments."""
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
    return [("environment", *found) for found in _differing_flat(*sides)]


def _manifests(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was asked for and with what: suite, models, tasks, reducers, engine."""
    found = []
    for area in dict.fromkeys([*first, *second]):
        if area in _NO_INPUT:
            continue
        sides = (dict(_flat({area: side[area]})) if area in side else {} for side in (first, second))
        for key, one, other in _differing_flat(*sides):
            name = key.removeprefix(f"{area}.") if key != area else area
            found.append((area, name, one, other))
    return found


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return _differing_flat(dict(_flat(first)), dict(_flat(second)))


def _differing_flat(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    keys = dict.fromkeys([*first, *second])
    return [(key, first.get(key, ""), second.get(key, "")) for key in keys if first.get(key) != second.get(key)]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested data as `key.key` -> text; entries of lists that have a name go by it."""
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
