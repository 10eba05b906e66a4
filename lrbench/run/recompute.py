"""From a run's directory to its cells again: the model loaded, one cell's weights reduced, and both held to the row.

A run's directory is enough: its manifest holds the resolved suite, where its relative paths led, and what its hashes
are made of. What is computed again must be the cell, not something like it: weights, configuration, code and
parameters by their hashes, errors and sizes by their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrbench._version import __version__
from lrbench.errors import InputError, LrbenchError, ModelError, PluginError
from lrbench.models.base_model import Base
from lrbench.models.load import LoadedModel, load
from lrbench.reducers.ranks import WHOLE, RankRequest
from lrbench.reducers.registry import Registry
from lrbench.reduction.calibration.statistics import prepare_again
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.delta import base_of, definition_of
from lrbench.reduction.greedy_plan import GREEDY
from lrbench.reduction.plan import Cell, Method, first_block_of, make_plan, methods
from lrbench.reduction.reduced_weight import Reduction
from lrbench.results.directory import RunDirectory
from lrbench.results.manifest import Manifest, ModelEntry, PartEntry, parse
from lrbench.results.rows import Edit, Row
from lrbench.suite.load import BASE, ModelSpec, Suite, suite_again

#: How far an error may be from the row's: another machine sums in another order.
TOLERANCE = 1e-3

_SHOWN = 5


def _silent(message: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class CellAgain:
    """A cell computed again.

    Attributes:
        row: as the run wrote it.
        suite: the run's.
        asked: the same as plain data, as the manifest has it.
        spec: its model, as the suite names it.
        loaded: the model, with its original weights.
        cell: what is edited.
        reductions: one for each of the cell's slots.
        base: what they are updates of, and how the suite names it; None where they stand in for the weights.
    """

    row: Row
    suite: Suite
    asked: Mapping[str, Any]
    spec: ModelSpec
    loaded: LoadedModel
    cell: Cell
    reductions: tuple[Reduction, ...]
    base: Base | None = None


@dataclass(frozen=True)
class SuiteAgain:
    """A run's suite, and its reducers built from the code that is here now."""

    manifest: Manifest
    suite: Suite
    registry: Registry
    methods: tuple[Method, ...]


def reopen(
    run: RunDirectory, plugins: Iterable[Path], notify: Callable[[str], None], *, with_tasks: bool = True
) -> SuiteAgain:
    """The suite of a run, from its manifest.

    Args:
        plugins: files, instead of those that the run was given.
        notify: told which files and folders of the run's are code, before it is run.
        with_tasks: whether its task folders must be there.

    Raises:
        InputError: no manifest, or not one that a suite can be read from; a plugin, model or task folder is gone.
    """
    manifest = parse(run.manifest())
    if not manifest.suite:
        raise InputError(f"{run.manifest_file}: holds no suite; run the suite again, its rows are kept")
    data, given = dict(manifest.suite), [Path(entry.file) for entry in manifest.reducers if entry.file is not None]
    plugins = list(plugins)
    if plugins:
        data["plugins"], given = [], []
    suite = suite_again(data, run.manifest_file, manifest.paths, with_tasks=with_tasks)
    code = dict.fromkeys(map(str, [*suite.plugins, *plugins, *given, *suite.task_paths]))
    if code:
        notify(f"{run.path}: runs the code in {', '.join(code)}")
    registry = Registry.load([*suite.plugins, *plugins, *given])
    return SuiteAgain(manifest, suite, registry, tuple(methods(suite, registry)))


def find_row(run: RunDirectory, prefix: str) -> Row:
    """The row of the cell whose hash begins with `prefix`.

    Raises:
        InputError: there is none, or there are several: names those there are.
    """
    rows = run.rows()
    found = [row for key, row in rows.items() if key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} cells begin with" if found else "no cell begins with"
    edited = [row for row in found or rows.values() if row.reducer is not None]
    known = ", ".join(f"{row.cell[:10]} ({_in_words(row)})" for row in edited[:_SHOWN])
    more = f" and {len(edited) - _SHOWN} more" if len(edited) > _SHOWN else ""
    listing = f"; `lrbench leaderboard {run.path} --format csv` lists them" if more else ""
    raise InputError(f"{run.path}: {problem} {prefix!r}; there are {known or 'no edited cells'}{more}{listing}")


def compute_again(
    run: RunDirectory,
    prefix: str,
    *,
    plugins: Iterable[Path] = (),
    notify: Callable[[str], None] = _silent,
    device: str | None = None,
    other_code: bool = False,
    trust_remote_code: bool = False,
) -> CellAgain:
    """Loads a cell's model and reduces the cell's weights again, by the run's own suite and seed.

    Args:
        run: where the cell was scored.
        prefix: of the cell's hash.
        plugins: files, instead of those that the run was given.
        notify: told which of the run's files are code, before it is run.
        device: instead of the suite's.
        trust_remote_code: lets a model whose suite asks for it run its repository's own code.
        other_code: accept reducers, and an lrbench, other than the run's; what they give must still be the row's.

    Raises:
        InputError: no such cell, or one that was never scored; model, configuration, parameters or code are not those
            of the run; what was computed is not what the row says. One line, which says what differs.
        ReducerError: a reducer fails now.
    """
    row = find_row(run, prefix)
    _refuse_unscored(run, row)
    again = reopen(run, plugins, notify, with_tasks=False)
    entry = next((model for model in again.manifest.models if model.label == row.model), None)
    spec = next((spec for spec in again.suite.models if spec.display_name == row.model), None)
    method = next((method for method in again.methods if method.label == row.label), None)
    if entry is None or spec is None or method is None:
        raise InputError(f"{run.manifest_file}: knows nothing of this cell's model and reducer; run the suite again")
    if not other_code:
        _check_code(again.manifest, method)
    loaded = load(spec, device=device, trust_remote_code=trust_remote_code)
    _check_model(loaded, entry)
    if row.mode == GREEDY:
        cell = _composed(row, run.rows(), method, loaded)
    else:
        cell = _cell_of(row, make_plan(again.suite, loaded.inventory, again.methods).cells, again.suite.seed)
    calibration, text = None, again.suite.calibration
    if cell.calibrated and text is not None:
        calibration = prepare_again(text, again.suite.task_paths, loaded, entry.calibration["length"], _silent)
    base = base_of(again.suite.delta, loaded, _silent, trust_remote_code=trust_remote_code)
    if base is not None:
        _check_base(base, entry)
    definition = definition_of(cell, calibration, base)
    part = entry if row.selection is None else entry.parts.get(row.selection.share, PartEntry())
    if not other_code and part.setting and cell.digest(**part.setting, **definition) != row.cell:
        made, now = again.manifest.lrbench, __version__
        raise InputError(
            f"{run.path}: cell {row.cell[:10]} is of an earlier state of this suite (lrbench {made}, now {now}); "
            "choose a cell of the last run"
        )
    [(_, outcome)] = CellReducer(again.suite.seed, calibration, base).reduce_group([_as_allocated(cell, row)])
    if isinstance(outcome, LrbenchError):
        raise outcome
    for mine, theirs in zip(_in_order([r.edit for r in outcome]), _in_order(row.edits), strict=True):
        _check_edit(mine, theirs)
    return CellAgain(row, again.suite, again.manifest.suite, spec, loaded, cell, tuple(outcome), base)


def _refuse_unscored(run: RunDirectory, row: Row) -> None:
    if row.status != "ok":
        raise InputError(f"{run.path}: cell {row.cell[:10]} is {row.status} ({row.reason}); choose one that was scored")
    if row.reducer is None:
        raise InputError(f"{run.path}: cell {row.cell[:10]} is the baseline; choose an edited one")
    if row.mode == BASE:
        raise InputError(f"{run.path}: cell {row.cell[:10]} has the base's own weights; choose one with updates")


def _check_code(manifest: Manifest, method: Method) -> None:
    then = next((entry.source_hash for entry in manifest.reducers if entry.label == method.label), None)
    if then != method.source_hash:
        raise PluginError(
            f"reducer {method.label!r}: its code, or lrbench's, is not that of the run "
            f"(lrbench {manifest.lrbench}, now {__version__}); run the suite again, or add --other-code "
            "to accept whatever gives the row's errors"
        )


def _check_model(loaded: LoadedModel, entry: ModelEntry) -> None:
    dtype = str(loaded.dtype).removeprefix("torch.")
    for what, then, now in (
        ("dtype", entry.dtype, dtype),
        ("weights (SHA-256)", entry.weight_hash, loaded.weight_hash),
        ("configuration (SHA-256)", entry.config_hash, loaded.config_hash),
    ):
        if then != now:
            raise ModelError(
                f"{loaded.label}: its {what} is {now[:16]}, in the run it was {str(then)[:16]}; "
                "bring the run's model back"
            )


def _check_base(base: Base, entry: ModelEntry) -> None:
    then = entry.delta.get("weight_hash")
    if then != base.weight_hash:
        raise ModelError(
            f"base {base.label}: its weights (SHA-256) are {base.weight_hash[:16]}, in the run they were "
            f"{str(then)[:16]}; bring the run's base back"
        )


def _cell_of(row: Row, cells: Sequence[Cell], seed: int) -> Cell:
    weights = {edit.weight for edit in row.edits}
    for cell in cells:
        same = cell.method is not None and cell.method.label == row.label and cell.requested == row.requested
        same = same and cell.allocation == row.allocation
        same = same and (seed if cell.seed is None else cell.seed) == row.seed
        if same and {slot.name for slot in cell.slots} == weights:
            return cell
    raise InputError(f"cell {row.cell[:10]}: the suite no longer makes it from this model; run the suite again")


def _composed(row: Row, rows: Mapping[str, Row], method: Method, loaded: LoadedModel) -> Cell:
    """The composition that a row is of: the edits that its decisions accepted, at the ranks of their own rows."""
    if row.selection is None or row.selection.decisions is None:
        raise InputError(f"cell {row.cell[:10]}: a step of a composition; choose the row on test that came of it")
    accepted = [one for one in row.selection.decisions if one.accepted]
    slots = {slot.name: slot for slot in loaded.inventory.slots}
    missing = next((one for one in accepted if one.cell not in rows or one.weight not in slots), None)
    if missing is not None or not accepted:
        why = "it is the baseline" if not accepted else "rows that it was decided by are gone"
        raise InputError(f"cell {row.cell[:10]}: {why}; choose another")
    edited = tuple(slots[one.weight] for one in accepted)
    asked = [item for one in accepted for item in rows[one.cell].requested.items()]
    requests = tuple(RankRequest(kind, value) for kind, value in asked)  # type: ignore[arg-type]
    return Cell(
        method, GREEDY, edited, first_block=first_block_of(edited, len(loaded.inventory.blocks)),
        seed=row.seed if method.reducer.randomized else None, requests=requests,
    )  # fmt: skip


def _as_allocated(cell: Cell, row: Row) -> Cell:
    """The cell with the ranks that its row says were shared out, so that they are not looked for again."""
    if cell.allocation is None:
        return cell
    given = {edit.weight: edit.allocated for edit in row.edits}
    requests = []
    for slot in cell.slots:
        allocated = given[slot.name]
        if allocated is None:
            raise InputError(f"cell {row.cell[:10]}: its row does not say which rank {slot.name} was given")
        requests.append(WHOLE if allocated == "whole" else RankRequest("rank", allocated))
    return replace(cell, requests=tuple(requests), allocation=None)


def _in_order(edits: Iterable[Edit]) -> list[Edit]:
    return sorted(edits, key=lambda edit: edit.weight)


def _check_edit(mine: Edit, theirs: Edit) -> None:
    for name in ("weight", "shape", "rank", "stored_numbers", "stored_as"):
        now, then = getattr(mine, name), getattr(theirs, name)
        if now != then:
            raise InputError(f"{theirs.weight}: {name} is {now}, in the row it is {then}; {_NOT_THE_CELL}")
    if not math.isclose(mine.relative_error, theirs.relative_error, rel_tol=TOLERANCE, abs_tol=1e-6):
        raise InputError(
            f"{theirs.weight}: the relative error is {mine.relative_error:.6g}, in the row it is "
            f"{theirs.relative_error:.6g}; {_NOT_THE_CELL}"
        )


_NOT_THE_CELL = "other versions or another device compute another edit: run the suite again here"


def _in_words(row: Row) -> str:
    where = row.edits[0].weight if len(row.edits) == 1 else f"{len(row.edits)} weights"
    return " ".join(filter(None, (row.method, row.setting, where if row.edits else "")))
