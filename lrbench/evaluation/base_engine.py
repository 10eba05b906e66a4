"""What engines have in common: one model, one set of tasks, one job after the other."""

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
from lrbench.tasks.score import Samples, Scores
from lrbench.tasks.task_set import TaskSet, cut_into_windows


class BoundEngine(ABC):
    """An `Engine` bound to a model and tasks: it wraps the model for lm-eval and freezes the requests when it is made.

    A subclass says how the model, as it stands edited, is measured.

    Args:
        model: on its device, with its original weights.
        batch_size, max_length, add_bos, chat_template: as `make_hflm`.
        seed: draws few-shot examples; the default is lm-eval's.

    Attributes:
        lm: lm-eval's model.
        tasks: the tasks, with texts cut into windows of this model's tokens where their tokens are what is counted.
        requests: the frozen requests, with their hashes; `requests.hashes()` belongs into a cell's hash.
        partials: where an engine that scores requests in parts keeps the answers to each; None: nowhere.
        report: told what was done for each job, by an engine that knows it.

    Raises:
        ModelError: lm-eval cannot take the model.
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
        if self.requests.split_differently():  # lm-eval's cache then takes the continuation's place from another one
            self.lm.logits_cache = False
        self._asked_batch_size = batch_size

    def restricted(self, documents: Mapping[str, Collection[int]]) -> Self:
        """The same engine on some documents only; see `FrozenRequests.restricted`."""
        part = copy.copy(self)
        part.requests = self.requests.restricted(documents)
        return part

    def forget(self) -> None:  # noqa: B027 - most keep nothing
        """Drops whatever was computed with the model: it may not have been the model."""

    @property
    def prefers_many(self) -> bool:
        """No: jobs are scored one by one."""
        return False

    @abstractmethod
    def measure(self, job: Job) -> tuple[Scores, Samples]:
        """Scores the model as it stands, with `job`'s edit in place."""

    def score(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Scores each job in turn; one that cannot be scored yields an Outcome with an error, and the next goes on."""
        for job in jobs:
            yield self._attempt(job)

    def describe(self) -> dict[str, Any]:
        """The engine, what it scores with, and the tasks (`FrozenRequests.describe`)."""
        return {
            "name": self.name,
            "lm_eval": version("lm_eval"),
            "batch_size": self.lm.batch_size,
            "batch_size_asked": self._asked_batch_size,
            "max_length": self.lm.max_length,
            "add_bos": self.lm.add_bos_token,
            "chat_template": self.chat_template,
            **self.requests.describe(),
        }

    def check_generation(self) -> None:
        """Raises EvaluationError where the tasks want text, and the model's logits are not finite."""
        for prompt in self.requests.prompts[:1]:
            if not logits_are_finite(self.lm, prompt.args[0]):
                raise EvaluationError(
                    f"{prompt.task_name}: the logits are not finite; the weights hold NaN or overflow "
                    "their dtype (mend the checkpoint, or try float32 or another rank)"
                )

    def _attempt(self, job: Job) -> Outcome:
        with ExitStack() as stack:  # an edit that cannot be undone is no matter of one cell: it goes up
            try:
                stack.enter_context(job.edited())
                synchronize(self.lm.device)
                started = time.perf_counter()
                with contained():
                    scores, samples = self.measure(job)
                return Outcome(job.cell, scores, samples, time.perf_counter() - started)
            except LrbenchError as error:
                failure = error
            except Exception as error:  # torch, lm-eval and the tasks' code raise whatever they like
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
