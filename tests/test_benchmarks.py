"""The benchmarks run and say what they promise; what they measure is no test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).parent.parent / "benchmarks" / "sweep.py"
COLUMNS = [
    "workload", "vocabulary", "blocks", "cells", "engine s", "floor s", "engine/floor", "lm-eval s", "× lm-eval",
    "LASER s", "× LASER", "largest Δ", "set-up s", "s/cell/block", "s/cell", "its floor", "tokens / asked",
    "head / asked", "GFLOP/s", "of peak",
]  # fmt: skip


def test_the_sweep_benchmark_prints_engine_floor_and_rivals_side_by_side(tmp_path):
    file = tmp_path / "figures.json"
    command = "--config tiny --workload piqa --vocabulary 64 --documents 4 --quick --lm-eval-cells 2 --laser-requests 2"
    done = subprocess.run(
        [sys.executable, SWEEP, *command.split(), "--device", "cpu", "--json", file],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    headers = [line for line in done.stdout.splitlines() if line.startswith("┃")]
    printed = {cell.strip() for line in headers for cell in line.strip("┃").split("┃")}
    assert {column for column in COLUMNS if not any(cell.startswith(column) for cell in printed)} == set()
    report = json.loads(file.read_text())
    assert [sweep["blocks"] for sweep in report["sweeps"]] == ["all", "last-third"]
    for sweep in report["sweeps"]:
        assert len(sweep["cell_seconds"]) == sweep["cells"]
        assert 0 < sweep["floor_without_softmax_seconds"] <= sweep["floor_seconds"]
        assert sweep["lm_eval"]["largest_difference"]["absolute"] < 1e-3
        assert sweep["laser"]["requests"] == 2
        assert not sweep["targets"]


def test_the_inference_benchmark_sets_speed_up_against_multiply_adds_and_finds_the_break_even(tmp_path):
    file = tmp_path / "figures.json"
    command = "--quick --shapes 64x96 --widths 64 --tokens 1 16 --keeps 0.2 1.0 --repeats 2 --device cpu --threads 1"
    done = subprocess.run(
        [sys.executable, SWEEP.with_name("inference.py"), *command.split(), "--json", file],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("One matrix", "Where factoring starts to pay", "Two Llama blocks", "fewer MACs", "achieved"):
        assert words in done.stdout
    report = json.loads(file.read_text())
    assert {entry["factors"] for entry in report["matrices"]} == {"LowRank", "Interpolative", "CUR", "ColumnSubset"}
    for entry in report["matrices"]:
        assert entry["multiply_adds_ratio"] >= 1 / entry["keep"] * 0.999  # the rank fits the budget
        assert entry["achieved"] * entry["multiply_adds_ratio"] == pytest.approx(entry["speed_up"])
    assert len(report["break_even"]) == 8
    low_rank = next(entry for entry in report["break_even"] if entry["factors"] == "LowRank")
    assert low_rank["theory_rank"] == 64 * 96 // (64 + 96)
    assert {entry["what"] for entry in report["blocks"]} == {"prefill", "decode"}
