"""Loads tasks by name, from the bundled folders, the suite's folders, or lm-eval."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from lrbench.errors import LrbenchError, TaskError
from lrbench.tasks.containment import contained
from lrbench.tasks.data import with_data
from lrbench.tasks.folders import BUNDLED, PROTOCOLS, check_folders, with_absolute_data
from lrbench.tasks.hub_datasets import HubDataset, merged
from lrbench.tasks.lm_eval_index import IndexEntry, lm_eval_folder, lm_eval_index, lm_eval_tasks
from lrbench.tasks.names import is_pattern, suggestion
from lrbench.tasks.prompt_fields import check_fields
from lrbench.tasks.saved_datasets import before_reading, reason, saved_datasets
from lrbench.tasks.task_set import RequestedTask, TaskSet
from lrbench.tasks.token_windows import TokenPerplexity


def load_tasks(specs: Iterable[RequestedTask], folders: Sequence[Path] = ()) -> TaskSet:
    """Loads tasks, with their documents.

    lm-eval's own tasks count only if a name is missing in the folders.

    Args:
        specs: objects with `task`, `limit` and `num_fewshot`, and optionally `data`, where the documents are.
        folders: folders of task YAML beside the bundled ones. They are code, and trusted.

    Raises:
        TaskError: a task file is invalid, a name is unknown, a task is named twice, or its documents cannot be read.
    """
    places = [BUNDLED, PROTOCOLS, *(Path(folder).expanduser().resolve() for folder in folders)]
    own = check_folders(places)
    specs = list(specs)
    if not specs:
        raise TaskError("no tasks; name at least one under 'tasks'")
    loaded = TaskSet({}, {}, {}, {})
    with contained():
        manager = _manager(specs, places)
        for spec, name in _requested(specs, manager):
            with _about(spec):
                _add(loaded, _load(name, manager, own), spec)
    return loaded


def find_hub_datasets(specs: Iterable[RequestedTask], folders: Sequence[Path] = ()) -> list[HubDataset]:
    """The data sets on the hub that tasks read, without reading them.

    Of a task whose own code loads its documents, only the first data set; a task that cannot be loaded is left out.

    Raises:
        TaskError: a task file is invalid, or a name is unknown.
    """
    places = [BUNDLED, PROTOCOLS, *(Path(folder).expanduser().resolve() for folder in folders)]
    own = check_folders(places)
    specs = list(specs)
    datasets: list[HubDataset] = []
    make = ConfigurableTask.__init__

    @functools.wraps(make)
    def make_without_documents(task: ConfigurableTask, *args: Any, **options: Any) -> None:
        try:
            make(task, *args, **options)
        except _Announced as announced:
            datasets.append(announced.dataset)

    with contained(), before_reading(_stop), mock.patch.object(ConfigurableTask, "__init__", make_without_documents):
        manager = _manager(specs, places)
        for _, name in _requested(specs, manager):
            _use_absolute_data(name, manager.task_index, own)
            with saved_datasets(), contextlib.suppress(Exception):  # `load_tasks` reports it
                manager.load([name])
    return merged(datasets)


class _Announced(BaseException):
    """Ends the loading of a task at its data set. A BaseException, so that no task's code catches it."""

    def __init__(self, dataset: HubDataset) -> None:
        self.dataset = dataset


def _stop(dataset: HubDataset) -> None:
    raise _Announced(dataset)


def _requested(specs: Iterable[RequestedTask], manager: TaskManager) -> Iterator[tuple[RequestedTask, str]]:
    """Each spec with each name that it matches, whose documents are those of the spec's `data`."""
    for spec in specs:
        for name in _expand(spec.task, manager.task_index):
            if (file := getattr(spec, "data", None)) is not None:
                with _about(spec):
                    _use_data(spec.task, Path(file), manager.task_index)
            yield spec, name


def _manager(specs: list[RequestedTask], places: list[Path]) -> TaskManager:
    """A task manager that has indexed the folders, and lm-eval's own tasks if the folders lack a name."""
    manager = TaskManager(include_path=list(places), include_defaults=False)
    index = manager.task_index
    if missing := {name for spec in specs for name in _missing(spec.task, index)}:
        ours = list(index)
        folder = lm_eval_folder()
        for name, entry in (lm_eval_tasks(frozenset(missing)) or lm_eval_index()).items():
            index.setdefault(name, _as_lm_evals(name, entry, folder))
        missing = {name for spec in specs for name in _missing(spec.task, index)}
        _refuse(specs, manager, {name: suggestion(name, ours, index) for name in missing})
    return manager


def _as_lm_evals(name: str, entry: IndexEntry, folder: Path) -> Entry:
    path = folder / entry.file if entry.file is not None else None
    group = {"group": name, "task": entry.members} if entry.kind == "GROUP" else None
    return Entry(name, Kind[entry.kind], path, cfg=group, tags=set(entry.tags))


def _refuse(specs: list[RequestedTask], manager: TaskManager, unknown: dict[str, str]) -> None:
    """Raises TaskError for the first spec that contains an unknown name; `unknown` maps names to suggestions."""
    for spec in specs if unknown else ():
        for name in _missing(spec.task, manager.task_index):
            if name in unknown:
                with _about(spec):
                    raise TaskError(f"unknown task {name!r}{_named_by(name, spec)}{unknown[name]}")


@contextmanager
def _about(spec: RequestedTask) -> Iterator[None]:
    """Adds `spec` to a TaskError raised inside, so that the suite's line can be found."""
    try:
        yield
    except TaskError as error:
        error.spec = spec
        raise


def _named_by(name: str, spec: RequestedTask) -> str:
    return "" if name == spec.task else f", named by {spec.task!r}"


def _expand(name: str, index: dict[str, Entry]) -> list[str]:
    """The names that a spec matches. A pattern matches single tasks only; with groups, tasks would be named twice."""
    if not is_pattern(name):
        return [name]
    return sorted(n for n in fnmatch.filter(index, name) if index[n].kind in (Kind.TASK, Kind.PY_TASK))


def _missing(name: str, index: dict[str, Entry]) -> list[str]:
    """The names among `name` and its parts that are not in the index."""
    if is_pattern(name):
        return [] if _expand(name, index) else [name]
    return [part for part in _parts(name, index) if part not in index]


def _parts(name: str, index: dict[str, Entry], above: tuple[str, ...] = ()) -> Iterator[str]:
    """A name, followed by the names of all members if it is a group or tag."""
    if name in above:
        raise TaskError(f"group {name!r} contains itself, through {' -> '.join((*above, name))}")
    yield name
    entry = index.get(name)
    if entry is not None and entry.kind is Kind.TAG:
        yield from sorted(entry.tags)
    elif entry is not None and entry.kind is Kind.GROUP:
        yield from _members((entry.cfg or {}).get("task"), index, (*above, name))


def _members(members: Any, index: dict[str, Entry], above: tuple[str, ...]) -> Iterator[str]:
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            yield from _parts(member, index, above)
        elif "group" in member and member["group"] not in index:  # defined inline
            yield from _members(member.get("task"), index, above)
        elif "group" in member:
            yield from _parts(member["group"], index, above)
        elif "dataset_path" not in member and "custom_dataset" not in member:
            yield from _parts(member["task"], index, above)


def _use_absolute_data(name: str, index: dict[str, Entry], own: dict[str, Path]) -> None:
    """Makes data files absolute in the index entries of our folders."""
    for part in _parts(name, index):
        entry = index.get(part)
        if entry is None or part not in own or entry.yaml_path is None or entry.cfg is None:
            continue
        if with_absolute_data(entry.cfg, own[part]) != entry.cfg:
            config = with_absolute_data(load_yaml(entry.yaml_path), own[part])
            index[part] = Entry(entry.name, entry.kind, yaml_path=None, cfg=config, tags=entry.tags)


def _use_data(name: str, file: Path, index: dict[str, Entry]) -> None:
    """Replaces a task's entry by one whose documents come from `file`, which may be a folder."""
    if is_pattern(name):
        raise TaskError(f"tasks {name!r}: 'data' is for a single task; name it")
    entry = index[name]
    config = load_yaml(entry.yaml_path) if entry.yaml_path is not None else entry.cfg
    if entry.kind is Kind.TASK or (config is not None and config.get("class") is TokenPerplexity):
        index[name] = Entry(entry.name, entry.kind, yaml_path=None, cfg=with_data(config or {}, file), tags=entry.tags)
        return
    kind = "has several tasks" if entry.kind in (Kind.GROUP, Kind.TAG) else "takes its documents from its own code"
    raise TaskError(f"task {name!r}: 'data' is for a single task with documents in files, but it {kind}; leave it out")


def _load(name: str, manager: TaskManager, own: dict[str, Path]) -> dict[str, Any]:
    begun: list[ConfigurableTask] = []
    try:
        _use_absolute_data(name, manager.task_index, own)
        with saved_datasets() as begun:
            parts = dict(manager.load([name]))
        for task in parts["tasks"].values():
            check_fields(task)
            _check_metrics(task)
        return parts
    except LrbenchError:
        raise
    except Exception as error:  # lm-eval, datasets and the task's code may raise anything
        if begun:
            check_fields(begun[-1], error)
        place = f" ({own[name]})" if name in own else ""
        if isinstance(error, IndexError):
            raise TaskError(f"task {name!r}{place}: it has no documents") from error
        raise TaskError(f"task {name!r}{place} cannot be loaded: {reason(error)}") from error


def _check_metrics(task: Task) -> None:
    """Refuses a metric without code, which would fail when the first answers are scored."""
    if isinstance(task, ConfigurableTask) and task.OUTPUT_TYPE == "generate_until" and not task.config.process_results:
        for metric, function in task._metric_fn_list.items():
            if function is None:
                raise TaskError(
                    f"task {task.config.task!r}: metric {metric!r} is none of lm-eval's, and its code cannot be loaded "
                    "from the hub's `evaluate-metric`"
                )


def _add(loaded: TaskSet, parts: dict[str, Any], spec: RequestedTask) -> None:
    if spec.limit is not None and spec.limit < 1:
        raise TaskError(f"task {spec.task!r}: limit {spec.limit}; it must be 1 or more (leave it out for all)")
    for name, task in parts["tasks"].items():
        if isinstance(task, TokenPerplexity) and spec.num_fewshot:
            raise TaskError(f"task {name!r} predicts every token of a text, without examples; leave num_fewshot out")
        if getattr(task, "UNSAFE_CODE", False):
            raise TaskError(f"task {name!r} runs code that the model writes; lrbench does not: leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise TaskError(f"task {name!r} has images or sound; lrbench scores language models: leave it out")
        if name in loaded.tasks:
            first = next(spec_name for spec_name, names in loaded.named.items() if name in names)
            raise TaskError(f"task {name!r} is named twice, by {first!r} and by {spec.task!r}; name it once")
        if spec.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        loaded.tasks[name] = task
        loaded.limits[name] = spec.limit
        loaded.named.setdefault(spec.task, []).append(name)
    loaded.groups.update(parts["groups"])
