"""What factored inference gains: achieved speed-up against the ratio of multiply-adds, and where it starts to pay.

    python benchmarks/inference.py [--shapes 1024x1024 4096x1024 ...] [--keeps 0.1 0.25 ...] [--tokens 1 512]
                                   [--types LowRank ...] [--device D] [--dtype T] [--threads N] [--quick] [--json FILE]

Matrices are random: time depends on shapes alone. Each matrix is multiplied as it is and through its factors, in turns;
then a whole decoder block with all its matrices replaced. docs/benchmarks.md says what each number means. `--quick`
takes about a minute on two cores, and measures too little to quote.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import lrbench
from lrbench.models.factored_layers import factored
from lrbench.models.load import DTYPES
from lrbench.models.slot_search import find_slots
from lrbench.reducers.factors import Factors
from lrbench.reduction.speed_benchmark import prompts_of, time_once
from lrbench.system.device import choose_device
from lrbench.system.environment import environment, in_words

SHAPES = ["1024x1024", "4096x1024", "1024x4096", "4096x4096"]
KEEPS = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
WIDTHS = [1024, 2048]
ATTEMPT = 0.02  # seconds that one timing lasts at least


def main(arguments: list[str] | None = None) -> None:
    """Measures what the command line asks for, and prints it."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    report: dict[str, Any] = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/inference.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "dtype": dtype,
        "quick": options.quick,
        "repeats": options.repeats,
        "environment": environment(device),
        "matrices": [],
        "break_even": [],
        "blocks": [],
    }
    console = Console(width=150, highlight=False)
    console.print(in_words(report["environment"]) + f"; {report['environment']['threads']} threads, {dtype}")
    if options.quick:
        console.print("[bold]--quick: too few repeats to quote[/bold]")
    for shape in options.shapes:
        for name in options.types:
            for tokens in options.tokens:
                found = _matrix(shape, name, tokens, options.keeps, options.repeats, device, DTYPES[dtype])
                report["matrices"] += found
                if found:
                    report["break_even"].append(_break_even(shape, name, tokens, found))
        _save(options, report)
    for width in options.widths:
        report["blocks"] += _blocks(width, options, device, DTYPES[dtype])
        _save(options, report)
    for table in (_matrices(report), _break_evens(report), _block_table(report)):
        console.print(table)


def of_keep(name: str, shape: tuple[int, int], keep: float, device: torch.device, dtype: torch.dtype) -> Factors | None:
    """Random factors of a type, of the largest rank whose numbers fit keep * m * n; None where none does."""
    m, n = shape
    budget = keep * m * n
    largest = {
        "LowRank": lambda: int(budget / (m + n)),
        # k (m + n - k) = budget and k (m + n + k) = budget
        "Interpolative": lambda: min(m, int(((m + n) - math.sqrt(max(0.0, (m + n) ** 2 - 4 * budget))) / 2)),
        "CUR": lambda: int((-(m + n) + math.sqrt((m + n) ** 2 + 4 * budget)) / 2),
        "ColumnSubset": lambda: min(n, int(budget / m)),
    }
    k = min(largest[name](), m, n)
    if k < 1:
        return None

    def numbers(*size: int) -> torch.Tensor:
        return (torch.randn(*size) / math.sqrt(size[-1])).to(device, dtype)

    def positions(size: int) -> torch.Tensor:
        return torch.randperm(size)[:k].sort().values.to(device)

    torch.manual_seed(0)
    if name == "LowRank":
        return lrbench.LowRank(numbers(m, k), numbers(k, n))
    if name == "Interpolative":
        return lrbench.Interpolative(numbers(k, n), positions(m), numbers(m - k, k), side="rows")
    if name == "CUR":
        return lrbench.CUR(numbers(m, k), numbers(k, k), numbers(k, n), positions(n), positions(m))
    return lrbench.ColumnSubset(numbers(m, k), positions(n), in_features=n)


TYPES = ["LowRank", "Interpolative", "CUR", "ColumnSubset"]


@torch.no_grad()
def _matrix(
    shape: tuple[int, int], name: str, tokens: int, keeps: Sequence[float], repeats: int, device: torch.device,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:  # fmt: skip
    """One matrix at each keep, dense and factored in turns."""
    m, n = shape
    torch.manual_seed(0)
    x = torch.randn(tokens, n).to(device, dtype)
    dense = nn.Linear(n, m, bias=False).to(device, dtype)
    entries = []
    for keep in keeps:
        factors = of_keep(name, shape, keep, device, dtype)
        if factors is None:
            continue
        layer = factors.module().eval()
        plain, ours = _in_turns([lambda: dense(x), lambda layer=layer: layer(x)], repeats, device)  # type: ignore[misc]
        entries.append(
            {
                "shape": list(shape), "factors": name, "tokens": tokens, "keep": keep, "rank": factors.rank,
                "multiply_adds_ratio": m * n / factors.multiply_adds,
                "dense_seconds": plain, "factored_seconds": ours, "speed_up": plain / ours,
                "achieved": plain / ours * factors.multiply_adds / (m * n),
            }
        )  # fmt: skip
    return entries


def _break_even(shape: tuple[int, int], name: str, tokens: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of multiply-adds, and the rank, at which factors take as long as the matrix: between what was measured.

    By theory it is the share 1. None where factors were never, or always, the faster.
    """
    points = sorted(found, key=lambda entry: 1 / entry["multiply_adds_ratio"])
    entry: dict[str, Any] = {"shape": list(shape), "factors": name, "tokens": tokens, "share": None, "rank": None}
    top = points[-1]
    entry["theory_rank"] = top["rank"] if top["keep"] == 1 else None
    entry["always"], entry["never"] = all(p["speed_up"] > 1 for p in points), all(p["speed_up"] <= 1 for p in points)
    for low, high in itertools.pairwise(points):
        if low["speed_up"] > 1 >= high["speed_up"]:
            a, b = math.log(low["speed_up"]), math.log(high["speed_up"])
            part = a / (a - b)
            shares = [1 / p["multiply_adds_ratio"] for p in (low, high)]
            entry["share"] = shares[0] + part * (shares[1] - shares[0])
            entry["rank"] = round(low["rank"] + part * (high["rank"] - low["rank"]))
    return entry


def _blocks(width: int, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Two Llama blocks with every matrix replaced by low-rank factors: reading a prompt, and writing after it."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
    slots = find_slots(model).select(range(2), ["all"])
    multiply_adds = sum(slot.about.shape[0] * slot.about.shape[1] for slot in slots)
    prompt, new = max(options.tokens), 4 if options.quick else 16
    prompts = prompts_of(model, 1, prompt)
    entries = []
    for keep in options.keeps:
        made = {slot: of_keep("LowRank", slot.about.shape, keep, device, dtype) for slot in slots}
        stand_ins = {slot: factors for slot, factors in made.items() if factors is not None}
        if len(stand_ins) < len(slots):
            continue
        share = sum(factors.multiply_adds for factors in stand_ins.values()) / multiply_adds
        times: dict[str, list[tuple[float, float]]] = {"dense": [], "factored": []}
        for repeat in range(options.repeats + 1):
            with torch.no_grad():
                dense = _both(model, prompts, new)
                with factored(model, stand_ins):
                    ours = _both(model, prompts, new)
            if repeat:
                times["dense"].append(dense)
                times["factored"].append(ours)
        for place, (what, tokens) in enumerate((("prefill", prompt), ("decode", 1))):
            plain, fast = (statistics.median(one[place] for one in times[form]) for form in ("dense", "factored"))
            entries.append(
                {
                    "width": width, "what": what, "tokens": tokens, "keep": keep, "multiply_adds_ratio": 1 / share,
                    "dense_seconds": plain, "factored_seconds": fast, "speed_up": plain / fast,
                    "achieved": plain / fast * share,
                }
            )  # fmt: skip
    return entries


def _both(model: PreTrainedModel, prompts: torch.Tensor, new: int) -> tuple[float, float]:
    read, write = time_once(model, prompts, new)
    assert write is not None
    return read, write / new


def _in_turns(calls: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each call; calls alternate, so that all meet the same machine."""
    counts = []
    for call in calls:
        _seconds(call, 2, device)
        counts.append(max(1, math.ceil(ATTEMPT / max(1e-7, _seconds(call, 3, device)))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for index, call in enumerate(calls):
            times[index].append(_seconds(call, counts[index], device))
    return [statistics.median(found) for found in times]


def _seconds(call: Callable[[], Any], count: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count


def _matrices(report: dict[str, Any]) -> Table:
    table = _table(
        "One matrix", "shape", "factors", "tokens", "keep", "rank", "dense ms", "factored ms", "fewer MACs", "speed-up",
        "achieved",
    )  # fmt: skip
    for entry in report["matrices"]:
        table.add_row(
            "x".join(map(str, entry["shape"])), entry["factors"], str(entry["tokens"]), f"{entry['keep']:g}",
            str(entry["rank"]), *_figures(entry),
        )  # fmt: skip
    return table


def _break_evens(report: dict[str, Any]) -> Table:
    table = _table(
        "Where factoring starts to pay", "shape", "factors", "tokens", "below rank", "by theory", "below share of MACs"
    )
    for entry in report["break_even"]:
        measured = str(entry["rank"]) if entry["rank"] is not None else "always" if entry["always"] else (
            "never" if entry["never"] else "unclear"
        )  # fmt: skip
        theory = "" if entry["theory_rank"] is None else str(entry["theory_rank"])
        share = "" if entry["share"] is None else f"{entry['share']:.2f}"
        shape = "x".join(map(str, entry["shape"]))
        table.add_row(shape, entry["factors"], str(entry["tokens"]), measured, theory, share)
    return table


def _block_table(report: dict[str, Any]) -> Table:
    table = _table(
        "Two Llama blocks, all matrices low-rank", "width", "what", "tokens", "keep", "dense ms", "factored ms",
        "fewer MACs", "speed-up", "achieved",
    )  # fmt: skip
    for entry in report["blocks"]:
        table.add_row(
            str(entry["width"]), entry["what"], str(entry["tokens"]), f"{entry['keep']:g}", *_figures(entry)
        )  # fmt: skip
    return table


def _figures(entry: dict[str, Any]) -> list[str]:
    return [
        f"{1e3 * entry['dense_seconds']:.3g}", f"{1e3 * entry['factored_seconds']:.3g}",
        f"{entry['multiply_adds_ratio']:.2f}x", f"{entry['speed_up']:.2f}x", f"{100 * entry['achieved']:.0f}%",
    ]  # fmt: skip


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right")
    return table


def _save(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLUMNS, such as 4096x1024")
    return int(rows), int(columns)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/inference.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shapes", type=_shape, nargs="+", help=f"of W, out x in; default: {' '.join(SHAPES)}")
    parser.add_argument("--keeps", type=float, nargs="+", help="stored over dense parameters")
    parser.add_argument("--tokens", type=int, nargs="+", help="multiplied at once; default: 1 and 512")
    parser.add_argument("--types", choices=TYPES, nargs="+", default=TYPES, help="of factors")
    parser.add_argument("--widths", type=int, nargs="*", help="of the blocks; default: 1024 and 2048; none: no blocks")
    parser.add_argument("--repeats", type=int, help="of which the median counts; default 15, quick 3")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32, on a GPU bfloat16")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: its own choice")
    parser.add_argument("--quick", action="store_true", help="few shapes and repeats: not to be quoted")
    parser.add_argument("--json", type=Path, help="write all figures here, too")
    options = parser.parse_args(arguments)
    options.shapes = options.shapes or [_shape(text) for text in (SHAPES[:1] if options.quick else SHAPES)]
    options.keeps = options.keeps or ([0.1, 0.5, 1.0] if options.quick else KEEPS)
    options.tokens = options.tokens or ([1, 128] if options.quick else [1, 512])
    options.widths = (WIDTHS[:1] if options.quick else WIDTHS) if options.widths is None else options.widths
    options.repeats = options.repeats or (3 if options.quick else 15)
    return options


if __name__ == "__main__":
    main()
