"""`lrbench check SUITE...`: validates suites and prints their plans; `--probe` also predicts tokens and time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lrbench.cli.options import add_offline, add_suite_options, fast_imports, load_registry, read_suite
from lrbench.cli.output import say
from lrbench.system.offline import offline_folder

if TYPE_CHECKING:
    from lrbench.run.estimate import Prediction


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "check", help="validate suites and print their plans without computing anything",
        description="Validates suites and prints their plans. Nothing is computed without --probe.",
    )  # fmt: skip
    parser.add_argument("suite", metavar="SUITE", nargs="+", help="a suite file, or the name of a bundled suite")
    add_suite_options(parser)
    add_offline(parser)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="also load the models, time a small part of the work, and predict tokens and time of a run",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the suite's, else the GPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks each suite; returns 1 if some cell is known to fail."""
    return show(args.suite, args)


def show(names: Sequence[str], args: argparse.Namespace) -> int:
    """Prints the plans of suites and, with `args.probe`, the predictions."""
    if offline_folder() is not None:
        suites = [read_suite(name, args) for name in names]
        from lrbench.run.offline_check import refuse_missing

        with fast_imports():
            refuse_missing(suites, trust_remote_code=args.trust_remote_code)
    return max(_show(name, args) for name in names)


def _show(name: str, args: argparse.Namespace) -> int:
    suite = read_suite(name, args)

    trusted = args.trust_remote_code
    with fast_imports():
        # after reading the suite, so that an invalid one is refused before torch is imported
        from lrbench.reports.suite_plan import plan_suite

        registry = load_registry(suite.plugins, args.plugin)
        plan = plan_suite(suite, registry, _say, device=args.device, trust_remote_code=trusted)  # imports lm-eval
    for line in plan.heading():
        say(line)
    for model in plan.models:
        say()
        for line in model.lines():
            say(line)
        if getattr(args, "probe", False):
            from lrbench.run.estimate import probe

            prediction = probe(
                suite, model.spec, plan.methods, plan.directory, device=args.device, trust_remote_code=trusted,
                notify=_say,
            )  # fmt: skip
            _print_prediction(prediction)
    return 1 if plan.would_fail else 0


def _print_prediction(prediction: Prediction) -> None:
    say()
    say(f"  prediction for {prediction.machine}")
    composed = f", up to {prediction.composed:,} more in compositions" if prediction.composed else ""
    scored = f", {prediction.scored:,} already scored" if prediction.scored else ""
    say(f"  {'cells':10} {prediction.to_score:,} to score{composed}{scored}")
    say(f"  {'requests':10} {prediction.requests:,} per cell, of {prediction.sweep.tokens_asked:,} tokens")
    say(f"  {'sweep':10} {prediction.block_tokens:,} tokens through a block")
    say(
        f"  {'time':10} {_duration(prediction.seconds)}: set-up {_duration(prediction.setup_seconds)} (measured), "
        f"decomposition {_duration(prediction.reduce_seconds)}, evaluation {_duration(prediction.score_seconds)}"
    )
    for reason in prediction.not_timed:
        say(f"  not in the time: {reason}")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _say(message: str) -> None:
    say(message, sys.stderr)
