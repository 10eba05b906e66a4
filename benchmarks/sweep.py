"""How long a layer sweep takes: the sweep engine, its floor, lm-eval once per cell, and LASER's way, side by side.

    python benchmarks/sweep.py [--workload piqa|hellaswag|rolling|counterfact|all] [--vocabulary N ...]
                               [--cells all|last-third|both] [--documents N] [--quick] [--json FILE] [...]

One random-weight model is loaded once for each vocabulary; tasks are synthetic, and lm-eval's own code reads them.
docs/benchmarks.md says what each number means. `--quick` takes about a minute on two cores, and measures too
little to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from lrbench.evaluation import ENGINES, make_engine
from lrbench.evaluation.lm_eval_model import make_hflm
from lrbench.models.load import LoadedModel
from lrbench.suite.load import ModelSpec
from lrbench.system.device import choose_device
from lrbench.system.environment import environment, in_words
from lrbench.tasks.frozen_requests import freeze
from lrbench.tasks.load import load_tasks
from sweep_cells import Cell, Swept, make_cells, run_sweep
from sweep_floor import Speed, Work, count, flops, measure
from sweep_report import show
from sweep_rivals import LaserTime, LmEval, LmEvalTime, largest_difference, time_laser
from sweep_workloads import CONFIGS, MAIN, WORKLOADS, Workload, make_model, write_task

WEIGHTS = ("mlp.down", "mlp.up", "attn.o", "attn.q")
RATES = {"all": 3, "last-third": 9}  # edits a block; LASER sweeps 9 rates of each of two matrices
LASER_SWEEP = {"prompts": 65_000, "edits_per_block": 18}  # CounterFact on GPT-J, 28 blocks


def main(arguments: list[str] | None = None) -> None:
    """Measures what the command line asks for, and prints it after each workload."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    report: dict[str, Any] = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/sweep.py", *(arguments if arguments is not None else sys.argv[1:])]),
        "config": options.config,
        "dtype": dtype,
        "engine": options.engine,
        "quick": options.quick,
        "batch_size_lm_eval": options.lm_eval_batch,
        "environment": environment(device),
        "sweeps": [],
    }
    _say(in_words(report["environment"]) + f"; {report['environment']['threads']} threads, {dtype}")
    for vocabulary in options.vocabulary:
        with tempfile.TemporaryDirectory() as folder:
            loaded = make_model(options.config, vocabulary, device, dtype)
            for name in MAIN if options.workload == "all" else [options.workload]:
                report["sweeps"] += _workload(options, loaded, WORKLOADS[name], vocabulary, Path(folder))
                if options.json:
                    options.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


@dataclass(frozen=True)
class Measured:
    """One sweep of the engine, and the machine's speed as measured before and after it."""

    cells: list[Cell]
    swept: Swept
    speed: Speed


def _workload(
    options: argparse.Namespace, loaded: LoadedModel, workload: Workload, vocabulary: int, folder: Path
) -> list[dict[str, Any]]:
    """One entry for each range of blocks."""
    documents = options.documents or (workload.quick if options.quick else workload.documents)
    _say(f"{workload.name}, {documents:,} documents, vocabulary {vocabulary:,}: building")
    task = write_task(workload, documents, vocabulary, folder)
    tasks = load_tasks([SimpleNamespace(task=task, limit=None, num_fewshot=None)], [folder])
    lm = make_hflm(loaded.model, loaded.tokenizer, batch_size=options.lm_eval_batch, max_length=workload.max_length)
    requests = freeze(tasks, lm)
    rival = LmEval(loaded, lm, task, folder)
    work = count(requests, workload.max_length)
    planned = {
        which: make_cells(
            loaded, _layers(options, which, len(loaded.inventory.blocks)), _rates(options, which), options.weight
        )
        for which in (["all", "last-third"] if options.cells == "both" else [options.cells])
    }
    first = next(iter(planned.values()))
    timed = [first[round(i)] for i in np.linspace(len(first) - 1, 0, min(options.lm_eval_cells, len(first)))]
    keep = {cell.key for cell in timed}
    started = time.perf_counter()
    spec = ModelSpec(pretrained=options.config, max_length=workload.max_length)
    engine = make_engine(options.engine, loaded, tasks, spec)
    engine.describe()  # the sweep engine checks itself when it is first wanted: that is set-up, and no cell's time
    setup_seconds = time.perf_counter() - started
    _say("  speed of blocks and head")
    speed = measure(loaded, work.longest, quick=options.quick)
    measured: dict[str, Measured] = {}
    for which, cells in reversed(planned.items()):  # last third first: each sweep starts below where the engine stands
        _say(f"  {engine.name} engine on {len(cells)} cells")
        swept = run_sweep(engine, loaded, cells, setup_seconds, keep)
        before = speed
        if not options.quick:
            speed = measure(loaded, work.longest, tokens_at_once=before.tokens_at_once)
        measured[which] = Measured(cells, swept, before.mean_with(speed))
    del engine  # and the states that it keeps
    lm_eval, laser = LmEvalTime(reason="left out"), None
    if "lm-eval" not in options.without:
        _say(f"  lm-eval on {len(timed)} cell(s)")
        lm_eval = rival.time([cell.job() for cell in timed], work.longest)
    if "laser" not in options.without:
        sampled = options.laser_requests or (4 if options.quick else 64)
        _say(f"  LASER's way on {sampled} requests")
        checkpoint = folder / "checkpoint"
        laser = time_laser(loaded, checkpoint, requests, sampled=sampled, max_length=workload.max_length)
    return [
        _entry(options, loaded, workload, vocabulary, documents, which, one, work, lm_eval, laser)
        for which, one in reversed(measured.items())
    ]


def _entry(
    options: argparse.Namespace, loaded: LoadedModel, workload: Workload, vocabulary: int, documents: int, which: str,
    measured: Measured, work: Work, lm_eval: LmEvalTime, laser: LaserTime | None,
) -> dict[str, Any]:  # fmt: skip
    """All figures of one sweep, as plain data."""
    cells, swept, speed = measured.cells, measured.swept, measured.speed
    blocks = len(loaded.inventory.blocks)
    to_run = [blocks - cell.layer for cell in cells]
    floor = speed.floor(work, to_run)
    per_block, per_head = flops(loaded)
    useful = sum(to_run) * work.tokens * per_block + len(cells) * work.asked * per_head
    line = swept.line(cells, blocks)
    slope, constant, frontier = line or (None, None, None)
    softmax = len(cells) * work.asked * (speed.head_seconds - speed.head_gemm_seconds)
    entry: dict[str, Any] = {
        "workload": workload.name, "about": workload.about, "vocabulary": vocabulary, "documents": documents,
        "weight": options.weight, "blocks": which, "blocks_edited": sorted({cell.layer for cell in cells}),
        "blocks_of_model": blocks,
        "cells": len(cells), "edits_per_block": _rates(options, which),
        "setup_seconds": swept.setup_seconds, "engine_seconds": swept.seconds, "cell_seconds": swept.cell_seconds,
        "slope": {"seconds_per_cell_and_block": slope, "seconds_per_cell": constant}, "frontier_seconds": frontier,
        "floor_seconds": floor, "engine_over_floor": swept.seconds / floor,
        "floor_without_softmax_seconds": floor - softmax,
        "floor_cell_and_block_seconds": speed.block_seconds(work),
        "floor_head_seconds": work.asked * speed.head_seconds,
        "speed": asdict(speed),
        "tokens": {
            "requests": work.requests, "request_tokens": work.request_tokens, "shared_tokens": work.tokens,
            "asked_positions": work.asked,
            "block_tokens_asked": sum(to_run) * work.tokens,
            "block_tokens_computed": swept.block_flops / per_block,
            "head_positions_asked": len(cells) * work.asked, "head_positions_computed": swept.head_positions,
        },
        "gemm": {"useful_flops": useful, "flops_per_second": useful / swept.seconds, "peak": speed.peak},
        "engine": swept.description,
        "lm_eval": {"cells_timed": len(lm_eval.seconds), "seconds_per_cell": lm_eval.seconds, "reason": lm_eval.reason},
        "targets": _targets(options, workload, vocabulary, which),
    }  # fmt: skip
    if lm_eval.seconds:
        whole = sum(lm_eval.seconds) / len(lm_eval.seconds) * len(cells)
        entry["lm_eval"] |= {"extrapolated_seconds": whole, "ratio": whole / swept.seconds}
        entry["lm_eval"]["ratio_with_setup"] = whole / (swept.setup_seconds + swept.seconds)
        shared = [key for key in lm_eval.samples or {} if key in swept.samples]
        pairs = [largest_difference(swept.samples[key], lm_eval.samples[key]) for key in shared]  # type: ignore[index]
        if pairs:
            entry["lm_eval"]["largest_difference"] = {
                "cells": len(pairs), "absolute": max(a for a, _ in pairs), "relative": max(r for _, r in pairs)
            }  # fmt: skip
    if laser:
        whole = laser.cell(work.requests) * len(cells)
        entry["laser"] = {**asdict(laser), "extrapolated_seconds": whole, "ratio": whole / swept.seconds}
    if workload.name == "counterfact" and which == "all" and line:
        per_edit = sum(line[0] * n + line[1] for n in range(1, blocks + 1))
        matrices = 2 * line[2]  # each is once the first of its block
        seconds = (per_edit * LASER_SWEEP["edits_per_block"] + matrices) * LASER_SWEEP["prompts"] / documents
        entry["laser_sweep_predicted"] = {**LASER_SWEEP, "blocks": blocks, "seconds": seconds}
    return entry


def _targets(options: argparse.Namespace, workload: Workload, vocabulary: int, which: str) -> dict[str, float]:
    """What is to be reached, for measurements that the targets were set for."""
    if options.quick or options.config == "tiny":
        return {}
    targets = {"engine_over_floor": 1.25}
    if workload.targets and vocabulary == 8192 and options.config == "llama-12x384":
        targets["lm_eval_ratio"] = workload.targets[which != "all"]
    return targets


def _layers(options: argparse.Namespace, which: str, blocks: int) -> list[int]:
    """The blocks that are edited; a quick sweep leaves most of them out."""
    layers = list(range(blocks) if which == "all" else range(blocks - max(1, blocks // 3), blocks))
    return layers[:: max(2, len(layers) // 2)] if options.quick else layers


def _rates(options: argparse.Namespace, which: str) -> int:
    return options.rates or (2 if options.quick else RATES[which])


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/sweep.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], help="default: all, quick piqa")
    parser.add_argument("--vocabulary", type=int, nargs="+", help="default: 8192, or the configuration's own")
    parser.add_argument("--documents", type=int, help="default: the workload's (PIQA-like 1838)")
    parser.add_argument(
        "--cells", choices=["all", "last-third", "both"], default="both", help="which blocks are edited"
    )
    parser.add_argument(
        "--rates", type=int, help="edits of each block; default 3 over all blocks, 9 over the last third"
    )
    parser.add_argument(
        "--weight", choices=WEIGHTS, default=WEIGHTS[0], help="of each block, which is edited; see docs/benchmarks.md"
    )
    parser.add_argument("--config", choices=CONFIGS, default="llama-12x384")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32, on a GPU bfloat16"
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: its own choice")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--lm-eval-batch", type=int, default=32)
    parser.add_argument("--lm-eval-cells", type=int, default=None, help="cells timed with lm-eval; default 2, quick 1")
    parser.add_argument("--laser-requests", type=int, help="requests timed LASER's way; default 64, quick 4")
    parser.add_argument("--without", choices=["lm-eval", "laser"], nargs="+", default=[], help="leave a rival out")
    parser.add_argument(
        "--quick", action="store_true", help="few documents and cells: about a minute, not to be quoted"
    )
    parser.add_argument("--json", type=Path, help="write all figures here, too")
    options = parser.parse_args(arguments)
    options.workload = options.workload or ("piqa" if options.quick else "all")
    options.vocabulary = options.vocabulary or [{"gptj": 50400, "llama-3.1-8b": 128256}.get(options.config, 8192)]
    options.lm_eval_cells = options.lm_eval_cells or (1 if options.quick else 2)
    return options


if __name__ == "__main__":
    main()
