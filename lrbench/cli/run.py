"""`lrbench run SUITE`: score every cell that is not scored yet, then show the leaderboard."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.cli.output import say
from lrbench.errors import InputError
from lrbench.evaluation import ENGINES
from lrbench.run.executors import EXECUTORS

if TYPE_CHECKING:
    from lrbench.reducers.registry import Registry
    from lrbench.run.executors import Executor
    from lrbench.run.recorder import RunResult, Stop
    from lrbench.suite.load import Suite

INTERRUPTED = 130  # as shells count a process that ^C ended


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """The options that change a suite, for every verb that takes one."""
    parser.add_argument("--limit", type=int, metavar="N", help="at most N documents of each task")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="instead of the suite's")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a plugin file (repeatable)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change the suite, as in --set sweep.0.rank.keep=[0.5] (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="let models whose suite says trust_remote_code: true run the code in their repositories",
    )  # fmt: skip


def default_directory(suite: Suite) -> Path:
    """Where a suite's run is kept, unless told otherwise."""
    return Path("results") / "local" / f"{suite.name}-{suite.hash}"


def load_registry(*files: Iterable[str | Path]) -> Registry:
    """The reducers there are, with those in `files`. A named file that cannot be loaded is said at once."""
    from lrbench.reducers.registry import Registry

    named = [Path(file) for group in files for file in group]
    registry = Registry.load(named)
    for broken in registry.broken:
        if Path(broken.source) in named or Path(broken.source).parent in named:
            say(f"lrbench: plugin {broken.source} cannot be loaded: {broken.error}", sys.stderr)
    return registry


def read_suite(name: str, args: argparse.Namespace) -> Suite:
    """The suite called `name`, as the command line changes it.

    Raises:
        InputError: there is no such suite, or it is wrong; a task that no file defines is refused here, before lm-eval
            is imported.
    """
    from lrbench.suite.load import load_suite
    from lrbench.tasks.names import unknown

    suite = load_suite(name, overrides=args.overrides, limit=args.limit, dtype=args.dtype)
    named = {spec.task: spec.path for spec in reversed(suite.tasks)}
    if all(folder.is_dir() for folder in suite.task_paths):
        for task, hint in unknown([spec.task for spec in suite.tasks], suite.task_paths):
            raise suite.error(named[task], f"unknown task {task!r}{hint}")
    return suite


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "run", help="run a suite; what is scored already is not scored again",
        description="Runs a suite: a file, or the name of a bundled one. Finished cells are never scored twice.",
    )  # fmt: skip
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("suite", metavar="SUITE", nargs="?", help="a suite file, or the name of a bundled suite")
    asked.add_argument(
        "--from-manifest", type=Path, metavar="RUN",
        help="instead of SUITE: repeat a run from its directory, in another one, and print every difference",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default results/local/SUITE-HASH)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the suite's, else the GPU)")
    add_suite_options(parser)
    parser.add_argument(
        "--engine", choices=ENGINES,
        help="sweep (the default): each cell from its first edited block on; frozen: lm-eval's forward passes on "
             "requests built once; harness: lm-eval's own evaluator per cell",
    )  # fmt: skip
    parser.add_argument(
        "--executor", choices=EXECUTORS, default=EXECUTORS[0],
        help="local: in this process; ray: on a Ray cluster (pip install 'lrbench[ray]')",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="A",
        help="with ray: HOST:PORT of the cluster, or auto (default: RAY_ADDRESS, else a cluster on this machine alone)",
    )  # fmt: skip
    parser.add_argument("--ray-workers", type=int, metavar="N", help="how many (default: as many as there is room for)")
    parser.add_argument("--ray-cpus", type=int, metavar="N", help="CPUs, and threads, of each worker (default 1)")
    parser.add_argument(
        "--ray-gpus", type=float, metavar="X",
        help="GPUs of each worker, or a fraction of one (default 1, where the cluster has any)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="score every cell again")
    parser.add_argument("--retry-failed", action="store_true", help="try failed cells again")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop, as `lrbench check`")
    parser.set_defaults(run=run)


@contextmanager
def _signals(stop: Stop, executor: Executor, note: Callable[[str], None]) -> Iterator[None]:
    """^C once asks a run to stop after what is at work, twice stops it at once.

    What ends a job on a cluster (SIGTERM) stops it at once, too: there the time left is short, and no one knows how
    short. It is treated as ^C all the same, so that the terminal is left in order and the way on is said. Where others
    compute, it is as ^C in that, too: many cells are under way, and the scheduler can be told to send it in time.
    """
    from lrbench.run.recorder import Interrupted

    def interrupted(number: int, _frame: Any) -> None:
        at_once = number == signal.SIGTERM and executor.here
        if at_once or stop.asked:
            raise KeyboardInterrupt
        if not stop.at_work:  # nothing to finish, though the weights are still held to their hash
            stop.asked = True
            raise Interrupted
        stop.asked = True
        executor.stop()
        with suppress(RuntimeError):  # the signal may have come in the middle of printing
            note("finishing what is at work; ^C again stops now")

    kept = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def executor_of(args: argparse.Namespace) -> Executor:
    """Where cells are to be computed. Raises InputError: an option of Ray's without Ray, or a wrong one."""
    given = {
        "address": args.address, "workers": args.ray_workers, "cpus": args.ray_cpus, "gpus": args.ray_gpus,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if args.executor == "ray":
        from lrbench.run.executors.ray import RayExecutor, RayOptions

        return RayExecutor(RayOptions(**given))
    for name in given:
        option = "--address" if name == "address" else f"--ray-{name}"
        raise InputError(f"{option} goes with --executor ray; add that, or leave it out")
    from lrbench.run.executors import LocalExecutor

    return LocalExecutor()


def run(args: argparse.Namespace) -> int:
    """Runs the suite and prints where the results are, and the table."""
    if args.from_manifest is not None:
        from lrbench.cli import repeat

        return repeat.run(args)
    if args.dry_run:
        from lrbench.cli import check

        executor_of(args).close()  # wrong options are wrong all the same
        return check.show(args.suite, args)
    suite = read_suite(args.suite, args)

    # a suite that is wrong in itself is refused before torch is imported

    registry = load_registry(suite.plugins, args.plugin)
    result = execute(suite, registry, args.out or default_directory(suite), args, engine=args.engine or ENGINES[0])
    return INTERRUPTED if result is None else int(result.failed > 0)


def execute(
    suite: Suite, registry: Registry, out: Path, args: argparse.Namespace, *, engine: str, device: str | None = None
) -> RunResult | None:
    """Runs a suite where everyone can watch, and prints the table; None where it was interrupted, which is said.

    Args:
        args: `--force`, `--retry-failed`, `--trust-remote-code`, and `--device`, which wins over `device`.
    """
    from lrbench.analysis.leaderboard import build
    from lrbench.cli.leaderboard import write
    from lrbench.cli.progress import TerminalProgress
    from lrbench.reports.render import renderer, terminal
    from lrbench.run.recorder import Stop
    from lrbench.run.runner import run_suite

    executor = executor_of(args)
    stop = Stop()
    try:
        with TerminalProgress() as progress, closing(executor), _signals(stop, executor, progress.note):
            result = run_suite(
                suite, registry, out, device=args.device or device, engine=engine, executor=executor, force=args.force,
                retry_failed=args.retry_failed, progress=progress, trust_remote_code=args.trust_remote_code, stop=stop,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        so_far: RunResult | None = getattr(interrupt, "result", None)
        done = f"{so_far.summary()}; " if so_far is not None else ""
        say(f"lrbench: interrupted; {done}the same command goes on where it stopped", sys.stderr)
        return None
    board = build([result.directory])
    for name, suffix in (("markdown", "md"), ("csv", "csv"), ("json", "json")):
        write(out / f"leaderboard.{suffix}", renderer(name)(board))
    terminal.show(board)
    say(result.summary())
    return result
