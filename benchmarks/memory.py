"""How much memory scoring takes above the weights: the sweep engine and lm-eval, at the same batch of tokens.

    python benchmarks/memory.py [--vocabulary N] [--documents N] [--batch N] [--config C] [--device D] [--json FILE]

Each is measured in a process of its own, on the same random-weight model and synthetic PIQA-like task.
docs/benchmarks.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from rich.console import Console
from rich.table import Table

from lrbench.evaluation.interface import Job
from lrbench.evaluation.lm_eval_model import make_hflm
from lrbench.evaluation.sweep import SweepEngine
from lrbench.models.edit import edited
from lrbench.models.load import LoadedModel
from lrbench.system.device import choose_device
from lrbench.system.environment import environment, in_words
from lrbench.tasks.containment import contained
from lrbench.tasks.frozen_requests import freeze
from lrbench.tasks.load import load_tasks
from sweep_cells import make_cells
from sweep_workloads import CONFIGS, WORKLOADS, make_model, write_task

WORKLOAD = WORKLOADS["piqa"]
TARGET = 5.0
SIDES = ("engine", "lm-eval")


def main(arguments: list[str] | None = None) -> None:
    """Measures both sides, each in its own process, and prints them."""
    options = _parse(arguments)
    if options.measure:
        _measure(options)
        return
    device = choose_device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    report: dict[str, Any] = {
        "schema": 1,
        "command": " ".join(
            ["python", "benchmarks/memory.py", *(arguments if arguments is not None else sys.argv[1:])]
        ),
        "config": options.config, "dtype": dtype, "vocabulary": options.vocabulary, "documents": options.documents,
        "batch_size_lm_eval": options.batch, "environment": environment(device),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        task = write_task(WORKLOAD, options.documents, options.vocabulary, Path(folder))
        for side in SIDES:
            print(f"{side} on {options.documents:,} documents", file=sys.stderr, flush=True)
            report[side] = _in_a_process(options, device, dtype, side, task, Path(folder))
    report["ratio"] = report["lm-eval"]["bytes_above"] / report["engine"]["bytes_above"]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    _show(report)


def _in_a_process(
    options: argparse.Namespace, device: torch.device, dtype: str, side: str, task: str, folder: Path
) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--measure", side, "--task", task, "--folder", folder, "--config", options.config,
        "--vocabulary", options.vocabulary, "--batch", options.batch, "--device", device, "--dtype", dtype,
        *(["--threads", options.threads] if options.threads else []),
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measuring {side} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(options: argparse.Namespace) -> None:
    """One side: loads the model, remembers what is in use, scores, and prints by how much the peak was above."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    loaded = make_model(options.config, options.vocabulary, device, options.dtype)
    with contained():
        manager = TaskManager(include_path=str(options.folder), include_defaults=False)
    lm = make_hflm(loaded.model, loaded.tokenizer, batch_size=options.batch, max_length=WORKLOAD.max_length)
    tasks = load_tasks([SimpleNamespace(task=options.task, limit=None, num_fewshot=None)], [options.folder])
    requests = freeze(tasks, lm)
    batch_tokens = options.batch * max(len(context) + len(target) - 1 for _, context, target in requests.pairs)
    about: dict[str, Any] = {"requests": len(requests.pairs), "batch_tokens": batch_tokens}
    del requests
    blocks = len(loaded.inventory.blocks)
    cells = make_cells(loaded, [blocks // 2, blocks - 1], 1)
    jobs = [Job("baseline", None, lambda: edited({})), *(cell.job() for cell in cells)]

    def lm_eval() -> None:
        with contained():
            simple_evaluate(model=lm, tasks=[options.task], task_manager=manager, bootstrap_iters=0)

    def engine() -> None:
        """All of it: requests, self-check, the baseline, a cell in the middle, and the last block."""
        sweep = SweepEngine(
            loaded.model, loaded.tokenizer, tasks, tokens=batch_tokens, batch_size=options.batch,
            max_length=WORKLOAD.max_length,
        )  # fmt: skip
        for outcome in sweep.score(jobs):
            if outcome.error is not None:
                raise outcome.error
        about.update(cells=len(jobs), sweep=sweep.describe()["sweep"])

    started = time.perf_counter()
    about |= _peak(device, {"engine": engine, "lm-eval": lm_eval}[options.measure])
    about |= {"seconds": time.perf_counter() - started, "weights_bytes": _weights(loaded)}
    print(json.dumps(about))


def _peak(device: torch.device, work: Callable[[], None]) -> dict[str, Any]:
    """By how many bytes the peak during `work` is above what was in use before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        peak = torch.cuda.max_memory_allocated(device)
        return {"bytes_before": before, "bytes_above": peak - before, "counted": "torch.cuda.max_memory_allocated"}
    reset = True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        reset = False
    before = _status("VmRSS" if reset else "VmHWM")
    work()
    counted = "peak resident set" if reset else "peak resident set above the peak before: may be too low"
    return {"bytes_before": before, "bytes_above": _status("VmHWM") - before, "counted": counted}


def _status(key: str) -> int:
    """Bytes, of what Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def _weights(loaded: LoadedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())


def _show(report: dict[str, Any]) -> None:
    console = Console(width=120, highlight=False)
    console.print(f"{in_words(report['environment'])}; {report['environment']['threads']} threads")
    console.print(f"{report['config']}, random weights, {report['dtype']}; {report['command']}")
    table = Table(title="Memory above the weights", title_justify="left", caption_justify="left")
    for column in ("", "vocabulary", "documents", "batch tokens", "weights MiB", "peak above MiB", "times less", "s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for side in SIDES:
        found = report[side]
        less = f"{report['ratio']:.1f}" + (f" (≥ {TARGET:g})" if report["config"] != "tiny" else "")
        table.add_row(
            side, f"{report['vocabulary']:,}", f"{report['documents']:,}", f"{found['batch_tokens']:,}",
            f"{found['weights_bytes'] / 2**20:,.0f}", f"{found['bytes_above'] / 2**20:,.0f}",
            less if side == "engine" else "", f"{found['seconds']:.1f}",
        )  # fmt: skip
    table.caption = "In brackets: the target. Seconds: the engine's of several cells, lm-eval's of one."
    console.print(table)
    sweep = report["engine"]["sweep"]
    console.print(f"engine: {sweep['mode']}, {sweep['parts']} part(s); counted: {report['engine']['counted']}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/memory.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--documents", type=int, default=100, help="PIQA-like; default 100")
    parser.add_argument("--batch", type=int, default=32, help="rows of lm-eval's batches; default 32")
    parser.add_argument("--config", choices=CONFIGS, default="llama-12x384")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32, on a GPU bfloat16"
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: its own choice")
    parser.add_argument("--json", type=Path, help="write all figures here, too")
    for internal in ("--measure", "--task", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
