"""The benchmarks run and say what they promise; what they measure is no test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from tests.support.synthetic_run import edit, row, simple_run

FOLDER = Path(__file__).parents[2] / "benchmarks"
SWEEP, MEMORY = FOLDER / "sweep.py", FOLDER / "memory.py"
DECOMPOSE = FOLDER / "decompose.py"
COLUMNS = [
    "workload", "vocabulary", "blocks", "cells", "engine s", "floor s", "engine/floor", "lm-eval s", "× lm-eval",
    "LASER s", "× LASER", "largest Δ", "set-up s", "s/cell/block", "s/cell", "its floor", "tokens / asked",
    "head / asked", "GFLOP/s", "of peak",
]  # fmt: skip


@pytest.mark.slow
def test_the_sweep_benchmark_prints_engine_floor_and_rivals_side_by_side(tmp_path):
    file = tmp_path / "figures.json"
    command = "--config tiny --workload piqa --vocabulary 64 --documents 4 --quick --lm-eval-cells 2 --laser-requests 2"
    command += " --weight attn.q"
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
        assert 0 < sweep["lm_eval"]["ratio_with_setup"] < sweep["lm_eval"]["ratio"]
        assert sweep["laser"]["requests"] == 2
        assert not sweep["targets"]


@pytest.mark.slow
def test_the_memory_benchmark_prints_engine_and_lm_eval_side_by_side(tmp_path):
    file = tmp_path / "figures.json"
    command = "--config tiny --vocabulary 20000 --documents 24 --device cpu --threads 1"
    done = subprocess.run(
        [sys.executable, MEMORY, *command.split(), "--json", file],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("engine ", "lm-eval ", "20,000", "peak above MiB", "times less", "counted: "):
        assert words in done.stdout
    report = json.loads(file.read_text())
    engine, lm_eval = report["engine"], report["lm-eval"]
    assert engine["batch_tokens"] == lm_eval["batch_tokens"] == engine["sweep"]["batch_tokens"]
    assert engine["requests"] == lm_eval["requests"] == 48
    logits = (
        4 * 20_000 * lm_eval["batch_tokens"] / 2
    )  # lm-eval's, of a batch whose rows are half as long as the longest
    assert lm_eval["bytes_above"] > logits
    assert 0 < engine["bytes_above"] < lm_eval["bytes_above"]
    assert report["ratio"] == lm_eval["bytes_above"] / engine["bytes_above"]


def decompose(tmp_path, command):
    done = subprocess.run(
        [sys.executable, DECOMPOSE, *command.split(), "--json", tmp_path / "figures.json"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "figures.json").read_text())


@pytest.mark.slow
def test_the_decomposition_benchmark_holds_every_method_against_its_rival(tmp_path):
    shown, report = decompose(tmp_path, "--shapes 64x96 --threads 1 --repeats 1 --without-memory")
    weights, almanac = report["matrices"]
    rivals = {"svd": "torch.linalg.svd", "rsvd": "torch.svd_lowrank", "id": "scipy interp_decomp"}
    for entry in (weights, almanac):
        methods = entry["methods"]
        assert {name for name in methods if methods[name]["rival"]} == set(rivals)
        for name, rival in rivals.items():
            assert methods[name]["speedup"] == methods[rival]["seconds"] / methods[name]["seconds"]
            assert name in shown
            assert rival in shown
        assert all(ratio >= 1 - 1e-6 for one in methods.values() for ratio in one["ratios"])
        # Equal errors are what makes the times comparable.
        for name in ("svd", "id"):
            for ours, theirs in zip(methods[name]["ratios"], methods[rivals[name]]["ratios"], strict=True):
                assert abs(ours / theirs - 1) < 0.01
        assert all(
            o < t for o, t in zip(methods["rsvd"]["ratios"], methods["torch.svd_lowrank"]["ratios"], strict=True)
        )
    assert weights["methods"]["id"]["target"] == 10
    assert "1 thread(s)" in shown
    assert "(≥ 10)" in shown
    assert "scipy 1." in shown


@pytest.mark.slow
def test_the_crossovers_of_the_algorithms_are_measured_beside_the_constants_in_use(tmp_path):
    shown, report = decompose(tmp_path, "--crossovers --quick")
    [found] = report["crossovers"]
    assert [len(table["rows"]) > 0 for table in found["tables"]] == [True] * 4
    for constant in ("LAPACK_FROM", "GRAM_WORTH"):
        assert constant in shown


def test_the_memory_of_a_method_is_measured_in_a_process_of_its_own(tmp_path):
    numpy.save(tmp_path / "matrix.npy", numpy.random.default_rng(0).normal(size=(300, 2000)).astype("float32"))
    code = f"from decompose_memory import peak_bytes; print(peak_bytes({str(tmp_path / 'matrix.npy')!r}, 'id', 1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=DECOMPOSE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None" or 300 * 300 * 8 < int(done.stdout) < 40 * 300 * 2000 * 8


@pytest.mark.slow
def test_the_inference_benchmark_sets_speed_up_against_multiply_adds_and_finds_the_break_even(tmp_path):
    file = tmp_path / "figures.json"
    command = "--quick --shapes 64x96 --widths 64 --tokens 1 16 --keeps 0.2 1.0 --repeats 2 --device cpu --threads 1"
    done = subprocess.run(
        [sys.executable, FOLDER / "inference.py", *command.split(), "--json", file],
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


@pytest.mark.slow
def test_the_race_benchmark_races_over_a_runs_scores_and_says_what_it_spares_and_chooses(tmp_path):
    dice = numpy.random.default_rng(0)

    def cells():
        yield row("base"), {"t": [1.0] * 300}
        for number in range(5):
            right = dice.random(300) > (0.0, 0.3, 0.5, 0.7, 0.9)[number]
            edits = [edit(number)]
            yield row(f"c{number}", reducer="svd", label="svd", mode="each", edits=edits), {"t": right.astype(float)}

    simple_run(tmp_path / "run", list(cells()))
    command = [
        sys.executable,
        FOLDER / "race.py",
        "--run",
        tmp_path / "run",
        "--quick",
        "--output",
        tmp_path / "out.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [sweep] = json.loads((tmp_path / "out.json").read_text())["sweeps"]
    assert (sweep["what"], sweep["cells"], sweep["documents"]) == ("svd on t", 5, 300)
    assert sweep["same_choice"] == 1.0
    assert 1 < sweep["least"] <= sweep["times_fewer"] <= sweep["most"] <= 5
    assert "svd on t" in done.stdout


@pytest.mark.slow
def test_the_scaling_benchmark_sets_workers_against_the_ideal_and_names_the_limit(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'lrbench[ray]'")
    file = tmp_path / "figures.json"
    command = "--documents 4 --workers 1 --simulate 8 512"
    done = subprocess.run(
        [sys.executable, FOLDER / "scaling.py", *command.split(), "--json", file],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("Measured: almanac", "Simulated: 80 blocks × 7 weights × 8 ranks", "limited by"):
        assert words in done.stdout
    report = json.loads(file.read_text())
    assert report["cells"] == 97
    assert [run["workers"] for run in report["runs"]] == [0, 1]
    assert all(run["sweep"] > 0 for run in report["runs"])
    for schedule in report["schedules"]:
        assert schedule["makespan"] >= schedule["ideal"] == schedule["work"] / schedule["workers"]
        rest = sum(schedule["parts"].values())
        assert schedule["makespan"] == pytest.approx(schedule["ideal"] + rest)


@pytest.mark.slow
def test_the_startup_benchmark_times_a_first_and_a_second_check_beside_imports(tmp_path):
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, FOLDER / "startup.py", "--repeats", "1", "--json", file],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    checks = ["lrbench --help", "lrbench check, first", "lrbench check, again"]
    assert [row["command"] for row in rows][-3:] == checks
    assert all(row["cpu"] > 0 and row["wall"] > 0 for row in rows)
    assert all(command in done.stdout for command in checks)
