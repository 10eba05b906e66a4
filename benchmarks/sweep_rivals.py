"""What the sweep engine is measured against: lm-eval once per cell, and LASER's way, a process per cell at batch 1."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lrbench.evaluation.interface import Job
from lrbench.models.load import LoadedModel
from lrbench.tasks.containment import contained
from lrbench.tasks.frozen_requests import FrozenRequests
from lrbench.tasks.score import Samples, sample
from sweep_floor import synchronize

LASER = Path(__file__).with_name("sweep_laser.py")


@dataclass(frozen=True)
class LmEvalTime:
    """`simple_evaluate` on some cells.

    Attributes:
        seconds: of each cell timed.
        samples: cell -> its documents, as in `Outcome.samples`.
        reason: why nothing was timed.
    """

    seconds: tuple[float, ...] = ()
    samples: dict[str, Samples] | None = None
    reason: str | None = None


class LmEval:
    """`lm_eval.simple_evaluate` of one task, the model wrapped and the TaskManager built once and beforehand.

    Makes a first evaluation of one document, untimed: imports and first use of libraries, lrbench's engines' too.
    """

    def __init__(self, loaded: LoadedModel, lm: HFLM, task: str, folder: Path) -> None:
        self._loaded, self._lm, self._task = loaded, lm, task
        with contained():
            self._manager = TaskManager(include_path=str(folder), include_defaults=False)
        self._evaluate(limit=1)

    def time(self, jobs: Sequence[Job], longest: int) -> LmEvalTime:
        """Times each job.

        Args:
            longest: tokens of the longest request; with it, the memory of a batch's logits is foreseen.
        """
        device, size = self._loaded.device, self._loaded.model.config.vocab_size
        needed = 3 * 4 * int(self._lm.batch_size) * longest * size  # the last batch's, this one's, their log-softmax
        if needed > 0.9 * (free := _free_memory(device)):
            return LmEvalTime(reason=f"its logits would take {needed / 2**30:.0f} GiB of {free / 2**30:.0f} free")
        seconds: list[float] = []
        samples: dict[str, Samples] = {}
        for job in jobs:
            with job.edited():
                synchronize(device)
                started = time.perf_counter()
                logged = self._evaluate()["samples"][self._task]
                seconds.append(time.perf_counter() - started)
            samples[job.cell] = [sample(self._task, entry["doc_id"], {}, entry["resps"]) for entry in logged]
        return LmEvalTime(tuple(seconds), samples)

    def _evaluate(self, **options: Any) -> dict[str, Any]:
        with contained():
            return simple_evaluate(
                model=self._lm, tasks=[self._task], task_manager=self._manager, bootstrap_iters=0, **options
            )


def largest_difference(ours: Samples, theirs: Samples) -> tuple[float, float]:
    """Largest difference of a request's log-likelihood: absolute, and relative to lm-eval's value."""
    mine = {entry["doc"]: entry["loglikelihoods"] for entry in ours}
    a = np.concatenate([mine[entry["doc"]] for entry in theirs])
    b = np.concatenate([entry["loglikelihoods"] for entry in theirs])
    difference = np.abs(a - b)
    return float(difference.max()), float((difference / np.maximum(np.abs(b), 1e-30)).max())


@dataclass(frozen=True)
class LaserTime:
    """One process that loads the model and scores some requests one by one.

    Attributes:
        start_seconds: the process, its imports and the model.
        request_seconds: of one request, the mean over `requests`.
    """

    start_seconds: float
    request_seconds: float
    requests: int

    def cell(self, requests: int) -> float:
        """Seconds for a cell with so many requests."""
        return self.start_seconds + requests * self.request_seconds


def time_laser(
    loaded: LoadedModel, checkpoint: Path, requests: FrozenRequests, *, sampled: int, max_length: int
) -> LaserTime:
    """Starts a process as LASER's scripts do for each cell; it scores every n-th request.

    Args:
        checkpoint: where the model is saved, if it is not there already.
    """
    if not checkpoint.exists():
        with contained():
            loaded.model.save_pretrained(checkpoint)
    pairs = [pair[1:] for pair in (*requests.pairs, *requests.windows)]
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(sampled, len(pairs))).astype(int)]
    file = checkpoint / "requests.json"
    file.write_text(json.dumps({"max_length": max_length, "requests": chosen}))
    dtype = str(loaded.dtype).removeprefix("torch.")
    command = [sys.executable, LASER, checkpoint, file, loaded.device, dtype, torch.get_num_threads()]
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{LASER.name} failed:\n{done.stderr}")
    scoring = float(done.stdout.split()[-1])
    return LaserTime(seconds - scoring, scoring / len(chosen), len(chosen))


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
