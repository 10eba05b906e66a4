"""How long commands take before they compute anything: imports, reading tasks, and planning.

    python benchmarks/startup.py                     # five tasks of lm-eval, a Llama of 30 blocks
    python benchmarks/startup.py --suite SUITE       # a suite of your own
    python benchmarks/startup.py --repeats 1         # to see that it works

Each command runs in a new process, with one thread and files in the system's page cache. *first* is with an empty cache
folder of lrbench, *again* with what the first left there. The smallest of the repeats counts. CPU seconds, of user and
system, hardly depend on other processes; wall seconds do. `import` is a lower bound for commands that need the package.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from rich.table import Table

#: data set -> a document with the fields that lm-eval's task reads
DOCUMENTS: dict[str, dict[str, Any]] = {
    "piqa/plain_text": {"goal": "Open a jar.", "sol1": "Turn the lid.", "sol2": "Eat the lid.", "label": 0},
    "ai2_arc/ARC-Easy": {"question": "2 + 2?", "choices": {"text": ["4", "5"], "label": ["A", "B"]}, "answerKey": "A"},
    "hellaswag/default": {
        "activity_label": "Baking", "ctx_a": "He stirs.", "ctx_b": "then he", "endings": ["bakes.", "ba.", "b.", "."],
        "label": "0",
    },
    "winogrande/winogrande_xl": {
        "sentence": "Ann paid Bob because _ worked.", "option1": "Ann", "option2": "Bob", "answer": "2",
    },
    "openbookqa/main": {
        "question_stem": "The sun is", "choices": {"text": ["hot", "cold", "wet", "small"], "label": list("ABCD")},
        "answerKey": "A",
    },
}  # fmt: skip
#: the number of documents of each: as many as HellaSwag has
COUNT = 10_042
SUITE = """
name: startup
model: {pretrained: model}
datasets: data
tasks: [piqa, arc_easy, hellaswag, winogrande, openbookqa]
reducers: [svd, id, cr]
sweep:
  - {mode: each, layers: all, weights: [attn, mlp], rank: {keep: [0.5]}}
"""
CONFIGURATION = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass
class Startup:
    """The smallest times of a command, in seconds."""

    command: str
    cpu: float = float("inf")
    wall: float = float("inf")

    def measure(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Runs the command in a new process."""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode == 2 or "Traceback" in done.stderr:
            raise SystemExit(f"{self.command}: {done.stderr.strip()}")
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        self.cpu, self.wall = min(self.cpu, cpu), min(self.wall, wall)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        suite = options.suite or str(_write_suite(Path(folder)))
        rows = measure(suite, Path(folder), options.repeats)
    table = Table("command", "CPU s", "wall s", title="Start-up", title_style="bold")
    for row in rows:
        table.add_row(row.command, f"{row.cpu:.2f}", f"{row.wall:.2f}")
    versions = [f"{package} {metadata.version(package)}" for package in ("torch", "transformers", "lm-eval")]
    table.caption = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {', '.join(versions)}"
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def measure(suite: str, folder: Path, repeats: int) -> list[Startup]:
    """The times of all commands; each repeat begins with an empty cache folder."""
    lrbench = ["-m", "lrbench"]
    imports = {
        package: Startup(f"import {package}") for package in ("torch", "lm_eval.tasks", "transformers.modeling_utils")
    }
    help_, first, again = Startup("lrbench --help"), Startup("lrbench check, first"), Startup("lrbench check, again")
    for repeat in range(repeats):
        environment = os.environ | {
            "LRBENCH_CACHE": str(folder / f"cache-{repeat}"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        for package, row in imports.items():
            row.measure(["-c", f"import {package}"], environment)
        help_.measure([*lrbench, "--help"], environment)
        first.measure([*lrbench, "check", suite], environment)
        again.measure([*lrbench, "check", suite], environment)
    return [*imports.values(), help_, first, again]


def _write_suite(folder: Path) -> Path:
    """A suite, its model's configuration, and the data sets of its tasks."""
    for place, document in DOCUMENTS.items():
        split = datasets.Dataset.from_list([document] * COUNT)
        datasets.disable_progress_bars()
        for name in ("test", "validation"):
            split.save_to_disk(str(folder / "data" / place / name))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIGURATION))
    suite = folder / "suite.yaml"
    suite.write_text(SUITE)
    return suite


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--suite", metavar="SUITE", help="instead of the benchmark's own")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each command (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
