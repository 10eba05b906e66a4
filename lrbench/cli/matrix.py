"""`lrbench matrix FILE`: reducers on one matrix: error, ratio to the optimum, size, time."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.cli import output
from lrbench.cli.options import count, load_registry, whole_number
from lrbench.errors import InputError, PluginError

if TYPE_CHECKING:
    from lrbench.reducers.ranks import RankRequest
    from lrbench.reduction.plan import Method

#: The default ranks.
DEFAULT = ("keep", (0.75, 0.5, 0.25))


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "matrix", help="every reducer on one matrix: error, ratio to the optimum, size, time",
        description="Reducers on one matrix from a file (a weight, activations, scores), measured as in a run. "
        "Default ranks: --keep 0.75 0.5 0.25. The exit code is 1 if a reducer failed; without --reducer, inapplicable "
        "ones are skipped.",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", type=Path, help=".npy, .npz or .safetensors; W is (out, in)")
    parser.add_argument("--key", metavar="NAME", help="the array's name, if a .npz or .safetensors holds several")
    ranks = parser.add_mutually_exclusive_group()
    for kind, metavar, parse, text in (
        ("rank", "K", count, "ranks"),
        ("keep", "B", _fraction, "the largest rank whose stored parameters are at most B times the matrix's"),
        ("fraction", "F", _fraction, "int(min(m, n) F)"),
        ("energy", "E", _fraction, "the smallest rank with that fraction of the energy"),
        ("error", "E", _error, "the smallest rank whose relative error is at most E"),
    ):
        ranks.add_argument(f"--{kind}", metavar=metavar, nargs="+", type=parse, help=text)
    parser.add_argument(
        "--reducer", action="extend", nargs="+", metavar="NAME[:param=value,...]",
        help="default: every reducer (one or several, repeatable)",
    )  # fmt: skip
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a plugin file (repeatable)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the GPU where there is one)")
    seed = whole_number(range(2**63), "a whole number from 0 to 2^63 - 1")
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="of random draws; default: %(default)s")
    output.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reduces the matrix and writes the table; returns 1 if a reducer failed."""
    from lrbench.analysis.spectra import figures_of, singular_values
    from lrbench.linalg import in_range, times_power
    from lrbench.reduction.matrix_file import read_matrix
    from lrbench.reduction.single_matrix import reduce_matrix, slot_of
    from lrbench.reports.render import matrix as render
    from lrbench.system.device import choose_device
    from lrbench.system.environment import environment

    output.check(args.output)
    methods = _methods(args.reducer, args.plugin)
    matrix = read_matrix(args.file, args.key)
    values, exponent = in_range(matrix.values.to(choose_device(args.device)))
    sigma = singular_values(values)
    norm = times_power(float(sigma.square().sum().sqrt()), exponent)
    if math.isinf(norm):
        raise InputError(f"{args.file}: its norm overflows float64; divide the matrix by a power of two first")
    outcomes = list(
        reduce_matrix(
            slot_of(values, matrix.name), methods, _requests(args), args.seed, skip_inapplicable=args.reducer is None
        )
    )
    about = {
        "file": str(args.file), "key": matrix.name if matrix.name != args.file.name else None,
        "shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch."), "norm": norm,
    }  # fmt: skip
    report = render.MatrixReport(about, figures_of(sigma), outcomes, environment(values.device))
    output.emit(
        args,
        lambda: render.document(report),
        {"csv": lambda: render.csv(report), "json": lambda: render.as_json(report)},
    )
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _methods(requested: Sequence[str] | None, plugins: Sequence[str]) -> list[Method]:
    """The requested methods; by default every reducer."""
    from lrbench.reduction.single_matrix import method

    registry = load_registry(plugins)
    if requested is None:
        named = {str(Path(plugin)) for plugin in plugins}
        for broken in registry.broken:
            if broken.source in named or str(Path(broken.source).parent) in named:
                raise PluginError(f"{broken.source}: {broken.error}; fix it, or choose methods with --reducer")
            output.say(f"lrbench: {broken.source} cannot be loaded and is left out: {broken.error}", sys.stderr)
        requested = sorted(registry.reducers)
    repeated = next((text for text in requested if requested.count(text) > 1), None)
    if repeated is not None:
        raise InputError(f"--reducer {repeated} is given twice")
    return [method(text, registry) for text in requested]


def _requests(args: argparse.Namespace) -> list[RankRequest]:
    from lrbench.reducers.ranks import RankRequest

    kinds = ("rank", "keep", "fraction", "energy", "error")
    kind, values = next(((kind, getattr(args, kind)) for kind in kinds if getattr(args, kind) is not None), DEFAULT)
    return [RankRequest(kind, value) for value in dict.fromkeys(values)]  # type: ignore[arg-type]


def _number(text: str, is_valid: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def _fraction(text: str) -> float:
    return _number(text, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def _error(text: str) -> float:
    return _number(text, lambda value: 0 <= value < math.inf, "a number from 0 up")
