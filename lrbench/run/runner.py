"""Runs a suite: plans it, reduces, scores, and appends a row for each cell that has none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lrbench.errors import InputError
from lrbench.evaluation import ENGINES
from lrbench.reducers.registry import Registry
from lrbench.reduction.delta import check_base
from lrbench.reduction.plan import methods, swept_slots
from lrbench.results.directory import RunDirectory
from lrbench.run.executors import Executor, LocalExecutor
from lrbench.run.inputs import structure_of
from lrbench.run.manifest_writer import ManifestWriter
from lrbench.run.model_run import ModelSetup
from lrbench.run.offline_check import refuse_missing
from lrbench.run.recorder import Interrupted, Progress, Recorder, RunResult, Stop
from lrbench.run.selection import run_model
from lrbench.suite.load import Suite
from lrbench.system.files import Timeout
from lrbench.system.text import one_line


def run_suite(
    suite: Suite,
    registry: Registry,
    out: Path,
    *,
    progress: Progress,
    device: str | None = None,
    engine: str = ENGINES[0],
    executor: Executor | None = None,
    force: bool = False,
    retry_failed: bool = False,
    trust_remote_code: bool = False,
    stop: Stop | None = None,
) -> RunResult:
    """Runs every cell of a suite that has no row.

    Args:
        suite: the suite.
        registry: the reducers.
        out: the run's directory; created if missing.
        progress: called with each step.
        device: instead of the suite's.
        engine: one of `ENGINES`, which differ in how they compute the same scores.
        executor: computes the cells; None for this process. The caller closes it.
        force: score all cells again.
        retry_failed: score failed cells again.
        trust_remote_code: lets models whose suite asks for it run their repositories' own code.
        stop: for requesting the end of the run after the cell under way.

    Raises:
        MissingError: the folder of `--offline` lacks something; nothing was computed.
        InputError: something is wrong with the suite, its models, tasks or plugins; the directory holds another
            suite's run; or another process is writing to it.
        StorageError: the directory cannot be written to any more.
        Interrupted: (a KeyboardInterrupt) after the rows of all finished cells are on disk; has the counts.
    """
    started = time.perf_counter()
    refuse_missing([suite], trust_remote_code=trust_remote_code)
    built = methods(suite, registry)
    names = [method.reducer.name for method in built]
    plugin_files = [Path(registry.source(name)) for name in names if registry.is_file(name)]
    executor = executor or LocalExecutor()
    required = device if executor.here else "cpu"  # workers have their own devices
    for spec in suite.models:  # so that a mistake in the last one is reported before the first is scored
        inventory = structure_of(spec, required, progress.note, trust_remote_code=trust_remote_code)
        slots = swept_slots(suite.sweep, inventory)
        check_base(suite.delta, inventory, slots, progress.note, trust_remote_code=trust_remote_code)
    directory = RunDirectory(out)
    result = RunResult(directory)
    with _exclusive(directory), _counted(result, started):
        _refuse_other_suite(directory, suite.hash)
        if force:
            directory.drop_partial()
        manifest = ManifestWriter(directory, suite, built, registry)
        rows = {} if force else directory.rows()
        done = {key: row for key, row in rows.items() if row.status != "failed" or not retry_failed}
        if rows and manifest.changed:
            labels = ", ".join(manifest.changed)
            progress.note(f"{labels}: the code has changed since the rows were made; the cells are scored again")
        recorder = Recorder(directory, manifest, result, progress, done, retry_failed, stop or Stop())
        for spec in suite.models:
            recorder.stop.check()  # it may have been requested while the last model's weights were verified
            model_run = executor.open(
                ModelSetup(suite, spec, built, engine, device, trust_remote_code, progress.note, plugin_files)
            )
            with recorder.verified(model_run):
                run_model(recorder, model_run)
            del model_run  # frees the model before the next one is loaded
        directory.drop_partial()  # every cell of the plan has its row
    return result


@contextmanager
def _counted(result: RunResult, started: float) -> Iterator[None]:
    """Times a run, and adds the counts to its interruption."""
    try:
        yield
    except KeyboardInterrupt:
        result.interrupted = True
        raise Interrupted(result) from None
    finally:
        result.seconds = time.perf_counter() - started


def _refuse_other_suite(directory: RunDirectory, suite_hash: str) -> None:
    if not directory.manifest_file.exists():
        # a screening writes to `partial` before there is a manifest
        own = [".lock", "environments.jsonl", "partial"]
        if (directory.path / "environments.jsonl").exists():  # the manifest was deleted, and there is no row yet
            own += ["samples"]
        if not directory.rows_file.exists() and any(path.name not in own for path in directory.path.iterdir()):
            raise InputError(f"{directory.path}: not empty, and not a run; choose another --out")
        return
    other = directory.manifest()
    if other.get("suite_hash") != suite_hash:
        raise InputError(
            f"{directory.path}: holds another suite's run, or one with other settings "
            f"({other.get('suite_hash')}); choose another --out"
        )


@contextmanager
def _exclusive(directory: RunDirectory) -> Iterator[None]:
    """Lets one process at a time write to a run."""
    with ExitStack() as stack:
        try:
            stack.enter_context(directory.locked())
        except Timeout:
            raise InputError(f"{directory.path}: another lrbench is running this suite here; wait for it") from None
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InputError(f"{directory.path}: cannot be a run directory: {reason}; choose another --out") from None
        yield
