"""A loaded model in a run: reduces and scores its cells, and makes their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from lrbench.errors import FOREIGN, LrbenchError, SpoiltModelError
from lrbench.evaluation import make_engine
from lrbench.evaluation.base_engine import BaseEngine
from lrbench.evaluation.interface import Job, Outcome, Step
from lrbench.models.base_model import Base
from lrbench.models.integrity import ModelIntegrity
from lrbench.models.load import LoadedModel, first_non_finite, load, weight_hash
from lrbench.models.slots import count_parameters
from lrbench.reduction.apply import in_place, record_inference
from lrbench.reduction.calibration.statistics import Calibration, prepare
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.delta import base_of, definition_of, without_unchanged
from lrbench.reduction.greedy_plan import Composition, make_compositions
from lrbench.reduction.plan import Cell, Method, Plan, make_plan
from lrbench.reduction.reduced_weight import Reduction, sizes
from lrbench.reduction.speed_benchmark import measure_inference
from lrbench.results.rows import Edit, Row
from lrbench.run.cell_scoring import CellScoring, Scored
from lrbench.run.inputs import tasks_of
from lrbench.run.partial_answers import AnswerStorage, RunPartials
from lrbench.suite.load import ModelSpec, Suite
from lrbench.system.environment import environment
from lrbench.system.text import one_line
from lrbench.tasks.saved_datasets import datasets_from
from lrbench.tasks.task_set import TaskSet


@dataclass(frozen=True)
class ModelSetup:
    """A model of a suite, and how to open it.

    Attributes:
        methods: the suite's.
        engine: one of `ENGINES`.
        device: instead of the suite's.
        trust_remote_code: lets a model whose suite asks for it run its repository's own code.
        notify: called with one line before slow steps.
        plugin_files: the files that define the methods' reducers, as far as files do.
    """

    suite: Suite
    spec: ModelSpec
    methods: Sequence[Method]
    engine: str
    device: str | None
    trust_remote_code: bool
    notify: Callable[[str], None]
    plugin_files: Sequence[Path] = ()


@dataclass
class ModelRun:
    """A loaded model with its suite's tasks, ready to have cells reduced and scored. Writes nothing.

    Attributes:
        plan: every cell that the suite's sweeps make of the model.
        engine: bound to the requests of all tasks.
        base: the model before fine-tuning, if updates are reduced.
        calibration: None if the suite has none.
        compositions: the greedy sweeps.
        environment: hash of the hardware and versions; set before the first row is made.
        parameters: the number of the model's parameters.
        integrity: compares the weights with those that were loaded.
        here: whether cells are computed in this process, where a request to stop takes effect between two of them.
    """

    setup: ModelSetup
    loaded: LoadedModel
    plan: Plan
    tasks: TaskSet
    engine: BaseEngine
    base: Base | None = None
    calibration: Calibration | None = None
    compositions: Sequence[Composition] = ()
    environment: str = ""
    parameters: int = field(init=False)
    integrity: ModelIntegrity = field(init=False)
    here: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.parameters = count_parameters(self.loaded.model)
        self.integrity = ModelIntegrity(self.loaded.model)

    @property
    def suite(self) -> Suite:
        """The suite."""
        return self.setup.suite

    @property
    def spec(self) -> ModelSpec:
        """The model, as the suite gives it."""
        return self.setup.spec

    @cached_property
    def _reductions(self) -> CellReducer:
        """Shared by all calls of `rows`, so that a composition reduces each accepted edit once."""
        return CellReducer(self.suite.seed, self.calibration, self.base)

    def keys(
        self, plan: Plan, engine: BaseEngine | None = None, definition: Mapping[str, Any] | None = None
    ) -> dict[Cell, str]:
        """The hash of each cell, which names its row.

        Args:
            engine: bound to the requests; None for all requests of the suite.
            definition: what defines the rows beside the cell and the requests.
        """
        setting = self.setting(engine) | dict(definition or {})
        return {cell: cell.digest(**setting, **definition_of(cell, self.calibration, self.base)) for cell in plan.cells}

    def setting(self, engine: BaseEngine | None = None) -> dict[str, Any]:
        """What defines a row beside the cell: the model, its options, the seed, and an engine's requests (None: all).

        Options that a suite leaves out are left out, so that new options do not change its hashes.
        """
        loaded, spec, inference = self.loaded, self.spec, self.suite.inference
        attention = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
        return {
            "model": loaded.label,
            "weights": loaded.weight_hash,
            "config": loaded.config_hash,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "seed": self.suite.seed,
            "tasks": (engine or self.engine).requests.definition(),
            "model_options": {
                "chat_template": spec.chat_template,
                "max_length": spec.max_length,
                "add_bos": spec.add_bos,
                **attention,
            },
            **({"inference": inference} if inference != "dense" else {}),
        }

    def intact(self) -> bool:
        """Whether the weights are bit-identical to the loaded ones. If not, discards the calibration statistics."""
        if weight_hash(self.loaded.model) == self.loaded.weight_hash:
            return True
        if self.calibration is not None:
            self.calibration.distrust()
        return False

    def environment_of(self, engine: BaseEngine) -> dict[str, Any]:
        """The hardware, versions and settings that an engine of this model scores with."""
        memory = self.suite.frontier_memory
        return environment(
            self.loaded.device, engine=engine.name, batch_size=engine.lm.batch_size, frontier_memory=memory
        )

    def connect(self, engine: BaseEngine, answers: AnswerStorage, report: Callable[[Step], None]) -> RunPartials | None:
        """Records the environment and connects partial-answer storage. Call before the first row.

        Args:
            report: called with each step of the engine.

        Returns:
            The storage; None if each worker has an environment of its own.
        """
        own = self.environment_of(engine)
        self.environment = own["hash"]
        partials = answers.in_environment(own)
        engine.partials, engine.report = partials, report
        return partials

    def given_up(self, cell: Cell, key: str, reason: str) -> Scored:
        """The failed row of a cell that no worker could finish."""
        return Scored(self._row(cell, key, "failed", reason=reason))

    def rows(
        self, plan: Plan, keys: Mapping[Cell, str], engine: BaseEngine | None = None, *, measure: bool = True
    ) -> Iterator[Scored]:
        """Reduces and scores a plan's cells group by group; yields each row as soon as it is known.

        The weights are compared with the original ones before and after each step of a cell. After a mismatch the cells
        under way fail, the weights are loaded again, and the other cells go on.

        Args:
            measure: also what the suite measures beside the scores.

        Raises:
            ModelError: the weights cannot be loaded again.
        """
        engine = engine or self.engine
        row_of, restore = partial(self._scored, measure=measure), partial(self._load_again, engine)
        scoring = CellScoring(engine, row_of, restore)
        to_come = Counter(cell.first_block for cell in plan.cells if cell.method and not cell.skip and not cell.failure)
        for group in plan.groups():
            for cell in group:
                if cell.skip:
                    yield Scored(self._row(cell, keys[cell], "skipped", reason=cell.skip))
                elif cell.failure:
                    yield Scored(self._row(cell, keys[cell], "failed", reason=cell.failure))
                elif cell.method is None:
                    scoring.add(Job(keys[cell], None, _Editing(self, keys[cell], cell, [])), cell)
            reducible = [cell for cell in group if cell.method is not None and not cell.skip and not cell.failure]
            outcomes = list(self._reductions.reduce_group(reducible)) if reducible else []
            if change := self.integrity.change():
                restore(change)
                del self._reductions
                spoilt = SpoiltModelError(f"{change} while {group[0].method and group[0].method.label} reduced it")
                outcomes = [(cell, spoilt) for cell, _ in outcomes]
            for cell, outcome in outcomes:
                key = keys[cell]
                sharing = to_come[cell.first_block]
                to_come[cell.first_block] -= 1
                if isinstance(outcome, LrbenchError):
                    yield Scored(self._row(cell, key, "failed", reason=str(outcome)))
                    continue
                job = Job(key, cell.first_block, _Editing(self, key, cell, outcome), cell.first_modules, sharing)
                scoring.add(job, cell, record_inference(cell.slots, outcome, self.suite.inference))
            if scoring.due:
                yield from scoring.rows()
        yield from scoring.rows()

    def _scored(self, cell: Cell, reductions: Sequence[Reduction], outcome: Outcome, *, measure: bool) -> Scored:
        measured: dict[str, Any] = {
            "edits": [reduction.edit for reduction in reductions],
            "calibrate_seconds": sum(reduction.calibrate_seconds for reduction in reductions),
            "decompose_seconds": sum(reduction.seconds for reduction in reductions),
            "allocate_seconds": sum(reduction.allocate_seconds for reduction in reductions),
            "allocation_trial": next((reduction.trial for reduction in reductions), None),
            "evaluate_seconds": outcome.seconds,
        }
        losses = [reduction.edit.predicted_loss for reduction in reductions]
        if losses and None not in losses:
            measured["predicted_loss"] = sum(loss for loss in losses if loss is not None)
        if cell.method is not None:
            extra = self.base.extra_parameters(cell.slots) if self.base is not None else None
            measured |= sizes(cell.slots, reductions, self.parameters, extra)
        else:
            measured |= {"keep_targets": 1.0, "keep_model": 1.0, "compression_ratio": 1.0}
        if outcome.error is not None:
            return Scored(self._row(cell, outcome.cell, "failed", reason=str(outcome.error), **measured))
        if measure and "inference" in self.suite.measure:
            try:
                with self.integrity.guarded(outcome.cell):
                    measured["inference"] = measure_inference(self.loaded.model, cell.slots, reductions)
            except FOREIGN as error:  # a reducer's factors, or out of memory: only this cell fails
                if isinstance(error, SpoiltModelError):
                    raise
                reason = error if isinstance(error, LrbenchError) else f"measuring its speed failed: {one_line(error)}"
                return Scored(self._row(cell, outcome.cell, "failed", reason=str(reason), **measured))
        return Scored(self._row(cell, outcome.cell, "ok", scores=outcome.scores, **measured), outcome.samples)

    def _load_again(self, engine: BaseEngine, change: str) -> None:
        """Restores the original weights after a change was left in them."""
        self.setup.notify(f"{self.loaded.label}: {change}; its weights are loaded again")
        # An adapter is merged on the same device as before, because another device rounds otherwise.
        device = "cpu" if self.spec.adapter is None else str(self.loaded.device)
        fresh = load(self.spec, device=device, trust_remote_code=self.setup.trust_remote_code)
        self.integrity.restore(fresh.model, self.loaded.weight_hash)
        engine.forget()

    def _row(self, cell: Cell, key: str, status: Literal["ok", "failed", "skipped"], **measured: Any) -> Row:
        method = cell.method
        return Row(
            cell=key, status=status, environment=self.environment, suite=self.suite.name, model=self.loaded.label,
            reducer=method.reducer.name if method else None, label=method.label if method else None,
            delta=self.base.label if self.base else None,
            params={**method.params, **_chosen(measured.get("edits", []))} if method else {},
            mode=cell.mode, requested=cell.requested, allocation=cell.allocation,
            seed=self.suite.seed if cell.seed is None else cell.seed, **measured,
        )  # fmt: skip


def open_model(setup: ModelSetup) -> ModelRun:
    """Reads the tasks, loads a model, plans its cells, builds the requests. Only the returned object holds the model.

    Raises:
        InputError: the model, its base, the tasks or the calibration text cannot be loaded.
    """
    suite, spec, notify = setup.suite, setup.spec, setup.notify
    notify("reading tasks")
    tasks = tasks_of(suite)  # before the model, which may take minutes
    notify(f"loading {spec.display_name}")
    loaded = load(spec, setup.device, notify, trust_remote_code=setup.trust_remote_code)
    plan = make_plan(suite, loaded.inventory, setup.methods)
    base = base_of(suite.delta, loaded, notify, trust_remote_code=setup.trust_remote_code)
    if base is not None:
        plan = without_unchanged(plan, base.differs)
    broken = first_non_finite(loaded.model)
    if broken:  # cells that reduce this weight name it in their rows; the others fail without naming it
        notify(f"{spec.display_name}: {broken}; repair the checkpoint")
    notify("building requests")
    memory = None if suite.frontier_memory == "auto" else suite.frontier_memory
    engine = make_engine(setup.engine, loaded, tasks, spec, suite.batch_size, notify, memory)
    calibration = calibration_of(setup, loaded, engine)
    compositions = make_compositions(suite, loaded.inventory, setup.methods)
    return ModelRun(setup, loaded, plan, tasks, engine, base, calibration, compositions)


def calibration_of(setup: ModelSetup, loaded: LoadedModel, engine: BaseEngine) -> Calibration | None:
    """The suite's calibration; None if it has none. Raises SuiteError: its text cannot be read."""
    suite = setup.suite
    if suite.calibration is None:
        return None
    longest = engine.lm.max_length
    with datasets_from(suite.datasets):
        return prepare(
            suite.calibration, suite.task_paths, loaded, engine.requests, longest, setup.notify,
            held_out=any(sweep.shared_by == "loss" for sweep in suite.sweep),
        )  # fmt: skip


@dataclass(frozen=True)
class _Editing:
    """A context in which the model is edited by a cell's reductions. Raises SpoiltModelError if a change remains."""

    model_run: ModelRun
    key: str
    cell: Cell
    reductions: Sequence[Reduction]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        run = self.model_run
        with (
            run.integrity.guarded(self.key),
            in_place(run.loaded.model, self.cell.slots, self.reductions, run.suite.inference),
        ):
            yield


def _chosen(edits: Sequence[Edit]) -> dict[str, Any]:
    """The parameters that a reducer chose itself: the value if all edits agree, else the different values as a text."""
    chosen: dict[str, set[Any]] = {}
    for edit in edits:
        for name, value in edit.chosen.items():
            chosen.setdefault(name, set()).add(value)
    return {
        name: next(iter(values)) if len(values) == 1 else ", ".join(sorted(map(str, values)))
        for name, values in chosen.items()
    }
