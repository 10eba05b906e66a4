"""The base class of engines: one model, one set of tasks, jobs scored one by one."""

from __future__ import annotations

import copy
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import EvaluationError, LrbenchError
from lrbench.evaluation.interface import Job, Outcome, Partials, Step
from lrbench.evaluation.lm_eval_model import logits_are_finite, make_hflm
from lrbench.system.device import is_out_of_memory, synchronize
from lrbench.system.text import one_line
from lrbench.tasks.containment import OTHER_SEED, contained
from lrbench.tasks.frozen_requests import freeze
from lrbench.tasks.score import Samples, TaskScores
from lrbench.tasks.task_set import TaskSet, cut_into_windows


class BaseEngine(ABC):
    """An `Engine` bound to a model and tasks. It wraps the model for lm-eval and freezes the requests when made.

    A subclass implements `measure`, which scores the model in its current, edited state.

    Args:
        model: on its device, with its original weights.
        batch_size, max_length, add_bos, chat_template: as `make_hflm`.
        seed: draws few-shot examples; the default is lm-eval's.

    Attributes:
        lm: lm-eval's model.
        tasks: the tasks; the texts of tasks that measure per token are cut into windows of this model's tokens.
        requests: the frozen requests, with their hashes; `requests.hashes()` belongs into a cell's hash.
        partials: stores the answers of an engine that scores requests in parts; None: not stored.
        report: called with a `Step` after each piece of work, by engines that report progress.

    Raises:
        ModelError: lm-eval does not accept the model.
        TaskError: the tasks' requests cannot be built.
    """

    name: str
    partials: Partials | None = None
    report: Callable[[Step], None] | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: TaskSet,
        *,
        batch_size: int | str = 32,
        max_length: int | None = None,
        add_bos: bool | None = None,
        chat_template: bool = False,
        seed: int = OTHER_SEED,
    ) -> None:
        self.lm = make_hflm(
            model, tokenizer, batch_size=batch_size, max_length=max_length, add_bos=add_bos, chat_template=chat_template
        )
        with contained():
            self.tasks = cut_into_windows(tasks, self.lm)
        self.chat_template = chat_template
        self.seed = seed
        self.requests = freeze(self.tasks, self.lm, chat_template=chat_template, seed=seed)
        if self.requests.split_differently():  # lm-eval's cache would use the wrong position of a continuation
            self.lm.logits_cache = False
        self._requested_batch_size = batch_size

    def restricted(self, documents: Mapping[str, Collection[int]]) -> Self:
        """The same engine on some documents only; see `FrozenRequests.restricted`."""
        part = copy.copy(self)
        part.requests = self.requests.restricted(documents)
        return part

    def forget(self) -> None:  # noqa: B027 - most engines cache nothing
        """Drops everything computed with the model, because its weights may have been wrong."""

    @property
    def prefers_many(self) -> bool:
        """False: jobs are scored one by one."""
        return False

    @abstractmethod
    def measure(self, job: Job) -> tuple[TaskScores, Samples]:
        """Scores the model; `job`'s edit is in place."""

    def score(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Scores each job in turn. A job that fails yields an Outcome with an error; the next ones still run."""
        for job in jobs:
            yield self._attempt(job)

    def describe(self) -> dict[str, Any]:
        """The engine's name, version and settings, and the tasks (`FrozenRequests.describe`), for the manifest."""
        return {
            "name": self.name,
            "lm_eval": version("lm_eval"),
            "batch_size": self.lm.batch_size,
            "batch_size_asked": self._requested_batch_size,
            "max_length": self.lm.max_length,
            "add_bos": self.lm.add_bos_token,
            "chat_template": self.chat_template,
            **self.requests.describe(),
        }

    def check_generation(self) -> None:
        """Raises EvaluationError if a task generates text and the model's logits are not finite."""
        for prompt in self.requests.prompts[:1]:
            if not logits_are_finite(self.lm, prompt.args[0]):
                raise EvaluationError(
                    f"{prompt.task_name}: the logits are not finite; the weights hold NaN or overflow "
                    "their dtype (repair the checkpoint, or try float32 or another rank)"
                )

    def _attempt(self, job: Job) -> Outcome:
        with ExitStack() as stack:  # outside the try: a failure to undo an edit concerns more than this cell
            try:
                stack.enter_context(job.edited())
                synchronize(self.lm.device)
                started = time.perf_counter()
                with contained():
                    scores, samples = self.measure(job)
                return Outcome(job.cell, scores, samples, time.perf_counter() - started)
            except LrbenchError as error:
                failure = error
            except Exception as error:  # torch, lm-eval and task code may raise anything
                failure = self._failure(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Outcome(job.cell, error=failure)

    def _failure(self, error: Exception) -> EvaluationError:
        if is_out_of_memory(error):
            failure = EvaluationError(f"out of memory at batch size {self.lm.batch_size}; set a smaller batch_size")
        else:
            failure = EvaluationError(f"scoring failed: {one_line(error)}")
        # as text: a traceback would keep the tensors of its frames alive
        failure.add_note("".join(traceback.format_exception(error)))
        return failure
