"""`lrbench run SUITE`: scores all cells without a row, then shows the leaderboard."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrbench.cli.execution import INTERRUPTED, execute, executor_of
from lrbench.cli.options import add_offline, add_suite_options, load_registry, read_suite
from lrbench.evaluation import ENGINES
from lrbench.run.executors import EXECUTORS


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "run", help="run a suite; scored cells are reused",
        description="Runs a suite: a file, or the name of a bundled one. Finished cells are not scored again.",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("suite", metavar="SUITE", nargs="?", help="a suite file, or the name of a bundled suite")
    source.add_argument(
        "--from-manifest", type=Path, metavar="RUN",
        help="instead of SUITE: repeat a run from its directory, in another directory, and print every difference",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default results/local/SUITE-HASH)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the suite's, else the GPU)")
    add_suite_options(parser)
    add_offline(parser)
    parser.add_argument(
        "--engine", choices=ENGINES,
        help="sweep (the default): each cell from its first edited block on; frozen: lm-eval's forward passes on "
             "requests built once; harness: lm-eval's evaluator for every cell",
    )  # fmt: skip
    parser.add_argument(
        "--executor", choices=EXECUTORS, default=EXECUTORS[0],
        help="local: in this process; ray: on a Ray cluster (pip install 'lrbench[ray]')",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="A",
        help="with ray: HOST:PORT of the cluster, or auto (default: RAY_ADDRESS, else a cluster on this machine)",
    )  # fmt: skip
    parser.add_argument("--ray-workers", type=int, metavar="N", help="number of workers (default: as many as fit)")
    parser.add_argument("--ray-cpus", type=int, metavar="N", help="CPUs, and threads, of each worker (default 1)")
    parser.add_argument(
        "--ray-gpus", type=float, metavar="X",
        help="GPUs of each worker, possibly a fraction (default 1 if the cluster has any)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="score every cell again")
    parser.add_argument("--retry-failed", action="store_true", help="try failed cells again")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop, like `lrbench check`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the suite and prints the table and the results' path."""
    if args.from_manifest is not None:
        from lrbench.cli import repeat

        return repeat.run(args)
    if args.dry_run:
        from lrbench.cli import check

        executor_of(args).close()  # validates the options
        return check.show([args.suite], args)
    suite = read_suite(args.suite, args)

    # after reading the suite, so that an invalid one is refused before torch is imported
    from lrbench.run.inputs import default_directory

    registry = load_registry(suite.plugins, args.plugin)
    result = execute(suite, registry, args.out or default_directory(suite), args, engine=args.engine or ENGINES[0])
    return INTERRUPTED if result is None else int(result.failed > 0)
