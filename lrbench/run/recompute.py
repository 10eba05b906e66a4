"""Recomputes a cell from a run's directory: loads the model, reduces the cell's weights, and compares with the row.

The directory suffices: its manifest holds the resolved suite, the absolute paths, and what defines the hashes of cells.
The result must be the same cell: weights, configuration, code and parameters are compared by hash, errors and sizes by
value.
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
from lrbench.system.text import silent
from lrbench.tasks.saved_datasets import datasets_from

#: Relative tolerance of errors: other machines sum in another order.
TOLERANCE = 1e-3

_SHOWN = 5


@dataclass(frozen=True)
class RecomputedCell:
    """A cell that was computed again.

    Attributes:
        row: the run's row.
        suite: the run's suite.
        resolved_suite: the same as plain data, from the manifest.
        spec: the model, as the suite gives it.
        loaded: the model, with its original weights.
        cell: the cell.
        reductions: one for each of the cell's slots.
        base: the model before fine-tuning, if updates are reduced.
    """

    row: Row
    suite: Suite
    resolved_suite: Mapping[str, Any]
    spec: ModelSpec
    loaded: LoadedModel
    cell: Cell
    reductions: tuple[Reduction, ...]
    base: Base | None = None


@dataclass(frozen=True)
class ReopenedSuite:
    """A run's manifest and suite, and its reducers, built from the present code."""

    manifest: Manifest
    suite: Suite
    registry: Registry
    methods: tuple[Method, ...]


def reopen(
    run: RunDirectory, plugins: Iterable[Path], notify: Callable[[str], None], *, with_tasks: bool = True
) -> ReopenedSuite:
    """Reads the suite of a run from its manifest.

    Args:
        plugins: plugin files, instead of the run's.
        notify: called with the files and folders of the run that hold code, before any is run.
        with_tasks: whether the task folders must exist.

    Raises:
        InputError: there is no manifest, no suite can be read from it, or a plugin, model or task folder is missing.
    """
    manifest = parse(run.manifest())
    if not manifest.suite:
        raise InputError(f"{run.manifest_file}: holds no suite; run the suite again, its rows are kept")
    data = dict(manifest.suite)
    files = [Path(entry.file) for entry in manifest.reducers if entry.file is not None]
    plugins = list(plugins)
    if plugins:
        data["plugins"], files = [], []
    suite = suite_again(data, run.manifest_file, manifest.paths, with_tasks=with_tasks)
    code = dict.fromkeys(map(str, [*suite.plugins, *plugins, *files, *suite.task_paths]))
    if code:
        notify(f"{run.path}: runs the code in {', '.join(code)}")
    registry = Registry.load([*suite.plugins, *plugins, *files])
    return ReopenedSuite(manifest, suite, registry, tuple(methods(suite, registry)))


def find_row(run: RunDirectory, prefix: str) -> Row:
    """The row of the cell whose hash begins with `prefix`.

    Raises:
        InputError: no cell or several match; names some that exist.
    """
    rows = run.rows()
    matches = [row for key, row in rows.items() if key.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} cells begin with" if matches else "no cell begins with"
    edited = [row for row in matches or rows.values() if row.reducer is not None]
    examples = ", ".join(f"{row.cell[:10]} ({_in_words(row)})" for row in edited[:_SHOWN])
    more = f" and {len(edited) - _SHOWN} more" if len(edited) > _SHOWN else ""
    listing = f"; `lrbench leaderboard {run.path} --format csv` lists them" if more else ""
    raise InputError(f"{run.path}: {problem} {prefix!r}; there are {examples or 'no edited cells'}{more}{listing}")


def compute_again(
    run: RunDirectory,
    prefix: str,
    *,
    plugins: Iterable[Path] = (),
    notify: Callable[[str], None] = silent,
    accept: Callable[[Suite, ModelSpec], None] | None = None,
    device: str | None = None,
    other_code: bool = False,
    trust_remote_code: bool = False,
) -> RecomputedCell:
    """Loads a cell's model and reduces the cell's weights again, with the run's suite and seed.

    Args:
        run: where the cell was scored.
        prefix: the beginning of the cell's hash.
        plugins: as `reopen`.
        notify: as `reopen`, and before slow steps.
        accept: called with the run's suite and the cell's model before anything is loaded; may raise.
        device: instead of the suite's.
        other_code: accept another version of reducers and lrbench than the run's; the results must still be the row's.
        trust_remote_code: lets a model whose suite asks for it run its repository's own code.

    Raises:
        InputError: there is no such cell, or it was never scored; the model, the configuration, the parameters or the
            code are not the run's; or the results differ from the row. Names the difference.
        ReducerError: the reducer fails now.
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
    if accept is not None:
        accept(again.suite, spec)
    notify(f"loading {spec.display_name}")
    loaded = load(spec, device, notify, trust_remote_code=trust_remote_code)
    _check_model(loaded, entry)
    if row.mode == GREEDY:
        cell = _composed(row, run.rows(), method, loaded)
    else:
        cell = _cell_of(row, make_plan(again.suite, loaded.inventory, again.methods).cells, again.suite.seed)
    calibration, text = None, again.suite.calibration
    if cell.calibrated and text is not None:
        with datasets_from(again.suite.datasets):
            calibration = prepare_again(
                text, again.suite.task_paths, loaded, entry.calibration["length"], notify,
                held_out=cell.allocation == "loss",
            )  # fmt: skip
    base = base_of(again.suite.delta, loaded, notify, trust_remote_code=trust_remote_code)
    if base is not None:
        _check_base(base, entry)
    definition = definition_of(cell, calibration, base)
    part = entry if row.selection is None else entry.parts.get(row.selection.part, PartEntry())
    if not other_code and part.setting and cell.digest(**part.setting, **definition) != row.cell:
        made, now = again.manifest.lrbench, __version__
        raise InputError(
            f"{run.path}: cell {row.cell[:10]} is of an earlier state of this suite (lrbench {made}, now {now}); "
            "choose a cell of the last run"
        )
    notify(f"reducing {len(cell.slots)} weights of cell {row.cell[:10]}")
    [(_, outcome)] = CellReducer(again.suite.seed, calibration, base).reduce_group([_as_allocated(cell, row)])
    if isinstance(outcome, LrbenchError):
        raise outcome
    for edit, original in zip(_in_order([r.edit for r in outcome]), _in_order(row.edits), strict=True):
        _check_edit(edit, original)
    return RecomputedCell(row, again.suite, again.manifest.suite, spec, loaded, cell, tuple(outcome), base)


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
    for name, then, now in (
        ("dtype", entry.dtype, dtype),
        ("weights (SHA-256)", entry.weight_hash, loaded.weight_hash),
        ("configuration (SHA-256)", entry.config_hash, loaded.config_hash),
    ):
        if then != now:
            raise ModelError(
                f"{loaded.label}: its {name} is {now[:16]}, in the run it was {str(then)[:16]}; "
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
        label = cell.method.label if cell.method is not None else None
        settings = label, cell.requested, cell.allocation, seed if cell.seed is None else cell.seed
        if settings == (row.label, row.requested, row.allocation, row.seed) and weights == {s.name for s in cell.slots}:
            return cell
    raise InputError(f"cell {row.cell[:10]}: the suite no longer makes it from this model; run the suite again")


def _composed(row: Row, rows: Mapping[str, Row], method: Method, loaded: LoadedModel) -> Cell:
    """The composition of a row: the edits that its decisions accepted, with the ranks of their own rows."""
    if row.selection is None or row.selection.decisions is None:
        raise InputError(f"cell {row.cell[:10]}: a step of a composition; choose the row on test that came of it")
    accepted = [decision for decision in row.selection.decisions if decision.accepted]
    slots = {slot.name: slot for slot in loaded.inventory.slots}
    missing = any(decision.cell not in rows or decision.weight not in slots for decision in accepted)
    if missing or not accepted:
        reason = "it is the baseline" if not accepted else "rows that it was decided by are gone"
        raise InputError(f"cell {row.cell[:10]}: {reason}; choose another")
    edited = tuple(slots[decision.weight] for decision in accepted)
    requested = [item for decision in accepted for item in rows[decision.cell].requested.items()]
    requests = tuple(RankRequest(kind, value) for kind, value in requested)  # type: ignore[arg-type]
    return Cell(
        method, GREEDY, edited, first_block=first_block_of(edited, len(loaded.inventory.blocks)),
        seed=row.seed if method.reducer.randomized else None, requests=requests,
    )  # fmt: skip


def _as_allocated(cell: Cell, row: Row) -> Cell:
    """The cell with the ranks that were allocated in its row, so that they are not allocated again."""
    if cell.allocation is None:
        return cell
    ranks = {edit.weight: edit.allocated for edit in row.edits}
    requests = []
    for slot in cell.slots:
        allocated = ranks[slot.name]
        if allocated is None:
            raise InputError(f"cell {row.cell[:10]}: its row does not say which rank {slot.name} was given")
        requests.append(WHOLE if allocated == "whole" else RankRequest("rank", allocated))
    return replace(cell, requests=tuple(requests), allocation=None)


def _in_order(edits: Iterable[Edit]) -> list[Edit]:
    return sorted(edits, key=lambda edit: edit.weight)


def _check_edit(edit: Edit, original: Edit) -> None:
    for name in ("weight", "shape", "rank", "stored_numbers", "stored_as"):
        now, then = getattr(edit, name), getattr(original, name)
        if now != then:
            raise InputError(f"{original.weight}: {name} is {now}, in the row it is {then}; {_OTHER_RESULT}")
    if not math.isclose(edit.relative_error, original.relative_error, rel_tol=TOLERANCE, abs_tol=1e-6):
        raise InputError(
            f"{original.weight}: the relative error is {edit.relative_error:.6g}, in the row it is "
            f"{original.relative_error:.6g}; {_OTHER_RESULT}"
        )


_OTHER_RESULT = "other versions or another device compute another edit: run the suite again here"


def _in_words(row: Row) -> str:
    weights = row.edits[0].weight if len(row.edits) == 1 else f"{len(row.edits)} weights"
    return " ".join(filter(None, (row.method, row.setting, weights if row.edits else "")))
