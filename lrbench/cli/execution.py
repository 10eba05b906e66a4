"""Runs a suite in the terminal: executor, progress, interruption, and the table at the end."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lrbench.cli.options import fast_imports
from lrbench.cli.output import say, write
from lrbench.errors import InputError

if TYPE_CHECKING:
    from lrbench.reducers.registry import Registry
    from lrbench.run.executors import Executor
    from lrbench.run.recorder import RunResult
    from lrbench.suite.load import Suite

INTERRUPTED = 130  # the shells' exit code for a process ended by ^C


def executor_of(args: argparse.Namespace) -> Executor:
    """The executor. Raises InputError for a Ray option without `--executor ray`, or an invalid one."""
    options = {
        "address": args.address, "workers": args.ray_workers, "cpus": args.ray_cpus, "gpus": args.ray_gpus,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    for name in options if args.executor != "ray" else ():
        option = "--address" if name == "address" else f"--ray-{name}"
        raise InputError(f"{option} requires --executor ray; add it, or leave {option} out")
    from lrbench.run.executors import make_executor

    return make_executor(args.executor, **options)


def execute(
    suite: Suite, registry: Registry, out: Path, args: argparse.Namespace, *, engine: str, device: str | None = None
) -> RunResult | None:
    """Runs a suite with progress and prints the table; None if it was interrupted.

    Args:
        args: `--force`, `--retry-failed`, `--trust-remote-code`, and `--device`, which overrides `device`.
    """
    with fast_imports():
        from lrbench.analysis.leaderboard import build
        from lrbench.reports.progress import TerminalProgress
        from lrbench.reports.render import renderer, terminal
        from lrbench.run.interruption import stopped_by_signals
        from lrbench.run.recorder import Stop
        from lrbench.run.runner import run_suite

    executor = executor_of(args)
    stop = Stop()
    try:
        with TerminalProgress() as progress, closing(executor), stopped_by_signals(stop, executor, progress.note):
            result = run_suite(
                suite, registry, out, device=args.device or device, engine=engine, executor=executor, force=args.force,
                retry_failed=args.retry_failed, progress=progress, trust_remote_code=args.trust_remote_code, stop=stop,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        so_far: RunResult | None = getattr(interrupt, "result", None)
        done = f"{so_far.summary()}; " if so_far is not None else ""
        say(f"lrbench: interrupted; {done}repeat the command to resume", sys.stderr)
        return None
    board = build([result.directory])
    for name, suffix in (("markdown", "md"), ("csv", "csv"), ("json", "json")):
        write(out / f"leaderboard.{suffix}", renderer(name)(board))
    terminal.show(board)
    say(result.summary())
    return result
