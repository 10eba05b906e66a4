"""Runs a suite: plans it, reduces, scores, and appends a row for every cell that has none yet."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from lrbench.calibration.statistics import Calibration, prepare
from lrbench.editing import Inference, in_place, noted
from lrbench.environment import environment
from lrbench.errors import InputError, LrbenchError, ModelError, TaskError, one_line
from lrbench.evaluate import ENGINES, make_engine
from lrbench.evaluate.bound import BoundEngine
from lrbench.evaluate.engine import Engine, Job, Outcome, Step
from lrbench.inference import measure_inference
from lrbench.manifest import Manifest
from lrbench.models.base import Base
from lrbench.models.edit import edited
from lrbench.models.load import (
    LoadedModel,
    choose_device,
    first_non_finite,
    has_chat_template,
    load,
    load_structure,
)
from lrbench.models.slots import Inventory, count_numbers
from lrbench.partials import RunPartials
from lrbench.plan import Cell, Method, Plan, make_plan, methods
from lrbench.reductions import Reduction, Reductions, sizes
from lrbench.registry import Registry
from lrbench.store import Edit, Row, RunDirectory
from lrbench.suite import ModelSpec, Suite
from lrbench.tasks.load import TaskSet, load_tasks
from lrbench.updates import base_of, check_base, definition_of, without_unchanged

LOCK = ".lock"
HELD_BYTES = 2**30  # of factors that wait for an engine which prefers many jobs at once


class Progress(Protocol):
    """Hears what a run does, as it does it."""

    def note(self, message: str) -> None:
        """Something happens that takes a while, or that the user should know."""

    def planned(self, model: str, cells: int, reused: int, tasks: Mapping[str, Sequence[str]]) -> None:
        """A model's cells are known, how many are there already, and what the suite's tasks stand for."""

    def scoring(self, step: Step) -> None:
        """A cell was answered some requests."""

    def finished(self, row: Row) -> None:
        """A row was written."""


@dataclass
class RunResult:
    """What a run did.

    Attributes:
        computed: cells worked on now, whatever became of them.
        reused: cells that had a row.
        failed, skipped: such rows of the whole plan, new and old.
    """

    directory: RunDirectory
    computed: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def count(self, rows: Iterable[Row], *, new: bool) -> None:
        """Adds rows of the plan."""
        for row in rows:
            self.computed += new
            self.reused += not new
            self.failed += row.status == "failed"
            self.skipped += row.status == "skipped"

    def summary(self) -> str:
        """One line for the terminal."""
        parts = [f"{self.computed} cells done in {self.seconds:.0f} s"] if self.computed else ["nothing to compute"]
        if self.reused:
            parts.append(f"{self.reused} already there")
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.failed:
            parts.append(f"{self.failed} failed (--retry-failed tries them again)")
        return f"{', '.join(parts)}; rows in {self.directory.path}"


@dataclass
class _ModelRun:
    """One model's share of a run: what its rows have in common."""

    suite: Suite
    loaded: LoadedModel
    directory: RunDirectory
    environment: str
    base: Base | None = None
    numbers: int = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = count_numbers(self.loaded.model)

    def row(self, cell: Cell, key: str, status: Literal["ok", "failed", "skipped"], **measured: Any) -> Row:
        method = cell.method
        return Row(
            cell=key, status=status, environment=self.environment, suite=self.suite.name, model=self.loaded.label,
            reducer=method.reducer.name if method else None, label=method.label if method else None,
            delta=self.base.label if self.base else None,
            params={**method.params, **_chosen(measured.get("edits", []))} if method else {},
            mode=cell.mode, requested=cell.requested,
            seed=self.suite.seed if cell.seed is None else cell.seed, **measured,
        )  # fmt: skip


def run_suite(
    suite: Suite,
    registry: Registry,
    out: Path,
    *,
    progress: Progress,
    device: str | None = None,
    engine: str = ENGINES[0],
    force: bool = False,
    retry_failed: bool = False,
    trust_remote_code: bool = False,
) -> RunResult:
    """Runs every cell of a suite that has no row yet.

    Args:
        suite: validated; what it says of dtype and limits defines the result.
        registry: where its reducers come from.
        out: the run's directory; made where missing.
        progress: told what happens.
        device: instead of the suite's.
        engine: one of `ENGINES`; how cells are scored, not what they score.
        force: score again what has a row.
        retry_failed: score again what has a failed row.
        trust_remote_code: lets the models whose suite asks for it run their repositories' own code.

    Raises:
        InputError: anything wrong with the suite, its models, tasks or plugins; or the directory holds another
            suite's run, or another process is writing to it.
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    started = time.perf_counter()
    built = methods(suite, registry)
    for spec in suite.models:  # a mistake in the last one is said before the first is scored
        inventory = structure_of(suite, spec, device, trust_remote_code=trust_remote_code)
        check_base(suite, inventory, make_plan(suite, inventory, built), trust_remote_code=trust_remote_code)
    directory = RunDirectory(out)
    result = RunResult(directory)
    with _exclusive(directory):
        _refuse_other_suite(directory, suite)
        if force:
            directory.drop_partial()
        manifest = Manifest(directory, suite, built, registry)
        rows = {} if force else directory.rows()
        done = {key: row for key, row in rows.items() if row.status != "failed" or not retry_failed}
        for spec in suite.models:
            _run_model(suite, spec, built, manifest, result, done, device, engine, progress, trust_remote_code)
        directory.drop_partial()  # every cell of the plan has its row
    result.seconds = time.perf_counter() - started
    return result


def structure_of(
    suite: Suite, spec: ModelSpec, device: str | None = None, *, trust_remote_code: bool = False
) -> Inventory:
    """A model's slots without its weights, once its device is known to be there.

    Raises:
        SuiteError: it cannot be had, or has no chat template where the suite wants one; at the suite's line.
    """
    try:
        choose_device(device or spec.device)
        inventory = load_structure(spec, trust_remote_code=trust_remote_code)
        templated = not spec.chat_template or has_chat_template(spec, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise suite.error(spec.path, str(error)) from None
    if not templated:
        raise suite.error(
            (*spec.path, "chat_template"), "the tokenizer has no chat template; leave it out, or take another model"
        )
    return inventory


def tasks_of(suite: Suite, notify: Callable[[str], None]) -> TaskSet:
    """The suite's tasks. Raises SuiteError at the line of the task that cannot be loaded."""
    try:
        return load_tasks(suite.tasks, suite.task_paths, notify=notify)
    except TaskError as error:
        raise suite.error(getattr(error.spec, "path", ("tasks",)), str(error)) from None


def make_suite_engine(
    name: str, suite: Suite, spec: ModelSpec, loaded: LoadedModel, tasks: TaskSet, notify: Callable[[str], None]
) -> BoundEngine:
    """The engine called `name`, as the suite wants it. Raises as `make_engine`."""
    memory = None if suite.frontier_memory == "auto" else suite.frontier_memory
    return make_engine(name, loaded, tasks, spec, suite.batch_size, notify, memory)


def calibration_of(
    suite: Suite, loaded: LoadedModel, engine: BoundEngine, built: Sequence[Method], notify: Callable[[str], None]
) -> Calibration | None:
    """What calibrated methods are given; None where the suite has none. Raises as `prepare`."""
    if suite.calibration is None or not any(method.reducer.needs for method in built):
        return None
    return prepare(suite, loaded, engine.requests, engine.lm.max_length, notify)


def cell_keys(
    plan: Plan, setting: Mapping[str, Any], calibration: Calibration | None, base: Base | None = None
) -> dict[int, str]:
    """`id` of each cell -> its hash, by which its row is known; see `setting_of`."""
    return {id(cell): cell.digest(**setting, **definition_of(cell, calibration, base)) for cell in plan.cells}


def _run_model(
    suite: Suite,
    spec: ModelSpec,
    built: Sequence[Method],
    manifest: Manifest,
    result: RunResult,
    done: Mapping[str, Row],
    device: str | None,
    engine: str,
    progress: Progress,
    trust_remote_code: bool,
) -> None:
    """Scores one model's cells, but for those that are `done`. When it returns, nothing holds the model."""
    progress.note(f"loading {spec.display_name}")
    loaded = load(spec, device=device, trust_remote_code=trust_remote_code)
    plan = make_plan(suite, loaded.inventory, built)
    base = base_of(suite, loaded, progress.note, trust_remote_code=trust_remote_code)
    if base is not None:
        plan = without_unchanged(plan, base.differs)
    broken = first_non_finite(loaded.model)
    if broken:  # cells that reduce it name it themselves; the others fail for it all the same
        progress.note(f"{spec.display_name}: {broken}; mend the checkpoint")
    progress.note("building requests")
    tasks = tasks_of(suite, progress.note)
    scorer = make_suite_engine(engine, suite, spec, loaded, tasks, progress.note)
    calibration = calibration_of(suite, loaded, scorer, built, progress.note)
    setting = setting_of(suite, loaded, spec, scorer)
    keys = cell_keys(plan, setting, calibration, base)
    missing = Plan(tuple(cell for cell in plan.cells if keys[id(cell)] not in done))
    manifest.add_model(
        loaded, tasks, scorer, setting, list(keys.values()), calibration, base, at_work=bool(missing.cells)
    )
    reused = [done[key] for key in keys.values() if key in done]
    result.count(reused, new=False)
    progress.planned(loaded.label, len(plan.cells), len(reused), tasks.named)
    if not missing.cells:
        return
    here = environment(
        loaded.device, engine=scorer.name, batch_size=scorer.lm.batch_size, frontier_memory=suite.frontier_memory
    )
    result.directory.add_environment(here)
    asked = [scorer.lm.max_length, list(scorer.requests.hashes().items())]
    scorer.partials = RunPartials(result.directory, asked, here)
    scorer.report = progress.scoring
    share = _ModelRun(suite, loaded, result.directory, here["hash"], base)
    if calibration is not None:
        calibration.expect(missing.cells)
    try:
        for row in _rows(share, missing, keys, scorer, calibration):
            result.directory.append(row)
            result.directory.drop_partial(row.cell)
            result.count([row], new=True)
            progress.finished(row)
    finally:
        manifest.update_engine(loaded, scorer)


def _rows(
    share: _ModelRun, plan: Plan, keys: dict[int, str], engine: Engine, calibration: Calibration | None
) -> Iterator[Row]:
    """Scores a plan's cells group by group; each row is yielded as soon as it is known."""
    reductions = Reductions(share.suite.seed, calibration, share.base)
    jobs: list[Job] = []
    pending: dict[str, tuple[Cell, list[Reduction]]] = {}
    to_come = Counter(cell.first_block for cell in plan.cells if cell.method and not cell.skip and not cell.failure)

    def scored() -> Iterator[Row]:
        for outcome in engine.score(jobs):
            cell, done = pending.pop(outcome.cell)
            yield _scored_row(share, cell, done, outcome)
        jobs.clear()

    for group in plan.groups():
        for cell in group:
            if cell.skip:
                yield share.row(cell, keys[id(cell)], "skipped", reason=cell.skip)
            elif cell.failure:
                yield share.row(cell, keys[id(cell)], "failed", reason=cell.failure)
            elif cell.method is None:
                pending[keys[id(cell)]] = (cell, [])
                jobs.append(Job(keys[id(cell)], None, lambda: edited({})))
        reducible = [cell for cell in group if cell.method is not None and not cell.skip and not cell.failure]
        for cell, outcome in reductions.of_group(reducible) if reducible else ():
            key = keys[id(cell)]
            sharing = to_come[cell.first_block]
            to_come[cell.first_block] -= 1
            if isinstance(outcome, LrbenchError):
                yield share.row(cell, key, "failed", reason=str(outcome))
                continue
            inference = share.suite.inference
            pending[key] = (cell, noted(cell.slots, outcome, inference))
            editing = _Editing(share.loaded.model, cell, outcome, inference)
            jobs.append(Job(key, cell.first_block, editing, cell.first_modules, sharing))
        held = sum(reduction.edit.stored_bytes for _, done in pending.values() for reduction in done)
        if not engine.prefers_many or held > HELD_BYTES:
            yield from scored()
    yield from scored()


@dataclass(frozen=True)
class _Editing:
    """Puts a cell's reductions in place, each time it is called."""

    model: nn.Module
    cell: Cell
    reductions: Sequence[Reduction]
    inference: Inference

    def __call__(self) -> AbstractContextManager[None]:
        return in_place(self.model, self.cell.slots, self.reductions, self.inference)


def _scored_row(share: _ModelRun, cell: Cell, reductions: Sequence[Reduction], scored: Outcome) -> Row:
    measured: dict[str, Any] = {
        "edits": [reduction.edit for reduction in reductions],
        "calibrate_seconds": sum(reduction.calibrate_seconds for reduction in reductions),
        "decompose_seconds": sum(reduction.seconds for reduction in reductions),
        "evaluate_seconds": scored.seconds,
    }
    if cell.method is not None:
        beside = share.base.numbers_beside(cell.slots) if share.base is not None else None
        measured |= sizes(cell.slots, reductions, share.numbers, beside)
    else:
        measured |= {"keep_targets": 1.0, "keep_model": 1.0, "compression_ratio": 1.0}
    if scored.error is not None:
        return share.row(cell, scored.cell, "failed", reason=str(scored.error), **measured)
    if "inference" in share.suite.measure:
        measured["inference"] = measure_inference(share.loaded.model, cell.slots, reductions)
    share.directory.write_samples(scored.cell, scored.samples)
    return share.row(cell, scored.cell, "ok", scores=scored.scores, **measured)


def _chosen(edits: Sequence[Edit]) -> dict[str, Any]:
    """What a reducer chose for itself: a value that all edits share as it is, else the different ones in one text."""
    values: dict[str, set[Any]] = {}
    for edit in edits:
        for name, value in edit.chosen.items():
            values.setdefault(name, set()).add(value)
    return {
        name: next(iter(found)) if len(found) == 1 else ", ".join(sorted(map(str, found)))
        for name, found in values.items()
    }


def setting_of(suite: Suite, loaded: LoadedModel, spec: ModelSpec, engine: BoundEngine) -> dict[str, Any]:
    """What defines a result beside the cell itself. What a suite leaves out is left out, so that its hashes stay."""
    attention = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
    return {
        "model": loaded.label,
        "weights": loaded.weight_hash,
        "config": loaded.config_hash,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "seed": suite.seed,
        "tasks": engine.requests.definition(),
        "model_options": {
            "chat_template": spec.chat_template,
            "max_length": spec.max_length,
            "add_bos": spec.add_bos,
            **attention,
        },
        **({"inference": suite.inference} if suite.inference != "dense" else {}),
    }


def _refuse_other_suite(directory: RunDirectory, suite: Suite) -> None:
    if not directory.manifest_file.exists():
        own = (LOCK, directory.manifest_file.with_suffix(".tmp").name, "environments.jsonl")
        if not directory.rows_file.exists() and any(path.name not in own for path in directory.path.iterdir()):
            raise InputError(f"{directory.path}: not empty, and not a run; choose another --out")
        return
    other = directory.manifest()
    if other.get("suite_hash") != suite.hash:
        raise InputError(
            f"{directory.path}: holds another suite's run, or one with other settings "
            f"({other.get('suite_hash')}); choose another --out"
        )


@contextmanager
def _exclusive(directory: RunDirectory) -> Iterator[None]:
    """One process at a time writes to a run; the lock is gone with the process, however it ends."""
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        lock = (directory.path / LOCK).open("w")
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{directory.path}: cannot be a run directory: {reason}; choose another --out") from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory.path}: another lrbench is running this suite here; wait for it") from None
        yield
