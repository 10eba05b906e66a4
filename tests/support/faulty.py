"""Tiny runs that a fault can hit at every named point, and what must not differ between them afterwards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lrbench.evaluation.sweep import sizes as memory
from lrbench.reducers.registry import Registry
from lrbench.results.directory import RunDirectory
from lrbench.run import model_run
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
TEXTS = PLAIN.replace("[{task: which, limit: 4}]", "[{task: which, limit: 4}, {task: said, limit: 2}]")
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
SAID = """\
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["w3"], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
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
    (folder / "tasks" / "said.yaml").write_text(SAID.replace("FILE", str(folder / "tasks" / "which.jsonl")))
    (folder / "calibration.txt").write_text(
        "\n\n".join(f"w{n % 90 + 4} w{n * 7 % 90 + 4} w{n % 11 + 5}" for n in range(99))
    )


def suite_of(folder: Path, text: str, *overrides: str) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(dedent(text))
    return load_suite(path, overrides=overrides)


class Fault:
    """A hook that strikes at the n-th hit of a point; a kill strikes at every point after it, too.

    Attributes:
        hits: of each point, as far as the run came.
    """

    def __init__(
        self, point: str = "", number: int = 1, kind: type[BaseException] = BrokenError, torn: Path | None = None
    ) -> None:
        self.point, self.number, self.kind, self.torn = point, number, kind, torn
        self.hits: Counter[str] = Counter()
        self.struck = False

    def __call__(self, name: str) -> None:
        assert name in faults.POINTS, f"{name}: not in POINTS"
        if not name.startswith("frontier.") or self.hits["scoring.checked"]:
            self.hits[name] += 1  # what fails in an engine's check of itself is for the engine to go by
        if self.struck and self.kind is Killed:
            raise Killed(name)
        if name == self.point and self.hits[name] == self.number and not self.struck:
            self.struck = True
            if self.torn is not None:
                tear(self.torn, name.partition(".")[0])
            raise self.kind(name)


def tear(out: Path, kind: str) -> None:
    """Takes from the disk half of what was written last, as a power cut may before it is synchronised."""
    if kind in ("rows", "environments"):
        file = out / f"{kind}.jsonl"
    else:
        folder = out if kind == "manifest" else out / kind
        suffix = "*.jsonl" if kind == "partial" else "*.tmp"
        file = max(folder.glob(suffix), key=lambda path: path.stat().st_mtime_ns)
    content = file.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    file.write_bytes(content[: (start + len(content)) // 2])


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
