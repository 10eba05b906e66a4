"""A model that workers hold, in the run's own process: its cells, their hashes and its tasks, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch

from lrbench._version import __version__
from lrbench.errors import EvaluationError, ModelError
from lrbench.evaluation import engine_options
from lrbench.evaluation.base_engine import BaseEngine
from lrbench.models.base_model import Base
from lrbench.models.load import LoadedModel
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import WeightSlot, count_parameters
from lrbench.models.source import find, read_tokenizer, structure
from lrbench.reduction.delta import without_unchanged
from lrbench.reduction.greedy_plan import make_compositions
from lrbench.reduction.plan import Plan, make_plan
from lrbench.run.cell_scoring import Scored
from lrbench.run.executors.wire import cell_data, pack, partial_data, unpack
from lrbench.run.inputs import tasks_of
from lrbench.run.model_run import ModelRun, ModelSetup, calibration_of
from lrbench.run.partial_answers import AnswerStorage
from lrbench.system.offline import offline_folder

if TYPE_CHECKING:
    from lrbench.evaluation.interface import Job, Step
    from lrbench.reduction.plan import Cell
    from lrbench.tasks.score import Samples, TaskScores


class Workers(Protocol):
    """The workers that hold the model."""

    def compute(self, run: RemoteRun, plan: Plan, keys: Mapping[Cell, str], engine: RemoteEngine) -> Iterator[Scored]:
        """Reduces and scores cells on an engine's requests.

        Raises:
            Interrupted: a stop was requested; after the rows of the cells under way.
        """
        ...

    def spoilt(self) -> Collection[str]:
        """Names of the workers whose weights are not bit-identical to the loaded ones."""
        ...


def order_of(setup: ModelSetup, gpus: float) -> dict[str, Any]:
    """What a worker needs to open a model: paths on this machine, and hashes to check that it has the same code."""
    suite = setup.suite
    return {
        "lrbench": __version__,
        "suite": suite.resolved(),
        "paths": suite.local_paths(),
        "file": suite.place(()).file,
        "plugins": list(dict.fromkeys(str(file.resolve()) for file in setup.plugin_files)),
        "methods": {method.label: method.source_hash for method in setup.methods},
        "model": [spec.display_name for spec in suite.models].index(setup.spec.display_name),
        "engine": setup.engine,
        "device": setup.device,
        "gpus": gpus,
        "trust_remote_code": setup.trust_remote_code,
        "offline": str(folder) if (folder := offline_folder()) is not None else None,
    }


class RemoteEngine(BaseEngine):
    """An engine's requests. The engine itself is on the workers, which describe it after it has scored."""

    def __init__(self, name: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.name = name
        self.documents: tuple[Mapping[str, Sequence[int]], ...] = ()
        self.described: dict[str, Any] = {}

    def restricted(self, documents: Mapping[str, Collection[int]]) -> Self:
        """As `BaseEngine.restricted`; records the documents, so that a worker can restrict its engine likewise."""
        part = super().restricted(documents)
        chosen = {name: sorted(set(ids)) for name, ids in documents.items()}
        part.documents, part.described = (*self.documents, chosen), {}
        return part

    def describe(self) -> dict[str, Any]:
        """The description by the last worker that scored; before that, the common description of all engines."""
        return self.described or super().describe()

    def measure(self, job: Job) -> tuple[TaskScores, Samples]:
        """Raises EvaluationError: never called here."""
        raise EvaluationError("this process holds no weights; cells are scored by workers")


class RemoteBase(Base):
    """The base of a fine-tuned model that workers hold."""

    def __init__(self, opened: Mapping[str, Any]) -> None:
        self.label, self.source, self.weight_hash = opened["label"], opened["source"], opened["weight_hash"]
        self._changed = dict.fromkeys(opened["same"], False) | dict.fromkeys(opened["changed"], True)

    def differs(self, slot: WeightSlot) -> bool:
        """Whether fine-tuning changed a slot's weight, by the first worker's answer. Raises ModelError for others."""
        if slot.name not in self._changed:
            raise ModelError(f"base {self.label}: {slot.name} was not compared; it is in no cell of the suite")
        return self._changed[slot.name]


@dataclass
class RemoteRun(ModelRun):
    """A model whose cells are computed elsewhere.

    Attributes:
        workers: the workers that compute them.
        order: the message that opened the model on them; see `order_of`.
        answers: stores partial answers.
        report: called with each step of a worker's engine.
    """

    workers: Workers = field(kw_only=True)
    order: Mapping[str, Any] = field(default_factory=dict)
    answers: AnswerStorage | None = None
    report: Callable[[Step], None] | None = None
    here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.parameters = count_parameters(self.loaded.model)

    def intact(self) -> bool:
        """Whether the weights of every worker are bit-identical to the loaded ones."""
        return not self.workers.spoilt()

    def connect(self, engine: BaseEngine, answers: AnswerStorage, report: Callable[[Step], None]) -> None:
        """Sets the storage of the workers' partial answers; each worker has an environment of its own."""
        self.answers, self.report = answers, report

    def rows(
        self, plan: Plan, keys: Mapping[Cell, str], engine: BaseEngine | None = None, *, measure: bool = True
    ) -> Iterator[Scored]:
        """Lets the workers reduce and score a plan's cells; yields each row as soon as it is known, in any order.

        Workers always measure what the suite measures.
        """
        engine = engine or self.engine
        assert isinstance(engine, RemoteEngine)
        return self.workers.compute(self, plan, keys, engine)


def open_remote(setup: ModelSetup, order: Mapping[str, Any], opened: Mapping[str, Any], workers: Workers) -> RemoteRun:
    """Opens a model that workers hold. This process reads everything but the weights as well.

    Args:
        order: what workers were sent; see `order_of`.
        opened: the first worker's answer.

    Raises:
        InputError: the model, the tasks or the calibration text cannot be loaded.
    """
    suite, spec = setup.suite, setup.spec
    source = find(spec, trust_remote_code=setup.trust_remote_code)
    model, tokenizer = structure(source, spec.attn_implementation), read_tokenizer(spec, source)
    loaded = LoadedModel(
        label=spec.display_name, source=opened["source"], model=model, tokenizer=tokenizer,
        inventory=find_slots(model), weight_hash=opened["weight_hash"], config_hash=opened["config_hash"],
        device=torch.device("meta"), dtype=getattr(torch, opened["dtype"]),
    )  # fmt: skip
    plan = make_plan(suite, loaded.inventory, setup.methods)
    base = None if opened["base"] is None else RemoteBase(opened["base"])
    if base is not None:
        plan = without_unchanged(plan, base.differs)
    setup.notify("reading tasks")
    tasks = tasks_of(suite)
    setup.notify("building requests")
    engine = RemoteEngine(setup.engine, model, tokenizer, tasks, **engine_options(spec, suite.batch_size))
    calibration = calibration_of(setup, loaded, engine)
    compositions = make_compositions(suite, loaded.inventory, setup.methods)
    return RemoteRun(setup, loaded, plan, tasks, engine, base, calibration, compositions, workers=workers, order=order)


def unit_of(
    run: RemoteRun, cells: Sequence[Cell], keys: Mapping[Cell, str], engine: RemoteEngine, environment: Any
) -> Any:
    """The message that lets a worker compute cells.

    Args:
        environment: the worker's; partial answers of other environments are not reused.
    """
    storage = run.answers.in_environment(environment) if run.answers is not None else None
    partials = {keys[cell]: storage.read(keys[cell]) for cell in cells} if storage is not None else {}
    return {
        "cells": [cell_data(cell) for cell in cells],
        "keys": [keys[cell] for cell in cells],
        "documents": engine.documents,
        "setting": run.setting(engine),
        "partials": {key: list(map(partial_data, of_cell)) for key, of_cell in partials.items() if of_cell},
    }


def differing_key(opened: Mapping[str, Any], run: RemoteRun) -> str | None:
    """The first key in which a worker's `setting` differs from the run's; None if they are equal."""
    expected, setting = unpack(pack(run.setting())), opened["setting"]
    return next((key for key in expected if expected[key] != setting.get(key)), None)
