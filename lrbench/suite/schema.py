"""The keys of a suite, with their types and defaults. `lrbench.suite.load` reads files into these classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    StrictInt,
    model_validator,
)

from lrbench.errors import SuiteError
from lrbench.reducers.ranks import CALIBRATED
from lrbench.suite.calibration import CalibrationSpec
from lrbench.suite.derived_columns import DerivedColumn
from lrbench.suite.fields import (
    PACKAGE,
    Count,
    FilePath,
    Seed,
    Spec,
    Text,
    directory_name,
    each_once,
    memory,
    one_or_many,
    seed_list,
)
from lrbench.suite.messages import misplaced
from lrbench.suite.model import DeltaSpec, ModelSpec
from lrbench.suite.selection import RaceSpec, ScreenSpec, SelectSpec, derived_columns, switched_on
from lrbench.suite.sweep import SweepSpec
from lrbench.suite.yaml_reader import KeyPath, Place, describe
from lrbench.system.text import did_you_mean

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer

#: With `delta`, the label of the row of the base's own weights.
BASE = "base"


class TaskSpec(Spec):
    """One lm-eval task or group, with its options; None for the task's own setting.

    Attributes:
        data: a file or saved data set whose documents replace the task's; absolute after loading.
    """

    task: Text
    limit: Count | None = None
    num_fewshot: Annotated[StrictInt, Field(ge=0)] | None = None
    data: Text | None = None
    _as_written: str | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value

    def resolved(self) -> dict[str, Any]:
        """Plain data, with the path as written in the suite."""
        return self.model_dump() | ({"data": self._as_written} if self._as_written is not None else {})


class ReducerSpec(Spec):
    """One reducer with parameters; `label` distinguishes several uses of a reducer, and is its name by default."""

    name: Text
    params: dict[str, Any] = Field(default_factory=dict)
    label: Annotated[Text, Field(max_length=64)]

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, "label": value}
        if not isinstance(value, dict):
            raise misplaced(f"a reducer is a name, or a name with parameters, not {describe(value)}")
        if len(value) != 1:
            at = list(value)[1:2]
            raise misplaced("a reducer is one name, with its parameters indented below it", *at, key=bool(at))
        [(name, params)] = value.items()
        if params is not None and not isinstance(params, dict):
            raise misplaced(f"the parameters of {name!r} are a mapping, not {describe(params)}", name)
        params = dict(params or {})
        return {"name": name, "label": params.pop("label", name), "params": params}

    def parameter_error(self, message: str, parameter: str | None) -> SuiteError:
        """As `error_at`, at the line of a parameter, or of the reducer for None."""
        return self.error_at(message, self.name, parameter) if parameter else self.error_at(message)

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return {self.name: {**self.params, "label": self.label}}


class Suite(Spec):
    """The definition of a benchmark run. Made by `load_suite`.

    Attributes:
        name: part of the name of the run's directory.
        models: one or several.
        task_paths, plugins: folders of task YAML, plugin files: absolute.
        datasets: the folder of saved data sets that is read before the hub is asked: absolute; default
            `$LRBENCH_DATASETS`.
        tasks, reducers, sweep: at least one of each.
        calibration: text for reducers that need statistics of a weight's inputs; None if none does.
        delta: the base model, if fine-tuning updates are reduced; None if the weights themselves are.
        seed: of the reducers' random draws.
        seeds: cells of random reducers are repeated with each of them; None for `seed` alone.
        batch_size: sequences per forward pass; None for the engine's choice.
        frontier_memory: largest size of hidden states cached between cells, in GiB; `auto` depends on the free memory.
        inference: edited weights run as dense matrices, or through their factors where possible.
        measure: measurements beside the scores.
        select: how reported cells are chosen; None if all are reported.
        race: when to stop scoring cells that cannot be the choice; None if all are scored in full.
        screen: which cells are scored; None for all.
        derived: columns of tables, computed from the scores.
    """

    name: Annotated[Text, AfterValidator(directory_name)]
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    task_paths: tuple[FilePath, ...] = ()
    plugins: tuple[FilePath, ...] = ()
    datasets: FilePath | None = None
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    reducers: Annotated[tuple[ReducerSpec, ...], Field(min_length=1)]
    sweep: Annotated[tuple[SweepSpec, ...], Field(min_length=1)]
    calibration: CalibrationSpec | None = None
    delta: DeltaSpec | None = None
    seed: Seed = 0
    seeds: Annotated[int | tuple[int, ...] | None, PlainValidator(seed_list)] = None
    batch_size: Count | None = None
    frontier_memory: Annotated[float | Literal["auto"], BeforeValidator(memory)] = "auto"
    inference: Literal["dense", "factored"] = "dense"
    measure: Annotated[tuple[Literal["inference"], ...], BeforeValidator(one_or_many), AfterValidator(each_once)] = ()
    select: Annotated[SelectSpec | None, BeforeValidator(switched_on)] = None
    race: Annotated[RaceSpec | None, BeforeValidator(switched_on)] = None
    screen: Annotated[ScreenSpec | None, BeforeValidator(switched_on)] = None
    derived: Annotated[tuple[DerivedColumn, ...], PlainValidator(derived_columns)] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: entry for key, entry in value.items() if entry is not None or key not in ("inference", "measure")}

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        for index, model in enumerate(self.models):
            if model.display_name in [other.display_name for other in self.models[:index]]:
                raise misplaced(f"two models are called {model.display_name!r}; give one a label", "models", index)
        for index, task in enumerate(self.tasks):
            if task.task in [other.task for other in self.tasks[:index]]:
                raise misplaced(f"task {task.task!r} is listed twice", "tasks", index)
        labels: list[str] = []
        for index, reducer in enumerate(self.reducers):
            if reducer.label in labels:
                hint = f"`{reducer.name}: {{label: ...}}`"
                raise misplaced(
                    f"two reducers are called {reducer.label!r}; give one a label: {hint}", "reducers", index
                )
            labels.append(reducer.label)
        for index, sweep in enumerate(self.sweep):
            for position, label in enumerate(sweep.reducers or ()):
                if label not in labels:
                    hint = did_you_mean(label, labels) or f"; this suite has {', '.join(labels)}"
                    raise misplaced(f"no reducer is labelled {label!r}{hint}", "sweep", index, "reducers", position)
        return self

    @model_validator(mode="after")
    def _text_to_allocate_by(self) -> Suite:
        for index, sweep in enumerate(self.sweep):
            sweep._default = "uniform" if self.calibration is None else "loss"
            if sweep.allocation in CALIBRATED and self.calibration is None:
                raise misplaced(
                    f"'allocation: {sweep.allocation}' needs calibration; "
                    "add `calibration: {text: FILE}` to the suite",
                    "sweep", index, "allocation",
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _updates_as_matrices(self) -> Suite:
        if self.delta is None:
            return self
        for index, sweep in enumerate(self.sweep):
            if sweep.rank.keep_model is not None:
                raise misplaced(
                    "'keep_model' does not go with 'delta': an update is not part of the model's size; "
                    "write 'keep', the fraction of each update",
                    "sweep", index, "rank", "keep_model", key=True,
                )  # fmt: skip
        for key, active in (("inference", self.inference == "factored"), ("measure", "inference" in self.measure)):
            if active:
                raise misplaced(
                    f"{key!r} does not go with 'delta': factors of an update run beside the base's weight, not in its "
                    "place; leave one of them out",
                    key,
                )
        for index, reducer in enumerate(self.reducers):
            if reducer.label == BASE:
                raise misplaced(
                    f"with 'delta', {BASE!r} is the row of the base's own weights; give the reducer another label",
                    "reducers",
                    index,
                )
        return self

    @model_validator(mode="after")
    def _race_of_a_selection(self) -> Suite:
        if self.race is not None and self.select is None:
            raise misplaced("'race' stops cells that cannot be chosen; it needs 'select'", "race", key=True)
        return self

    @model_validator(mode="after")
    def _greedy_of_a_selection(self) -> Suite:
        composed: set[str] = set()
        for index, sweep in enumerate(self.sweep):
            if sweep.mode != "greedy":
                continue
            if self.select is None:
                raise misplaced(
                    "'mode: greedy' chooses edits on validation documents; it needs 'select' in the suite",
                    "sweep", index, "mode",
                )  # fmt: skip
            if self.delta is not None:
                raise misplaced("'mode: greedy' does not go with 'delta'; take another mode", "sweep", index, "mode")
            labels = sweep.reducers or tuple(reducer.label for reducer in self.reducers)
            repeated = next((label for label in labels if label in composed), None)
            if repeated is not None:
                raise misplaced(
                    f"{repeated!r} is already composed by another sweep, and each method has one composition per "
                    "choice; name other 'reducers', such as the same reducer under another label",
                    "sweep", index, "mode",
                )  # fmt: skip
            composed.update(labels)
        return self

    @model_validator(mode="after")
    def _screen_of_a_selection(self) -> Suite:
        if self.screen is not None and self.select is None:
            raise misplaced(
                "'screen' uses validation documents, so that test documents stay unseen; it needs 'select'",
                "screen",
                key=True,
            )
        if self.screen is not None and self.delta is not None:
            raise misplaced(
                "'screen' predicts the effect of dropping components of a weight, not of an update; leave it out with "
                "'delta'",
                "screen",
                key=True,
            )
        return self

    @property
    def repeats(self) -> tuple[int, ...]:
        """The seeds of random reducers: the suite's list, or consecutive ones from `seed` on."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return tuple(range(self.seed, self.seed + (self.seeds or 1)))

    @property
    def hash(self) -> str:
        """Short SHA-256 of the suite's definition; part of the name of the run's directory.

        Excludes how it is executed (`device`, `device_map`, `batch_size`, `frontier_memory`, `datasets`), so that a run
        can continue elsewhere or with smaller batches, and `derived` columns, which tables compute from scores.
        Excludes keys without a value, so that a key added in a later version does not change the hashes of older
        suites.
        """
        text = json.dumps(_defining(self.resolved()), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def resolved(self) -> dict[str, Any]:
        """The suite as plain JSON data with defaults and with paths as written; itself a valid suite."""
        data = self._document.data
        return {
            "name": self.name,
            "models": [model.resolved() for model in self.models],
            "task_paths": list(data.get("task_paths") or ()),
            "plugins": list(data.get("plugins") or ()),
            **({"datasets": data.get("datasets") or str(self.datasets)} if self.datasets is not None else {}),
            "tasks": [task.resolved() for task in self.tasks],
            "reducers": [reducer.resolved() for reducer in self.reducers],
            "sweep": [sweep.resolved() for sweep in self.sweep],
            "calibration": self.calibration and self.calibration.resolved(),
            "delta": self.delta and self.delta.resolved(),
            "seed": self.seed,
            "seeds": list(self.seeds) if isinstance(self.seeds, tuple) else self.seeds,
            "batch_size": self.batch_size,
            "frontier_memory": self.frontier_memory,
            "inference": None if self.inference == "dense" else self.inference,
            "measure": list(self.measure) or None,
            **({"select": self.select.resolved()} if self.select is not None else {}),
            **({"race": self.race.resolved()} if self.race is not None else {}),
            **({"screen": self.screen.resolved()} if self.screen is not None else {}),
            **({"derived": {column.name: column.resolved() for column in self.derived}} if self.derived else {}),
        }

    def local_paths(self) -> dict[str, str]:
        """The paths in `resolved` on this machine: dotted place -> absolute path; not those into Python packages."""
        resolved = self.resolved()
        absolute = {
            f"{key}.{index}": str(path)
            for key in ("task_paths", "plugins")
            for index, path in enumerate(getattr(self, key))
            if str(path) != resolved[key][index]
        }
        if self.datasets is not None and str(self.datasets) != resolved["datasets"]:
            absolute["datasets"] = str(self.datasets)
        for index, model in enumerate(self.models):
            absolute |= {
                f"models.{index}.{key}": str(getattr(model, key))
                for key, written in model._as_written.items()
                if getattr(model, key) != written
            }
        absolute |= {
            f"tasks.{index}.data": str(task.data)
            for index, task in enumerate(self.tasks)
            if task._as_written is not None and task.data != task._as_written
        }
        if self.delta is not None:
            base = self.delta.base
            absolute |= {
                f"delta.base.{key}": str(getattr(base, key))
                for key, written in base._as_written.items()
                if getattr(base, key) != written
            }
        text = self.calibration.text if self.calibration is not None else None
        if text is not None and text._as_written is not None:
            key = "file" if text.file is not None else "dataset"
            absolute[f"calibration.text.{key}"] = str(getattr(text, key))
        return {place: path for place, path in absolute.items() if not _at(resolved, place).startswith(PACKAGE)}

    @property
    def classes(self) -> Sequence[type[Reducer]]:
        """Reducers passed as classes; the suite's data has their names."""
        return self._document.classes

    def place(self, path: KeyPath) -> Place:
        """The place of the value at `path`, such as `("sweep", 0, "layers")`, or of the nearest enclosing value."""
        return self._document.place(path)


def _defining(data: Any) -> Any:
    if isinstance(data, dict):
        execution = ("device", "device_map", "batch_size", "frontier_memory", "datasets", "derived")
        return {key: _defining(value) for key, value in data.items() if value is not None and key not in execution}
    return [_defining(value) for value in data] if isinstance(data, list) else data


def _at(resolved: Any, place: str) -> str:
    """The value at a dotted place; that of the key above if it has no keys of its own."""
    for key in place.split("."):
        if isinstance(resolved, list):
            resolved = resolved[int(key)]
        elif isinstance(resolved, dict):
            resolved = resolved[key]
    return str(resolved)
