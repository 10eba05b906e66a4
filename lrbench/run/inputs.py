"""The inputs of a run: its suite, its reducers and its directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench.reducers.base import Reducer
from lrbench.reducers.registry import Registry
from lrbench.suite.load import Suite, load_suite
from lrbench.tasks.names import unknown


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
