"""`lrbench run --from-manifest RUN`: repeats a run from its directory and prints every difference."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Repeats a run in another directory; returns 0 if all results are bit-identical, else 1."""
    import torch

    from lrbench.cli.execution import INTERRUPTED, execute
    from lrbench.cli.output import say
    from lrbench.errors import InputError
    from lrbench.reports.render.repetition import lines
    from lrbench.results.directory import open_run
    from lrbench.run.repeat import compare_repetition, settings_of

    for value, option in (
        (args.overrides, "--set"), (args.limit, "--limit"), (args.dtype, "--dtype"),
        (args.dry_run, "--dry-run"), (args.datasets, "--datasets"),
    ):  # fmt: skip
        if value:
            raise InputError(f"--from-manifest repeats a run unchanged; leave {option} out")
    first = open_run(args.from_manifest)
    original = settings_of(first, [Path(file) for file in args.plugin], lambda message: say(message, sys.stderr))
    suite = original.reopened.suite
    out = args.out or Path("results") / "local" / f"{suite.name}-{suite.hash}-again"
    if out.resolve() == first.path.resolve():
        raise InputError(f"--out {out} is the run to repeat; choose another directory")
    if original.threads is not None:
        torch.set_num_threads(original.threads)  # the order of summation depends on the number of threads
    result = execute(
        suite, original.reopened.registry, out, args, engine=args.engine or original.engine, device=original.device
    )
    if result is None:
        return INTERRUPTED
    repetition = compare_repetition(first, result.directory)
    print(f"\n{first.path} -> {result.directory.path}")
    if result.reused:
        print(f"{result.reused} cells come from an earlier repetition in this directory; --force computes them again")
    for line in lines(repetition):
        print(line)
    sys.stdout.flush()
    return int(not repetition.same or result.failed > 0)
