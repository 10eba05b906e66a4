"""The inputs of a run: its suite, tasks, models' structures, reducers and directory.

Imports lm-eval only where tasks are read, and transformers only where a model's structure is not cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.errors import ModelError, TaskError
from lrbench.reducers.base import Reducer
from lrbench.reducers.registry import Registry
from lrbench.suite.load import ModelSpec, Suite, load_suite
from lrbench.system.text import did_you_mean, silent
from lrbench.tasks.names import unknown

if TYPE_CHECKING:
    from lrbench.models.slots import Inventory
    from lrbench.tasks.task_set import TaskSet


def default_directory(suite: Suite) -> Path:
    """The default directory of a suite's run, relative to the working directory."""
    return Path("results") / "local" / f"{suite.name}-{suite.hash}"


def read_suite(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    limit: int | None = None,
    dtype: str | None = None,
) -> Suite:
    """As `load_suite`, and refuses unknown tasks without importing lm-eval.

    Raises:
        InputError: as `load_suite`; or no file defines a task, at the suite's line.
    """
    suite = load_suite(source, overrides, limit=limit, dtype=dtype)
    places = {spec.task: spec.path for spec in reversed(suite.tasks)}
    if all(folder.is_dir() for folder in suite.task_paths):
        for task, hint in unknown([spec.task for spec in suite.tasks], suite.task_paths):
            raise suite.error_at(f"unknown task {task!r}{hint}", *places[task])
    return suite


def tasks_of(suite: Suite) -> TaskSet:
    """The suite's tasks.

    Raises:
        SuiteError: a task cannot be loaded, or a derived column names an unknown task; at the suite's line.
    """
    from lrbench.tasks.load import load_tasks
    from lrbench.tasks.saved_datasets import datasets_from

    with at_line_of_task(suite), datasets_from(suite.datasets):
        tasks = load_tasks(suite.tasks, suite.task_paths)
    known = [*tasks.named, *tasks.groups, *tasks.tasks]
    for column in suite.derived:
        for index, term in enumerate(column.terms):
            if term.name not in known:
                hint = did_you_mean(term.name, known) or f"; this suite has {', '.join(dict.fromkeys(known))}"
                message = f"column {column.name!r}: {term.name!r} is no task of the suite{hint}"
                raise suite.error_at(message, "derived", column.name, column.kind, index)
        known.append(column.name)
    return tasks


@contextmanager
def at_line_of_task(suite: Suite) -> Iterator[None]:
    """Makes a TaskError a SuiteError at the suite's line of the task."""
    try:
        yield
    except TaskError as error:
        raise suite.error_at(str(error), *getattr(error.spec, "path", ("tasks",))) from None


def structure_of(
    spec: ModelSpec,
    device: str | None = None,
    notify: Callable[[str], None] = silent,
    *,
    trust_remote_code: bool = False,
) -> Inventory:
    """A model's slots, read without its weights. Checks that the device exists.

    `notify` is called with one line before a slow step.

    Raises:
        ModelError: `device` does not exist.
        SuiteError: the model cannot be loaded, its device does not exist, or it lacks the chat template that the suite
            asks for; at the suite's line.
    """
    from lrbench.models.structure_cache import cached_structure
    from lrbench.system.device import choose_device

    if device is not None:
        choose_device(device)
    try:
        if device is None:
            choose_device(spec.device)
        inventory = cached_structure(spec, notify, trust_remote_code=trust_remote_code)
        has_template = True
        if spec.chat_template:
            from lrbench.models.load import has_chat_template

            has_template = has_chat_template(spec, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise spec.error_at(str(error)) from None
    if not has_template:
        raise spec.error_at("the tokenizer has no chat template; leave it out, or take another model", "chat_template")
    return inventory


def load_registry(
    files: Iterable[str | Path], notify: Callable[[str], None], classes: Iterable[type[Reducer]] = ()
) -> Registry:
    """The installed reducers, those in plugin files, and reducer classes.

    Args:
        notify: called with one line for each of the files that cannot be loaded.

    Raises:
        PluginError: a file is missing, or a file or class takes a name already taken.
    """
    named = [*map(Path, files)]
    registry = Registry.load(named, classes)
    for broken in registry.broken:
        if Path(broken.source) in named or Path(broken.source).parent in named:
            notify(f"plugin {broken.source} cannot be loaded: {broken.error}")
    return registry
