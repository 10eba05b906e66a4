"""`lrbench.run`: runs a suite from Python, like `lrbench run`."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lrbench.api.arguments import path_of, paths_of
from lrbench.api.results import Results, read_results
from lrbench.errors import InputError
from lrbench.evaluation import ENGINES
from lrbench.reducers.base import Reducer
from lrbench.reports.progress import TerminalProgress
from lrbench.run.executors import EXECUTORS, Executor, make_executor
from lrbench.run.inputs import default_directory, load_registry, read_suite
from lrbench.run.interruption import stopped_by_signals
from lrbench.run.recorder import Stop
from lrbench.run.runner import run_suite
from lrbench.suite.load import Suite, narrowed
from lrbench.system.offline import without_network


def run(
    suite: str | Path | Mapping[str, Any] | Suite,
    *,
    reducers: Sequence[Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    plugins: Iterable[str | Path] = (),
    out: str | Path | None = None,
    device: str | None = None,
    engine: str = ENGINES[0],
    executor: str | Executor = EXECUTORS[0],
    force: bool = False,
    retry_failed: bool = False,
    trust_remote_code: bool = False,
    offline: str | Path | None = None,
) -> Results:
    """Runs a suite: scores every cell that has no row yet.

    Args:
        suite: a file, a bundled suite's name, a mapping with a suite's keys, or a `Suite`.
        reducers: replace the suite's; names, subclasses or instances of `lrbench.Reducer`, or
            `{NAME_OR_CLASS: {PARAMETER: VALUE, "label": ...}}`.
        overrides: dotted path -> value of other keys: `{"sweep.0.rank.keep": [0.5]}`.
        limit: the greatest number of documents per task.
        dtype: of the weights, instead of the suite's.
        plugins: files with more reducers.
        out: the run's directory; by default `results/local/SUITE-HASH` in the working directory.
        device: `cpu`, `cuda`, `cuda:1`, ...; by default the suite's, else the GPU if available.
        engine: `sweep`, `frozen` or `harness`; scores do not depend on it.
        executor: `local`, `ray`, or an executor, such as `RayExecutor(RayOptions(address="auto"))` of
            `lrbench.run.executors.ray`, which the caller closes.
        force: scores all cells again.
        retry_failed: scores failed cells again.
        trust_remote_code: lets models whose suite asks for it run their repositories' own code.
        offline: a folder that `lrbench fetch` has filled, used instead of the hub; nothing uses the network. By
            default `$LRBENCH_OFFLINE`.

    Returns:
        The run's rows, as from `lrbench.read_results`. A failed cell has a row with status `failed`.

    Raises:
        InputError: the suite, one of its models, tasks or plugins, or an argument is invalid; nothing was computed.
        StorageError: the directory can no longer be written.
        KeyboardInterrupt: the first interrupt finishes the current cell, a second one stops at once. Finished rows are
            kept, and the same call resumes the run.
    """
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")
    resolved = suite_of(suite, reducers, overrides, limit, dtype)
    directory = path_of("out", out) if out is not None else default_directory(resolved)
    if not isinstance(executor, str) and (isinstance(executor, type) or not hasattr(executor, "open")):
        raise InputError(f"executor: must be a name or an executor, not {type(executor).__name__}")
    stop = Stop()
    with ExitStack() as opened:
        opened.enter_context(without_network(path_of("offline", offline) if offline is not None else None))
        if isinstance(executor, str):
            executor = opened.enter_context(closing(make_executor(executor)))
        if resolved.classes and not executor.here:
            name = resolved.classes[0].name
            raise InputError(f"{name}: a class of this process cannot be sent to others; write it in a plugin file")
        progress = opened.enter_context(TerminalProgress())
        registry = load_registry([*resolved.plugins, *paths_of("plugins", plugins)], progress.note, resolved.classes)
        opened.enter_context(stopped_by_signals(stop, executor, progress.note, [signal.SIGINT]))
        result = run_suite(
            resolved, registry, directory,
            progress=progress, device=device, engine=engine, executor=executor, force=force,
            retry_failed=retry_failed, trust_remote_code=trust_remote_code, stop=stop,
        )  # fmt: skip
        progress.note(result.summary())
    return read_results(result.directory.path)


def suite_of(
    suite: str | Path | Mapping[str, Any] | Suite,
    reducers: Sequence[Any] | None,
    overrides: Mapping[str, Any] | None,
    limit: int | None,
    dtype: str | None,
) -> Suite:
    """The suite described by the arguments of `run`. Raises InputError if it is invalid."""
    if isinstance(reducers, str | Mapping | Reducer | type):
        reducers = [reducers]
    if reducers is not None and not isinstance(reducers, Iterable):
        raise InputError(f"reducers: must be a list of reducers, not {type(reducers).__name__}")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise InputError(
            "overrides: must be a mapping such as {'sweep.0.rank.keep': [0.5]}, not " + type(overrides).__name__
        )
    changes = {**(overrides or {}), **({"reducers": list(reducers)} if reducers is not None else {})}
    if isinstance(suite, Suite):
        if changes:
            raise InputError("a Suite cannot be changed; give its file or a mapping with these overrides")
        return narrowed(suite, limit, dtype)
    if not isinstance(suite, str | Path | Mapping):
        raise InputError(
            f"suite: must be a file, a bundled suite's name, a mapping or a Suite, not {type(suite).__name__}"
        )
    return read_suite(suite, changes, limit=limit, dtype=dtype)
