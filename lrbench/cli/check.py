"""`lrbench check SUITE...`: validates suites and prints their plans; `--probe` also predicts tokens and time."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lrbench.cli.options import add_suite_options, load_registry, read_suite
from lrbench.cli.output import say
from lrbench.suite.roles import ROLES

if TYPE_CHECKING:
    from lrbench.models.slots import Inventory
    from lrbench.reduction.plan import Cell, Plan
    from lrbench.run.estimate import Prediction
    from lrbench.suite.load import RaceSpec, SelectSpec


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "check", help="validate suites and print their plans without computing anything",
        description="Validates suites and prints their plans. Nothing is computed without --probe.",
    )  # fmt: skip
    parser.add_argument("suite", metavar="SUITE", nargs="+", help="a suite file, or the name of a bundled suite")
    add_suite_options(parser)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="also load the models, time a small part of the work, and predict tokens and time of a run",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the suite's, else the GPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks each suite; returns 1 if some cell is known to fail."""
    return max(show(suite, args) for suite in args.suite)


def show(name: str, args: argparse.Namespace) -> int:
    """Prints one suite's plan and, with `args.probe`, the prediction."""
    suite = read_suite(name, args)

    # after reading the suite, so that an invalid one is refused before torch is imported
    from lrbench.reduction.calibration.sources import read_text
    from lrbench.reduction.delta import check_base
    from lrbench.reduction.greedy_plan import compositions_in_words, make_compositions
    from lrbench.reduction.plan import make_plan, methods
    from lrbench.run.inputs import default_directory
    from lrbench.run.model_run import tasks_of
    from lrbench.run.runner import structure_of

    registry = load_registry(suite.plugins, args.plugin)
    suite_methods = methods(suite, registry)
    tasks = tasks_of(suite, _say)
    if suite.calibration is not None:
        documents = read_text(suite, tasks.tasks, _say)
    trusted = args.trust_remote_code
    models = [(spec, structure_of(suite, spec, args.device, trust_remote_code=trusted)) for spec in suite.models]
    plans = [make_plan(suite, inventory, suite_methods) for _, inventory in models]
    for (_, inventory), plan in zip(models, plans, strict=True):
        check_base(suite, inventory, plan, trust_remote_code=trusted)
    out = default_directory(suite)
    say(f"{suite.name}  (run directory {out})")
    say()
    say("tasks")
    for line in tasks.summary():
        say(f"  {line}")
    if suite.calibration is not None:
        characters = sum(map(len, documents))
        say()
        say("calibration")
        say(f"  text of {characters:,} characters, {suite.calibration.samples} samples")
    if suite.select is not None:
        _print_selection(suite.select, suite.race)
    exit_code = 0
    for (spec, inventory), plan in zip(models, plans, strict=True):
        say()
        say(f"model {spec.display_name}: {len(inventory.blocks)} blocks, {len(inventory.slots)} weight slots")
        _print_slots(inventory)
        _print_plan(plan)
        for line in compositions_in_words(make_compositions(suite, inventory, suite_methods)):
            say(f"  {line}")
        if getattr(args, "probe", False):
            from lrbench.run.estimate import probe

            prediction = probe(
                suite, spec, suite_methods, out, device=args.device, trust_remote_code=trusted, notify=_say
            )
            _print_prediction(prediction)
        exit_code = max(exit_code, 1 if plan.impossible() else 0)
    return exit_code


def _print_selection(select: SelectSpec, race: RaceSpec | None) -> None:
    choice = "each task" if select.on == "task" else "the mean over tasks"
    say()
    say("selection")
    say(
        f"  every cell on about {select.validation:.0%} of each task's documents; each method's best cell for {choice} "
        "on the others"
    )
    if race is not None:
        say(
            f"  a race: with probability {1 - race.alpha:g} the chosen cell is within {race.margin:g} of the best on "
            "these documents"
        )


def _print_slots(inventory: Inventory) -> None:
    groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for slot in inventory.slots:
        groups.setdefault((slot.about.role or "no role", slot.about.shape), []).append(slot.name)
    sizes = {key: f"({key[1][0]}, {key[1][1]})" for key in groups}
    width = max(map(len, sizes.values()), default=0)
    for (role, shape), names in groups.items():
        say(f"  {role:9} {len(names):4} x {sizes[role, shape]:{width}}  {names[0]}{' ...' if len(names) > 1 else ''}")
    missing = [role for role in ROLES if role not in inventory.roles]
    if missing:
        say(f"  not found: {', '.join(missing)}")
    for title, weights in (("only by glob", inventory.unnamed), ("not editable", inventory.left_out)):
        for kind, names in _by_reason(weights):
            say(f"  {title}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({kind})")


def _by_reason(weights: tuple[tuple[str, str], ...]) -> list[tuple[str, list[str]]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in weights:
        reasons.setdefault(reason, []).append(name)
    return list(reasons.items())


def _print_plan(plan: Plan) -> None:
    say()
    say(f"  {len(plan.cells)} cells: the baseline, and")
    lines: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in plan.cells:
        if cell.method is not None and cell.mode is not None:
            setting = f"{cell.setting}, {cell.allocation}" if cell.allocation else cell.setting
            lines.setdefault((cell.method.label, cell.mode, setting), []).append(cell)
    width = max((len(setting) for *_, setting in lines), default=0)
    impossible = dict(plan.impossible())
    for (label, mode, setting), cells in lines.items():
        possible = [cell for cell in cells if cell not in impossible and not cell.skip]
        ranks = sorted({rank for cell in possible for rank in cell.ranks() if rank is not None})
        spread = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else "rank found when run"
        slots = sum(len(cell.slots) for cell in cells)
        say(f"  {label:16} {mode:9} {setting:{max(width, 14)}} {len(cells):4} cells, {slots:5} reductions, {spread}")
    for title, reasons in (
        ("would fail", list(impossible.values())),
        ("would be skipped", [cell.skip for cell in plan.cells if cell.skip]),
    ):
        for reason in reasons[:5]:
            say(f"  {title}: {reason}")
        if len(reasons) > 5:
            say(f"  {title}: and {len(reasons) - 5} more")


def _print_prediction(prediction: Prediction) -> None:
    sweep = prediction.sweep
    say()
    say(f"  a prediction, no promise, for {prediction.machine}")
    there = f", {prediction.there:,} already there" if prediction.there else ""
    say(f"  {'cells':10} {prediction.to_score:,} to score{there}")
    say(
        f"  {'requests':10} {prediction.requests:,} a cell, of {sweep.tokens_asked:,} tokens; "
        f"{sweep.tokens_shared:,} with what they share counted once"
    )
    padding = "in lm-eval's own passes, their padding not counted" if sweep.plain else "padding included"
    say(f"  {'sweep':10} {prediction.block_tokens:,} tokens through a block, {padding}")
    say(
        f"  {'time':10} {_duration(prediction.seconds)}: set-up {_duration(prediction.setup_seconds)} (measured), "
        f"decomposition {_duration(prediction.reduce_seconds)}, evaluation {_duration(prediction.score_seconds)}"
    )
    if prediction.texts:
        say(f"  {'texts':10} {prediction.texts:,} a cell to generate, by lm-eval; not in the time predicted")
    if prediction.allocated:
        say(f"  {'ranks':10} of some cells are found from curves of every weight; not in the time predicted")
    if prediction.composed:
        say(f"  {'composing':10} tries up to {prediction.composed:,} cells more; they are in the time predicted")
    if prediction.reported:
        say(
            f"  {'selection':10} the above is on validation documents, and a race may spare much of it; up to "
            f"{prediction.reported} cells on test documents are not in the time predicted"
        )
    if prediction.calibrated:
        say(f"  {'statistics':10} of inputs are collected where no run has yet; not in the time predicted")
    for failure in prediction.failures:
        say(f"  failed when it was timed, so not in the time: {failure}")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _say(message: str) -> None:
    say(message, sys.stderr)
