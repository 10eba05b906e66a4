"""`lrbench.run`: a suite run from Python, as `lrbench run` runs it."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lrbench.api.results import Results, read_results
from lrbench.errors import InputError
from lrbench.evaluation import ENGINES
from lrbench.reducers.base import Reducer
from lrbench.reports.progress import TerminalProgress
from lrbench.run.executors import EXECUTORS, Executor, LocalExecutor
from lrbench.run.inputs import default_directory, load_registry, read_suite
from lrbench.run.interruption import stopped_by_signals
from lrbench.run.recorder import Stop
from lrbench.run.runner import run_suite
from lrbench.suite.load import Suite, narrowed


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
) -> Results:
    """Runs a suite: every cell that has no row yet is scored.

    Args:
        suite: a file, the name of a bundled suite, a mapping with a suite's keys, or a `Suite`.
        reducers: instead of the suite's; names, subclasses of `lrbench.Reducer` or instances of them, or
            `{NAME_OR_CLASS: {PARAMETER: VALUE, "label": ...}}`.
        overrides: changes of other keys, by dotted paths: `{"sweep.0.rank.keep": [0.5]}`.
        limit: at most that many documents of each task.
        dtype: of the weights, instead of the suite's.
        plugins: files with more reducers.
        out: the run's directory; by default `results/local/SUITE-HASH` in the working directory.
        device: `cpu`, `cuda`, `cuda:1`, ...; by default the suite's, else the GPU where there is one.
        engine: `sweep`, `frozen` or `harness`: how cells are scored, not what they score.
        executor: `local`, `ray`, or an executor, such as `RayExecutor(RayOptions(address="auto"))` of
            `lrbench.run.executors.ray`, which its maker closes.
        force: score again what has a row.
        retry_failed: score again what has a failed row.
        trust_remote_code: lets models whose suite asks for it run their repositories' own code.

    Returns:
        The run's rows, as `lrbench.read_results` reads them. A cell that failed is a row with status `failed`.

    Raises:
        InputError: anything wrong with the suite, its models, tasks or plugins, or an argument; nothing was computed.
        StorageError: the directory cannot be written to any more.
        KeyboardInterrupt: the run was interrupted. Once finishes the cell at work, twice stops at once; all finished
            rows are kept, and the same call goes on where it stopped.
    """
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r}: it is one of {', '.join(ENGINES)}")
    asked = suite_of(suite, reducers, overrides, limit, dtype)
    stop = Stop()
    with ExitStack() as opened:
        if isinstance(executor, str):
            executor = opened.enter_context(closing(_executor(executor)))
        if asked.classes and not executor.here:
            raise InputError(
                f"{asked.classes[0].name}: a class of this process cannot be sent to others; write it in a plugin file"
            )
        progress = opened.enter_context(TerminalProgress())
        registry = load_registry([*asked.plugins, *paths_of(plugins)], progress.note, asked.classes)
        opened.enter_context(stopped_by_signals(stop, executor, progress.note, [signal.SIGINT]))
        result = run_suite(
            asked, registry, Path(out) if out is not None else default_directory(asked),
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
    """The suite that the arguments of `run` describe. Raises InputError: it is wrong, or is none."""
    if isinstance(reducers, str | Mapping | Reducer | type):
        reducers = [reducers]
    changes = {**(overrides or {}), **({"reducers": list(reducers)} if reducers is not None else {})}
    if isinstance(suite, Suite):
        if changes:
            raise InputError("a Suite is not changed any more; give its file, or a mapping, with these overrides")
        return narrowed(suite, limit, dtype)
    if not isinstance(suite, str | Path | Mapping):
        raise InputError(f"suite: a file, a bundled suite's name, a mapping or a Suite, not {type(suite).__name__}")
    return read_suite(suite, changes, limit=limit, dtype=dtype)


def paths_of(plugins: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """Plugin files as a list, where one may stand alone."""
    return [plugins] if isinstance(plugins, str | Path) else list(plugins)


def _executor(name: str) -> Executor:
    if name not in EXECUTORS:
        raise InputError(f"executor={name!r}: it is one of {', '.join(EXECUTORS)}, or an executor")
    if name == "ray":
        from lrbench.run.executors.ray import RayExecutor

        return RayExecutor()
    return LocalExecutor()
