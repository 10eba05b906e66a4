"""A sweep on several workers: measured on this machine, and simulated for a large model on many workers.

    python benchmarks/scaling.py [--workers N ...] [--documents N] [--simulate N ...] [--json FILE]

The same suite runs in this process, and on a Ray cluster that the benchmark starts; the queue of such a run then works
off LASER's sweep of an 80-block model on a clock of its own, with the times that were measured.
docs/benchmarks.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for every worker

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lrbench.reducers.registry import Registry
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row
from lrbench.run.executors import Executor, LocalExecutor
from lrbench.run.executors.ray import RayExecutor, RayOptions
from lrbench.run.runner import run_suite
from lrbench.suite.load import load_suite
from lrbench.system.environment import environment, in_words
from scaling_simulation import Costs, Schedule, laser_sweep, simulate

SUITE = """\
name: scaling
model: {{name: almanac, device: cpu}}
tasks:
  - {{task: almanac_facts, limit: {documents}}}
reducers: [svd]
sweep:
  - mode: each
    layers: all
    weights: [attn.o, mlp]
    rank: {{fraction: [0.5, 0.2, 0.1]}}
"""
BLOCKS = 8  # of the model


class Watch:
    """A progress that notes when the model was open, and when each row was written."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.opened = 0.0
        self.rows: list[Row] = []
        self.last = 0.0

    def note(self, message: str) -> None:
        """Not shown."""

    def planned(self, *arguments: Any) -> None:
        """The first worker has the model."""
        self.opened = time.perf_counter() - self.started

    def scoring(self, step: Any) -> None:
        """Not shown."""

    def finished(self, row: Row) -> None:
        """A row is on disk."""
        self.rows.append(row)
        self.last = time.perf_counter() - self.started


def main(arguments: list[str] | None = None) -> None:
    """Measures, simulates, and prints both."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "scaling.yaml"
        suite.write_text(SUITE.format(documents=options.documents))
        local = _measure(suite, Path(folder) / "local", LocalExecutor())
        runs = [{"workers": 0, **_figures(local)}]
        for workers in options.workers:
            with _cluster(workers) as executor:
                watch = _measure(suite, Path(folder) / f"ray-{workers}", executor)
            if {row.cell for row in watch.rows} != {row.cell for row in local.rows}:
                raise SystemExit("the cluster did not make the same cells")
            runs.append({"workers": workers, **_figures(watch)})
        costs = _costs(local, runs, Path(folder) / "written", options)
    sweep = laser_sweep(options.blocks, options.weights, options.ranks)
    schedules = [simulate(sweep, options.blocks, workers, costs) for workers in options.simulate]
    report = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/scaling.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "environment": environment(torch.device("cpu")),
        "documents": options.documents,
        "cells": len(local.rows),
        "runs": runs,
        "costs": asdict(costs),
        "sweep": {"blocks": options.blocks, "weights": options.weights, "ranks": options.ranks},
        "schedules": [
            {**asdict(one), "ideal": one.ideal, "efficiency": one.efficiency, "limit": one.limit} for one in schedules
        ],
    }
    _show(report, schedules)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _cluster(workers: int) -> Any:
    """An executor on a cluster of this machine alone, with a CPU for each worker."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15, which is not how this process runs
    os.environ.pop("RAY_ADDRESS", None)
    ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    class _Own(RayExecutor):
        def close(self) -> None:
            super().close()
            ray.shutdown()

    return closing(_Own(RayOptions(workers=workers)))


def _measure(suite: Path, out: Path, executor: Executor) -> Watch:
    watch = Watch()
    loaded = load_suite(suite)
    run_suite(loaded, Registry.load(), out, progress=watch, executor=executor)
    if any(row.status != "ok" for row in watch.rows):
        raise SystemExit(f"a cell failed: {next(row.reason for row in watch.rows if row.status != 'ok')}")
    return watch


def _figures(watch: Watch) -> dict[str, float]:
    busy = sum(row.evaluate_seconds + row.decompose_seconds for row in watch.rows)
    return {"open": watch.opened, "sweep": watch.last - watch.opened, "busy": busy}


def _costs(local: Watch, runs: list[dict[str, Any]], scratch: Path, options: argparse.Namespace) -> Costs:
    """Seconds by a straight line through the cells' times over the blocks that they ran; the command line's first."""
    edited = [row for row in local.rows if row.edits]
    ran = np.array([[BLOCKS - (row.edits[0].layer or 0), 1.0] for row in edited])
    slope, constant = np.linalg.lstsq(ran, np.array([row.evaluate_seconds for row in edited]), rcond=None)[0]
    measured = {
        "open": next((run["open"] for run in runs if run["workers"]), runs[0]["open"]),
        "block": max(float(slope), 0.0),
        "cell": max(float(constant), 0.0),
        "reduce": float(np.mean([row.decompose_seconds for row in edited])),
        "write": _writing(local.rows, scratch),
    }
    given = {name: getattr(options, f"{name}_seconds") for name in measured}
    return Costs(**{name: seconds if given[name] is None else given[name] for name, seconds in measured.items()})


def _writing(rows: list[Row], scratch: Path) -> float:
    """Seconds for a row with its documents, on this disk."""
    directory = RunDirectory(scratch)
    samples = [{"task": "t", "doc": i, "metrics": {"acc": 1.0}, "loglikelihoods": [-1.5] * 4} for i in range(500)]
    started = time.perf_counter()
    for row in rows:
        directory.write_samples(row.cell, samples)
        directory.append(row)
    return (time.perf_counter() - started) / len(rows)


def _show(report: dict[str, Any], schedules: list[Schedule]) -> None:
    console = Console(width=150, highlight=False)
    console.print(f"{in_words(report['environment'])}; one thread a worker")
    table = Table(
        "workers", "open s", "sweep s", "speed-up", "ideal", "busy", title="Measured: almanac", title_style="bold"
    )
    runs = report["runs"]
    one = next((run["sweep"] for run in runs if run["workers"] == 1), None)
    for run in runs:
        workers = run["workers"]
        table.add_row(
            str(workers) if workers else "none (in process)", f"{run['open']:.1f}", f"{run['sweep']:.1f}",
            f"{one / run['sweep']:.2f}" if one and workers else "–", str(workers) if workers else "–",
            f"{run['busy'] / run['sweep'] / max(workers, 1):.0%}",
        )  # fmt: skip
    table.caption = f"{report['cells']} cells of {report['documents']} documents"
    console.print(table)
    sweep, costs = report["sweep"], report["costs"]
    cells = sweep["blocks"] * sweep["weights"] * sweep["ranks"]
    what = f"{sweep['blocks']} blocks × {sweep['weights']} weights × {sweep['ranks']} ranks"
    table = Table(
        "workers", "makespan s", "ideal s", "of ideal", "limited by", "opening s", "frontier s", "waiting s",
        "writing s", title=f"Simulated: {what}", title_style="bold",
    )  # fmt: skip
    for one_schedule in schedules:
        parts = list(one_schedule.parts.values())
        table.add_row(
            str(one_schedule.workers), f"{one_schedule.makespan:.1f}", f"{one_schedule.ideal:.1f}",
            f"{one_schedule.efficiency:.0%}", one_schedule.limit, *(f"{part:.1f}" for part in parts),
        )  # fmt: skip
    table.caption = (
        f"{cells:,} cells; in seconds: {costs['open']:.1f} to open the model, {costs['block']:.2g} a cell and block, "
        f"{costs['cell']:.2g} a cell, {costs['reduce']:.2g} a decomposition, {costs['write']:.2g} to write a row; the "
        f"longest group takes {schedules[0].longest:.1f}"
    )
    console.print(table)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="measured (default 1 2)")
    parser.add_argument("--documents", type=int, default=200, metavar="N", help="of each cell (default 200)")
    parser.add_argument("--simulate", type=int, nargs="+", default=[8, 64, 512], metavar="N", help="workers simulated")
    parser.add_argument("--blocks", type=int, default=80, metavar="N", help="of the model simulated (default 80)")
    parser.add_argument("--weights", type=int, default=7, metavar="N", help="of each block (default 7)")
    parser.add_argument("--ranks", type=int, default=8, metavar="N", help="of each weight (default 8)")
    for name in ("open", "block", "cell", "reduce", "write"):
        parser.add_argument(
            f"--{name}-seconds", type=float, metavar="S", help="in the simulation, instead of what was measured"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
