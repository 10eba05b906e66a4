"""How long decompositions take and how near to the optimum they come: lrbench's and the usual tools, side by side.

    python benchmarks/decompose.py [--shapes 1024x4096 ...] [--large] [--threads 1 2] [--quick] [--json FILE]
    python benchmarks/decompose.py --device cuda
    python benchmarks/decompose.py --crossovers

Four ranks of each matrix, 5 to 50% of the full one. docs/benchmarks.md says what each number means.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
import torch
from torch import Tensor

from decompose_crossovers import crossovers
from decompose_memory import peak_bytes
from decompose_methods import RANKS, Contestant, almanac_weights, contestants, weight_like
from decompose_report import show
from lrbench.linalg import gram, optimal_errors
from lrbench.system.environment import environment, in_words

SHAPES = ((1024, 4096), (4096, 1024), (2048, 2048), (384, 1024))
LARGE, ON_GPU, QUICK = (4096, 4096), (4096, 16384), (384, 1024)
#: Matrices in float64 that a method may take beyond its own: for all, and for a full SVD.
MEMORY_TARGETS = {"svd": 8.0, "rsvd": 4.0, "id": 4.0}


def main(arguments: list[str] | None = None) -> None:
    """Measures what the command line asks for, and prints it."""
    options = _parse(arguments)
    device = torch.device(options.device)
    report: dict[str, Any] = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/decompose.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "environment": environment(device),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
        "libraries": [f"{pool['internal_api']} {pool['version']}" for pool in _blas()],
        "repeats": options.repeats,
        "quick": options.quick,
        "ranks": RANKS,
        "matrices": [],
    }  # fmt: skip
    _say(in_words(report["environment"]))
    for threads in options.threads:
        torch.set_num_threads(threads)
        with threadpoolctl.threadpool_limits(limits=threads):
            if options.crossovers:
                report.setdefault("crossovers", []).append(crossovers(threads, quick=options.quick, say=_say))
                continue
            for name, matrices in _matrices(options):
                _say(f"{name}, {threads} thread(s)")
                entry = measure(name, matrices, device, threads, options)
                report["matrices"].append(entry)
                if options.json:
                    options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def measure(
    name: str, matrices: Sequence[Tensor], device: torch.device, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Every contestant on one matrix, or on several of which times and squared errors are summed."""
    matrices = [W.to(device) for W in matrices]
    m, n = matrices[0].shape
    several = len(matrices) > 1
    optima = [optimal_errors(W) for W in matrices]
    ranks = [[max(1, int(share * min(W.shape))) for share in RANKS] for W in matrices]
    least = [_root(optimum[r[i]] for optimum, r in zip(optima, ranks, strict=True)) for i in range(len(RANKS))]
    norm = _root(optimum[0] for optimum in optima)
    taking_part = contestants(device.type)
    seconds: dict[str, list[float]] = {one.name: [] for one in taking_part}
    for one in taking_part:  # libraries initialise when first used
        for _ in one.run(matrices[0][:64, :64].contiguous(), [1, 8]):
            pass
    for _ in range(options.repeats):  # in turns, so that what else the machine does hits them alike
        for one in taking_part:
            seconds[one.name].append(sum(_timed(one, W, r) for W, r in zip(matrices, ranks, strict=True)))
    entry: dict[str, Any] = {
        "name": name, "shape": None if several else [m, n], "matrices": len(matrices), "threads": threads,
        "ranks": None if several else ranks[0], "optimal_errors": [error / norm for error in least], "methods": {},
    }  # fmt: skip
    if device.type == "cuda":
        entry["gram_seconds"] = _gram_seconds(matrices[0], options.repeats)
    for one in taking_part:
        errors = [_errors(one, W, r) for W, r in zip(matrices, ranks, strict=True)]
        entry["methods"][one.name] = {
            "seconds": min(seconds[one.name]), "all_seconds": seconds[one.name], "about": one.about,
            "rival": one.rival, "target": None if several or options.quick else one.target(m, n),
            "ratios": [_root(e[i] for e in errors) / least[i] for i in range(len(RANKS))],
        }  # fmt: skip
    for one in taking_part:
        if one.rival:
            ours, theirs = entry["methods"][one.name], entry["methods"][one.rival]
            ours["speedup"] = theirs["seconds"] / ours["seconds"]
    if device.type == "cpu" and not several and not options.without_memory and threads == options.threads[0]:
        _say("  memory")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "matrix.npy"
            np.save(file, matrices[0].numpy())
            for one in taking_part:
                peak = peak_bytes(file, one.name, threads)
                entry["methods"][one.name]["peak"] = None if peak is None else peak / (8 * m * n)
                entry["methods"][one.name]["peak_target"] = MEMORY_TARGETS.get(one.name)
    return entry


def _timed(one: Contestant, W: Tensor, ranks: Sequence[int]) -> float:
    _synchronize(W)
    started = time.perf_counter()
    for _ in one.run(W, ranks):
        pass
    _synchronize(W)
    return time.perf_counter() - started


def _errors(one: Contestant, W: Tensor, ranks: Sequence[int]) -> list[float]:
    exact = W.double()
    return [float(torch.linalg.vector_norm(exact - dense().to(W.device).double())) for dense in one.run(W, ranks)]


def _gram_seconds(W: Tensor, repeats: int) -> float:
    """What the float64 Gram alone takes: the measure that a GPU's times are given in."""
    gram(W)
    seconds = []
    for _ in range(max(repeats, 3)):
        _synchronize(W)
        started = time.perf_counter()
        gram(W)
        _synchronize(W)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _root(errors: Any) -> float:
    return sum(error**2 for error in errors) ** 0.5


def _synchronize(W: Tensor) -> None:
    if W.is_cuda:
        torch.cuda.synchronize(W.device)


def _blas() -> list[dict[str, Any]]:
    return [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def _matrices(options: argparse.Namespace) -> list[tuple[str, list[Tensor]]]:
    found = [(f"weight-like {m}x{n}", [weight_like(m, n)]) for m, n in options.shapes]
    if not options.without_almanac:
        weights = almanac_weights()
        found.append((f"almanac, {len(weights)} matrices", weights[:7] if options.quick else weights))
    return found


def _shape(text: str) -> tuple[int, int]:
    try:
        m, n = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write 1024x4096") from None
    if min(m, n) < 64:
        raise argparse.ArgumentTypeError(f"{text!r} is too small; at least 64 rows and columns")
    return m, n


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/decompose.py", description=(__doc__ or "").split("\n\n")[0])
    default = " ".join(f"{m}x{n}" for m, n in SHAPES)
    parser.add_argument("--shapes", type=_shape, nargs="+", help=f"default: {default}; on a GPU 4096x16384")
    parser.add_argument("--large", action="store_true", help="a square matrix of 4096 as well: minutes a thread count")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2; on a GPU torch's own choice")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, help="the best counts; default 3, quick 1")
    parser.add_argument("--without-almanac", action="store_true", help="leave the bundled model's weights out")
    parser.add_argument("--without-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument(
        "--crossovers", action="store_true", help="where one algorithm overtakes another, and nothing else"
    )
    parser.add_argument("--quick", action="store_true", help="384x1024 and one thread: seconds, not to be quoted")
    parser.add_argument("--json", type=Path, help="write all figures here, too")
    options = parser.parse_args(arguments)
    usual = [QUICK] if options.quick else [ON_GPU] if options.device == "cuda" else list(SHAPES)
    options.shapes = (options.shapes or usual) + ([LARGE] if options.large else [])
    one = options.quick or options.crossovers
    options.threads = options.threads or (
        [1] if one else [1, 2] if options.device == "cpu" else [torch.get_num_threads()]
    )
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main()
