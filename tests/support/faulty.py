"""Tiny runs that a fault can hit at every named point, and what must not differ between them afterwards."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.reducers.registry import Registry
from lrbench.reduction.weight_job import WeightJob
from lrbench.results.directory import RunDirectory
from lrbench.run import model_run
from lrbench.run.model_run import ModelRun
from lrbench.run.partial_answers import RunPartials
from lrbench.run.recorder import RunResult, Stop
from lrbench.run.runner import run_suite
from lrbench.suite.load import Suite, load_suite
from lrbench.system import environment, faults
from tests.support.exports import save_tokenizer, write_task
from tests.support.suites import Heard
from tests.support.tiny_models import LLAMA

TIMES = ("allocate_seconds", "calibrate_seconds", "decompose_seconds", "evaluate_seconds", "inference")

PLAIN = """\
name: faulty
model: {pretrained: ./model, device: cpu}
task_paths: [./tasks]
tasks: [{task: which, limit: 4}]
reducers: [svd]
sweep:
  - {mode: each, layers: [0, 1], weights: [mlp.down], rank: {keep: 0.6}}
"""
PARTS = PLAIN + "frontier_memory: 1.0e-7\n"  # GiB: a batch is a part
RICH = (
    PLAIN.replace("reducers: [svd]", "reducers: [svd, asvd]").replace("layers: [0, 1]", "layers: [1]")
    + "inference: factored\nmeasure: inference\n"
    + "calibration: {text: ./calibration.txt, samples: 4, length: 16}\n"
)
CHOOSING = """\
name: choosing
model: {pretrained: ./model, device: cpu}
task_paths: [./tasks]
tasks: [{task: which, limit: 12}]
reducers: [svd]
sweep:
  - {mode: each, layers: [0, 1], weights: [mlp.down], rank: {keep: [0.4, 0.6]}}
  - {mode: greedy, layers: [0, 1], weights: [mlp.up], rank: {keep: 0.6}}
select: {validation: 0.5}
race: {block: 2}
screen: {documents: 3, top: 3}
"""


class Killed(BaseException):
    """As if the process had been killed: nothing may be done after it."""


class BrokenError(RuntimeError):
    """As if a bug, or the machine, had struck."""


def quicken(patched: pytest.MonkeyPatch) -> None:
    """Leaves out of runs what costs more than the runs, and takes small batches, so that there are several."""
    patched.setattr(environment, "_git_state", lambda: None)
    patched.setattr(environment, "_version", cache(environment._version))
    patched.setitem(memory.TOKENS, "cpu", 32)
    patched.setattr(model_run, "measure_inference", lambda *_: None)  # hundreds of passes


def write_parts(folder: Path) -> None:
    """A model of two blocks, its tokenizer, tasks and calibration text."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**LLAMA, "num_hidden_layers": 2}, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder / "model")
    save_tokenizer(folder / "model", "llama")
    write_task(folder / "tasks")
    (folder / "calibration.txt").write_text(
        "\n\n".join(f"w{n % 90 + 4} w{n * 7 % 90 + 4} w{n % 11 + 5}" for n in range(99))
    )


def suite_of(folder: Path, text: str, *overrides: str) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(dedent(text))
    return load_suite(path, overrides=overrides)


def kind_of(path: Path) -> str:
    """Which of a run's files it is: `manifest`, `rows`, `environments`, `samples`, `partial`, or `cache`."""
    if path.parent.name in ("samples", "partial"):
        return path.parent.name
    return path.stem if path.stem in ("manifest", "rows", "environments") else "cache"


class Fault:
    """A hook that strikes at the n-th write of a kind of file, at one point of it; a kill strikes at every later point.

    Attributes:
        hits: how often the run came by each (kind, point).
    """

    def __init__(
        self,
        at: tuple[str, str] | None = None,
        number: int = 1,
        kind: type[BaseException] = BrokenError,
        *,
        torn: bool = False,
    ) -> None:
        self.at, self.number, self.kind, self.torn = at, number, kind, torn
        self.hits: Counter[tuple[str, str]] = Counter()
        self.struck = False

    def __call__(self, name: str, path: Path) -> None:
        assert name in faults.POINTS, f"{name}: not in POINTS"
        here = kind_of(path), name
        self.hits[here] += 1
        if self.struck and self.kind is Killed:
            raise Killed(name)
        if here == self.at and self.hits[here] == self.number and not self.struck:
            self.struck = True
            if self.torn:
                tear(path)
            raise self.kind(name)


def tear(path: Path) -> None:
    """Takes from the disk half of what was written last, as a power cut may before it is synchronised."""
    replaced = kind_of(path) in ("manifest", "samples", "cache")
    # the newest, since an earlier fault may have left a temporary file
    file = max(path.parent.glob(".lrbench-*.tmp"), key=lambda each: each.stat().st_mtime_ns) if replaced else path
    content = file.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    file.write_bytes(content[: (start + len(content)) // 2])


#: where a test steps in: the function, and whether before or after it
PLACES: dict[str, tuple[type, str, str]] = {
    "weight prepared": (WeightJob, "prepare", "after"),
    "states advanced": (Sweeper, "advance", "after"),
    "edit in place": (Sweeper, "score", "before"),
    "requests answered": (Sweeper, "score", "after"),
    "answers kept": (RunPartials, "add", "after"),
    "row made": (ModelRun, "_row", "after"),
}


@contextmanager
def at(place: str, do: Callable[[], object], number: int | None = 1) -> Iterator[None]:
    """Does something at the n-th time that a run comes by a place, as a plugin or the machine may; None: at each."""
    owner, name, when = PLACES[place]
    original, calls = getattr(owner, name), itertools.count(1)

    def wrapped(*args: Any, **options: Any) -> Any:
        strikes = number in (None, next(calls))
        if strikes and when == "before":
            do()
        result = original(*args, **options)
        if strikes and when == "after":
            do()
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, wrapped)
        yield


@dataclass
class Subject:
    """A suite, to be run again and again."""

    folder: Path
    text: str

    @cached_property
    def suite(self) -> Suite:
        return suite_of(self.folder, self.text)

    @cached_property
    def registry(self) -> Registry:
        return Registry.load(self.suite.plugins)

    def run(self, out: Path, heard: Heard | None = None, stop: Stop | None = None, **options: Any) -> RunResult:
        return run_suite(self.suite, self.registry, out, progress=heard or Heard(), stop=stop, **options)


def facts(directory: RunDirectory) -> dict[str, Any]:
    """Everything that a run says of its cells but the times, by cell; not on how many cores, which may change."""
    left_out = {*TIMES, "environment"}
    return {cell: (row.model_dump(exclude=left_out), directory.samples(cell)) for cell, row in directory.rows().items()}


def scored_lines(directory: RunDirectory) -> Mapping[str, int]:
    """How often each cell stands in the file as scored."""
    rows = map(json.loads, directory.rows_file.read_text().splitlines())
    return Counter(row["cell"] for row in rows if row["status"] == "ok")
