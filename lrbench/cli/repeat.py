"""`lrbench run --from-manifest RUN`: a run again, from what its directory says, and every difference."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Repeats a run in another directory: 0 where all numbers are the same to the last bit, 1 where some is not.

    Raises:
        InputError: RUN is no run, or cannot be repeated; or an option would make it another run.
    """
    import torch

    from lrbench.cli.execution import INTERRUPTED, execute
    from lrbench.cli.output import say
    from lrbench.errors import InputError
    from lrbench.reports.render.repetition import lines
    from lrbench.results.directory import open_run
    from lrbench.run.repeat import asked_of, compare_repetition

    for given, option in (
        (args.overrides, "--set"), (args.limit, "--limit"), (args.dtype, "--dtype"),
        (args.dry_run, "--dry-run"),
    ):  # fmt: skip
        if given:
            raise InputError(f"--from-manifest repeats a run as it was; leave {option} out")
    first = open_run(args.from_manifest)
    asked = asked_of(first, [Path(file) for file in args.plugin], lambda message: say(message, sys.stderr))
    suite = asked.again.suite
    out = args.out or Path("results") / "local" / f"{suite.name}-{suite.hash}-again"
    if out.resolve() == first.path.resolve():
        raise InputError(f"--out {out}: is the run that is to be repeated; choose another directory")
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)  # sums are taken in another order on another number
    result = execute(suite, asked.again.registry, out, args, engine=args.engine or asked.engine, device=asked.device)
    if result is None:
        return INTERRUPTED
    found = compare_repetition(first, result.directory)
    print(f"\n{first.path} -> {result.directory.path}")
    if result.reused:
        print(f"{result.reused} cells are of an earlier repetition in this directory; --force computes them again")
    for line in lines(found):
        print(line)
    sys.stdout.flush()
    return int(not found.same or result.failed > 0)
