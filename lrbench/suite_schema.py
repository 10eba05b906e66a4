"""What a suite may say: its keys, their types, their defaults. `lrbench.suite` reads files into it."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from lrbench.errors import SuiteError, did_you_mean
from lrbench.layers import Layers
from lrbench.models.roles import ALIASES, GROUPS, ROLES
from lrbench.ranks import RankKind, RankRequest
from lrbench.suite_errors import misplaced
from lrbench.yaml_positions import Document, KeyPath, Place, describe


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value!r} is listed twice")
    return values


def _known_weight(word: str) -> str:
    """Refuses what can be no role, group, LASER name, parameter name or glob in any model."""
    known = [*ROLES, *GROUPS, *ALIASES]
    if word in known or any(mark in word for mark in "*?["):
        return word
    # a parameter's name has dots, and so have roles: `mlp.dwon` is the one, `lm_head.weight` the other
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if "." not in word or (near and word.count(".") == 1 and not word.endswith((".weight", ".bias"))):
        hint = did_you_mean(word, known) or f"; known: {', '.join(known)}, or a glob on parameter names"
        raise ValueError(f"unknown role {word!r}{hint}")
    return word


def _directory_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"the suite's name {name!r} also names a directory: at most 64 letters, digits, '.', '_', '-', "
            "a letter or digit first"
        )
    return name


def _path_text(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a path is a string, not {describe(value)}" if value != "" else "a path must not be empty")
    return value


#: The label of the row that has the base's own weights, where updates are reduced.
BASE = "base"

_Text = Annotated[StrictStr, Field(min_length=1)]
_Path = Annotated[Path, BeforeValidator(_path_text)]
_Count = Annotated[StrictInt, Field(ge=1)]
_Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]
_Share = Annotated[StrictFloat, Field(gt=0, le=1, allow_inf_nan=False)]
_Shares = Annotated[tuple[_Share, ...], Field(min_length=1), BeforeValidator(_one_or_many)]
_Weight = Annotated[
    _Text, Field(), BeforeValidator(lambda word: _known_weight(word) if isinstance(word, str) else word)
]


def _memory(value: Any) -> Any:
    """`auto`, or GiB."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or value == "auto":
        return "auto"
    if number and 0 < value < 2**63:
        return value
    raise ValueError(f"'frontier_memory' takes auto, or GiB as a number above 0, not {describe(value)}")


def _seeds(value: Any) -> int | tuple[int, ...] | None:
    """How many, or which; refuses all else."""
    if value is None or (type(value) is int and value >= 1):
        return value
    if isinstance(value, list | tuple) and value:
        for index, seed in enumerate(value):
            if type(seed) is not int or not 0 <= seed < 2**63:
                raise misplaced(f"a seed is a whole number from 0 up to 2**63, not {describe(seed)}", index)
            if seed in value[:index]:
                raise misplaced(f"seed {seed} is listed twice", index)
        return tuple(value)
    raise misplaced(f"'seeds' is how many seeds, or a list of them, not {describe(value) if value != [] else 'none'}")


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    _path: KeyPath = PrivateAttr(default=())

    @property
    def path(self) -> KeyPath:
        """Where this stands in the suite's data, for `Suite.error((*spec.path, "key"), message)`."""
        return self._path


def _configuration(value: Any) -> Any:
    if isinstance(value, dict):
        if not isinstance(value.get("model_type"), str):
            raise misplaced("a 'config' names its architecture: {model_type: llama, hidden_size: 64, ...}")
        if not all(isinstance(key, str) for key in value):
            raise misplaced("the keys of a 'config' are strings")
        return value
    if value is not None and (not isinstance(value, str) or not value):
        raise misplaced(f"'config' takes settings, or a file or name that has them, not {describe(value)}")
    return value


def _device_map(value: Any) -> Any:
    if value is None or value in ("auto", "balanced"):
        return value
    if isinstance(value, str):
        hint = did_you_mean(value, ("auto", "balanced")) or "; known: auto, balanced, or a mapping {module: device}"
        raise misplaced(f"unknown device_map {value!r}{hint}")
    if not isinstance(value, dict) or not value:
        raise misplaced(f"'device_map' takes auto, balanced or a mapping of modules to devices, not {describe(value)}")
    for module, device in value.items():
        if not isinstance(module, str) or isinstance(device, bool) or not isinstance(device, int | str) or device == "":
            raise misplaced(
                f"'device_map' maps modules to devices, as in {{model.layers.0: 1}}, not {module!r} to {device!r}"
            )
    return value


class ModelSpec(_Spec):
    """One model: the bundled one by `name`, any other by `pretrained`, or random weights by `config`.

    Attributes:
        name: a bundled model.
        pretrained: a folder (absolute where the suite named one relative to itself) or a hub id.
        revision: of the hub id.
        config: an architecture for random weights: its settings with `model_type`, or a file, folder, hub id or
            bundled model that has them.
        seed: of the random weights; None for 0.
        tokenizer: a folder, hub id or bundled model; None for the model's own, with random weights the bundled one's.
        adapter: a PEFT adapter, folder or hub id, that is merged into the weights.
        dtype: what the weights are loaded as; `auto` is what the checkpoint says.
        device: None for the engine's choice.
        device_map: for models larger than one GPU: `auto`, `balanced`, or module -> device; instead of `device`.
        attn_implementation: of transformers; None for the model's default.
        trust_remote_code: whether the model's repository may run its own code; the command line must say so too.
        chat_template: whether prompts go through the tokenizer's chat template.
        max_length: tokens; None for the model's own.
        add_bos: whether a BOS token is put in front; None for the tokenizer's own habit.
        label: how tables call it; None for the name or path.
    """

    name: _Text | None = None
    pretrained: _Text | None = None
    revision: _Text | None = None
    config: Annotated[Any, BeforeValidator(_configuration)] = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    tokenizer: _Text | None = None
    adapter: _Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: _Text | None = None
    device_map: Annotated[Any, BeforeValidator(_device_map)] = None
    attn_implementation: _Text | None = None
    trust_remote_code: StrictBool | None = None
    chat_template: StrictBool = False
    max_length: _Count | None = None
    add_bos: StrictBool | None = None
    label: _Text | None = None
    _given: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if [self.name, self.pretrained, self.config].count(None) != 2:
            raise misplaced(
                "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id), or 'config' for "
                "random weights"
            )
        if self.revision is not None and self.pretrained is None:
            raise misplaced(f"a {'bundled' if self.name else 'random'} model has no 'revision'", "revision")
        if self.seed is not None and self.config is None:
            raise misplaced("a model's 'seed' is that of random weights; it goes with 'config'", "seed")
        if self.device is not None and self.device_map is not None:
            raise misplaced("'device' or 'device_map', not both", "device_map", key=True)
        if self.device_map is not None and self.config is not None:
            raise misplaced(
                "random weights go to one 'device'; 'device_map' is for checkpoints", "device_map", key=True
            )
        return self

    @property
    def display_name(self) -> str:
        """The label, or what the suite calls the model."""
        if isinstance(self.config, dict):
            return self.label or f"random {self.config['model_type']}"
        random = f"random {self._given.get('config', self.config)}" if self.config is not None else ""
        return self.label or self.name or self._given.get("pretrained", self.pretrained) or random

    def resolved(self) -> dict[str, Any]:
        """Plain data, with paths as they were given."""
        return (
            self.model_dump()
            | {"label": self.display_name, "trust_remote_code": self.trust_remote_code or None}
            | self._given
        )


class DeltaSpec(_Spec):
    """That updates are reduced: what fine-tuning added to the weights of `base`.

    Attributes:
        base: the model before. Its weights alone are read, as the dtype of the fine-tuned model.
    """

    base: ModelSpec

    @field_validator("base", mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"pretrained": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _weights_alone(self) -> DeltaSpec:
        usual = {name: field.default for name, field in ModelSpec.model_fields.items()}
        for key in _OF_RUNNING:
            if getattr(self.base, key) != usual[key]:
                raise misplaced(
                    f"{key!r} does not go with a base, which is read and not run; leave it out", "base", key, key=True
                )
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain data, with paths as they were given."""
        return {"base": {key: value for key, value in self.base.resolved().items() if key not in _OF_RUNNING}}


#: What of a model says how it runs, and so nothing of a base.
_OF_RUNNING = (
    *("tokenizer", "dtype", "device", "device_map", "attn_implementation", "chat_template", "max_length", "add_bos"),
)


class TaskSpec(_Spec):
    """One lm-eval task or group, with its options; None leaves them to the task."""

    task: _Text
    limit: _Count | None = None
    num_fewshot: Annotated[StrictInt, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value


class ReducerSpec(_Spec):
    """One reducer with parameters; `label` tells several of the same apart, and is the name by default."""

    name: _Text
    params: dict[str, Any] = Field(default_factory=dict)
    label: Annotated[_Text, Field(max_length=64)]

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

    def parameter_path(self, parameter: str | None) -> KeyPath:
        """Where a parameter was written, for `Suite.error`; the reducer itself for None."""
        return (*self.path, self.name, parameter) if parameter else self.path

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return {self.name: {**self.params, "label": self.label}}


class RankSpec(_Spec):
    """Ranks of a sweep: exactly one kind, with one value or several."""

    fraction: _Shares | None = None
    rank: Annotated[tuple[_Count, ...], Field(min_length=1), BeforeValidator(_one_or_many)] | None = None
    keep: _Shares | None = None
    energy: _Shares | None = None
    error: (
        Annotated[
            tuple[Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)], ...],
            Field(min_length=1),
            BeforeValidator(_one_or_many),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_kind(self) -> RankSpec:
        given = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            raise misplaced(
                f"a rank is exactly one of {', '.join(type(self).model_fields)}", *given[1:2], key=bool(given)
            )
        values = getattr(self, given[0])
        for index, value in enumerate(values):
            if value in values[:index]:
                raise misplaced(f"{value:g} is listed twice", given[0], index)
        return self

    @property
    def kind(self) -> RankKind:
        """The kind that is given."""
        return next(kind for kind in ("fraction", "rank", "keep", "energy", "error") if getattr(self, kind) is not None)

    @property
    def requests(self) -> tuple[RankRequest, ...]:
        """One request a value, in the order given."""
        return tuple(RankRequest(self.kind, value) for value in getattr(self, self.kind))

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return {self.kind: list(getattr(self, self.kind))}


class SweepSpec(_Spec):
    """A rule that generates cells.

    Attributes:
        mode: `each` slot alone, each `layer` as a whole, or all `together`.
        layers: which decoder blocks.
        weights: roles, groups, LASER names, globs on parameter names.
        rank: which ranks.
        reducers: labels; None for all of the suite's.
    """

    mode: Literal["each", "layer", "together"] = "each"
    layers: Annotated[InstanceOf[Layers], BeforeValidator(Layers.parse)] = Layers("all")
    weights: Annotated[tuple[_Weight, ...], Field(min_length=1), BeforeValidator(_one_or_many)] = ("all",)
    rank: RankSpec
    reducers: Annotated[tuple[_Text, ...], Field(min_length=1), BeforeValidator(_one_or_many)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("reducers", "") is None:
            return {key: entry for key, entry in value.items() if key != "reducers"}
        return value

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "mode": self.mode,
            "layers": self.layers.spelled(),
            "weights": list(self.weights),
            "rank": self.rank.resolved(),
            "reducers": None if self.reducers is None else list(self.reducers),
        }


class TextSpec(_Spec):
    """Where calibration text comes from: exactly one of a file, a data set and a task.

    Attributes:
        file: .txt, or .jsonl with the text under `column`; absolute once located.
        dataset, config, split: as `datasets.load_dataset` takes them; a folder relative to the suite where it exists.
        column: that holds the text, of a .jsonl file or a data set.
        task: an lm-eval task or group, whose training split is taken.
    """

    file: _Text | None = None
    dataset: _Text | None = None
    config: _Text | None = None
    split: _Text | None = None
    column: _Text | None = None
    task: _Text | None = None
    _given: str | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> TextSpec:
        given = [kind for kind in ("file", "dataset", "task") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise misplaced("calibration text is exactly one of file, dataset, task", *given[1:2], key=bool(given))
        for key in ("config", "split", "column"):
            if getattr(self, key) is not None and not (given == ["dataset"] or (given == ["file"] and key == "column")):
                raise misplaced(f"{key!r} does not go with {given[0]!r}", key, key=True)
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain data, with paths as they were given."""
        data = {key: value for key, value in self.model_dump().items() if value is not None}
        if self._given is not None:
            data["file" if self.file is not None else "dataset"] = self._given
        return data


class CalibrationSpec(_Spec):
    """What calibrated methods see of the model's inputs.

    Attributes:
        name: bundled text; instead of `text`.
        text: where the text comes from.
        samples, length: how many windows, of how many tokens; None for 512, or the model's own where that is less.
        seed: places the windows.
        damping: added to the diagonal of second moments, in units of its mean.
    """

    name: _Text | None = None
    text: TextSpec | None = None
    samples: _Count = 128
    length: Annotated[StrictInt, Field(ge=2)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    damping: Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)] = 0.01

    @model_validator(mode="after")
    def _one_source(self) -> CalibrationSpec:
        if (self.name is None) == (self.text is None):
            raise misplaced("a calibration has either 'name' (bundled text) or 'text' (a file, data set or task)")
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(exclude={"text"}) | {"text": self.text and self.text.resolved()}


class Suite(_Spec):
    """What is to be measured. Made by `load_suite`.

    Attributes:
        name: also names the run's directory.
        models: one or several.
        task_paths, plugins: folders of task YAML, plugin files: absolute.
        tasks, reducers, sweep: at least one of each.
        calibration: for reducers that need statistics of the model's inputs; None where none does.
        delta: the base whose updates are reduced; None where weights themselves are.
        seed: of the reducers' random draws.
        seeds: with which cells of reducers that draw at random are repeated; None for `seed` alone.
        batch_size: rows a forward pass; None for the engine's choice.
        frontier_memory: GiB that states kept between cells may take; `auto` for what suits the free memory.
        inference: whether edited weights are multiplied as matrices, or through their factors where they can be.
        measure: what is measured beside the scores.
    """

    name: Annotated[_Text, AfterValidator(_directory_name)]
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    task_paths: tuple[_Path, ...] = ()
    plugins: tuple[_Path, ...] = ()
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    reducers: Annotated[tuple[ReducerSpec, ...], Field(min_length=1)]
    sweep: Annotated[tuple[SweepSpec, ...], Field(min_length=1)]
    calibration: CalibrationSpec | None = None
    delta: DeltaSpec | None = None
    seed: _Seed = 0
    seeds: Annotated[int | tuple[int, ...] | None, PlainValidator(_seeds)] = None
    batch_size: _Count | None = None
    frontier_memory: Annotated[float | Literal["auto"], BeforeValidator(_memory)] = "auto"
    inference: Literal["dense", "factored"] = "dense"
    measure: Annotated[tuple[Literal["inference"], ...], BeforeValidator(_one_or_many), AfterValidator(_each_once)] = ()
    _document: Document = PrivateAttr()

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
    def _updates_as_matrices(self) -> Suite:
        if self.delta is None:
            return self
        for key, asked in (("inference", self.inference == "factored"), ("measure", "inference" in self.measure)):
            if asked:
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

    @property
    def repeats(self) -> tuple[int, ...]:
        """The seeds of what draws at random: the list given, or so many from `seed` on."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return tuple(range(self.seed, self.seed + (self.seeds or 1)))

    @property
    def hash(self) -> str:
        """Short SHA-256 of what the suite asks; names the run's directory.

        How it is executed (`device`, `device_map`, `batch_size`, `frontier_memory`) does not count: a run goes on
        elsewhere, or with smaller batches.
        Nor does what is left out, so that a key that a later version knows leaves the hashes of older suites alone.
        """
        text = json.dumps(_defining(self.resolved()), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def resolved(self) -> dict[str, Any]:
        """The suite as plain JSON data, defaults filled in, paths as given; a valid suite itself."""
        data = self._document.data
        return {
            "name": self.name,
            "models": [model.resolved() for model in self.models],
            "task_paths": list(data.get("task_paths") or ()),
            "plugins": list(data.get("plugins") or ()),
            "tasks": [task.model_dump() for task in self.tasks],
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
        }

    def local_paths(self) -> dict[str, str]:
        """Where the relative paths in `resolved` lead on this machine: dotted place -> absolute path."""
        resolved = self.resolved()
        here = {
            f"{key}.{index}": str(path)
            for key in ("task_paths", "plugins")
            for index, path in enumerate(getattr(self, key))
            if str(path) != resolved[key][index]
        }
        for index, model in enumerate(self.models):
            here |= {
                f"models.{index}.{key}": str(getattr(model, key))
                for key, given in model._given.items()
                if getattr(model, key) != given
            }
        if self.delta is not None:
            base = self.delta.base
            here |= {
                f"delta.base.{key}": str(getattr(base, key))
                for key, given in base._given.items()
                if getattr(base, key) != given
            }
        text = self.calibration.text if self.calibration is not None else None
        if text is not None and text._given is not None:
            key = "file" if text.file is not None else "dataset"
            here[f"calibration.text.{key}"] = str(getattr(text, key))
        return here

    def place(self, path: KeyPath) -> Place:
        """Where the value at `path` was written, as `("sweep", 0, "layers")`, or the nearest thing around it."""
        return self._document.place(path)

    def error(self, path: KeyPath, message: str) -> SuiteError:
        """The error that shows `message` at the line of `path`; to be raised by the caller."""
        return self._document.error(path, message)


def _defining(data: Any) -> Any:
    if isinstance(data, dict):
        execution = ("device", "device_map", "batch_size", "frontier_memory")
        return {key: _defining(value) for key, value in data.items() if value is not None and key not in execution}
    return [_defining(value) for value in data] if isinstance(data, list) else data
