"""What a run starts from: its suite, its reducers, its directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench.reducers.base import Reducer
from lrbench.reducers.registry import Registry
from lrbench.suite.load import Suite, load_suite
from lrbench.tasks.names import unknown


def default_directory(suite: Suite) -> Path:
    """Where a suite's run is kept, unless told otherwise; relative to the working directory."""
    return Path("results") / "local" / f"{suite.name}-{suite.hash}"


def read_suite(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    limit: int | None = None,
    dtype: str | None = None,
) -> Suite:
    """`load_suite`, and refuses tasks that no file defines, before lm-eval is imported.

    Raises:
        InputError: as `load_suite`, or a task is unknown; at the suite's line.
    """
    suite = load_suite(source, overrides, limit=limit, dtype=dtype)
    places = {spec.task: spec.path for spec in reversed(suite.tasks)}
    if all(folder.is_dir() for folder in suite.task_paths):
        for task, hint in unknown([spec.task for spec in suite.tasks], suite.task_paths):
            raise suite.error_at(f"unknown task {task!r}{hint}", *places[task])
    return suite


def load_registry(
    files: Iterable[str | Path], notify: Callable[[str], None], classes: Iterable[type[Reducer]] = ()
) -> Registry:
    """The installed reducers, those in plugin files, and classes that no plugin offers.

    Args:
        notify: told which of the named files cannot be loaded, and why.

    Raises:
        PluginError: a file is not there, or a file or class takes a name already taken.
    """
    named = [*map(Path, files)]
    registry = Registry.load(named, classes)
    for broken in registry.broken:
        if Path(broken.source) in named or Path(broken.source).parent in named:
            notify(f"plugin {broken.source} cannot be loaded: {broken.error}")
    return registry
