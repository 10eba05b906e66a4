"""The sweep engine: each cell runs only the blocks from its first edited block on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import EvaluationError, LrbenchError
from lrbench.evaluation.frozen import FrozenEngine
from lrbench.evaluation.interface import Job, Outcome, Partial, Step
from lrbench.evaluation.sweep.answers import Tally
from lrbench.evaluation.sweep.queries import make_queries
from lrbench.evaluation.sweep.sweeper import MODES, QueryPart, Sweeper
from lrbench.models.slot_search import find_slots
from lrbench.system.device import is_out_of_memory, synchronize
from lrbench.system.text import silent
from lrbench.tasks.containment import contained
from lrbench.tasks.score import Answers, score
from lrbench.tasks.task_set import TaskSet


@dataclass
class _JobProgress:
    """One job's answers so far.

    Attributes:
        known: the parts (numbered from 1) that an earlier process has answered.
    """

    job: Job
    tally: Tally
    known: set[int] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: LrbenchError | None = None

    @property
    def block(self) -> int:
        """The first block that must run."""
        return self.job.first_block or 0


class SweepEngine(FrozenEngine):
    """Scores a sweep's cells. Scores equal lm-eval's up to rounding and do not depend on the order of the cells.

    The hidden states that enter a cell's first edited block are computed once for all cells (the frontier, which moves
    up because cells come in ascending order). Prefixes common to several requests are computed once per row, and
    logits only at scored positions. Before scoring, a self-check compares a few requests with the plain model and
    disables each optimisation that the model does not support, down to lm-eval's own forward passes. lm-eval generates
    text.

    Args:
        tokens, frontier_bytes, mode, notify: as `Sweeper`.
        options: as `BaseEngine`.
    """

    name = "sweep"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: TaskSet,
        *,
        tokens: int | None = None,
        frontier_bytes: int | None = None,
        mode: str = MODES[0],
        notify: Callable[[str], None] = silent,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, tasks, **options)
        self._model = model
        self._sweeper_options: dict[str, Any] = {
            "tokens": tokens, "frontier_bytes": frontier_bytes, "mode": mode, "notify": notify
        }  # fmt: skip
        self._parent: Self | None = None  # the engine that this one restricts to some documents
        self._unbilled = 0.0  # seconds spent moving the frontier that no job's time includes yet

    @cached_property
    def sweeper(self) -> Sweeper | None:
        """The sweeper, made and self-checked at first use. None if the tasks only generate text."""
        queries = make_queries(self._request_tokens(), self.lm.max_length)
        if not queries:
            return None
        if self._parent is not None and self._parent.sweeper is not None:
            return self._parent.sweeper.restricted(queries)
        self._sweeper_options["notify"]("comparing the sweep engine with the plain model on a few requests")
        with contained():
            return Sweeper(self._model, queries, **self._sweeper_options)

    def forget(self) -> None:
        """Drops everything computed with the model; the self-check runs again before the next scoring."""
        self.__dict__.pop("sweeper", None)

    def restricted(self, documents: Mapping[str, Collection[int]]) -> Self:
        """The same engine on some documents only; the result of the self-check is reused."""
        part = super().restricted(documents)
        part.__dict__.pop("sweeper", None)
        part._parent = self._parent or self
        part._unbilled = 0.0
        return part

    @cached_property
    def blocks(self) -> int:
        """The number of decoder blocks."""
        return len(find_slots(self._model).blocks)

    @property
    def prefers_many(self) -> bool:
        """True if requests are split into parts: each call of `score` then recomputes the states of each part."""
        return self.sweeper is not None and len(self.sweeper.parts) > 1

    def score(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Scores each job in turn. A job that fails yields an Outcome with an error; the next ones still run.

        If the hidden states of all requests do not fit the memory, requests are split into parts, all jobs are scored
        on each part, and the outcomes come at the end. `partials` stores a job's answers to a part before the next job
        begins.
        """
        if self.sweeper is None or self.sweeper.mode == "none":
            yield from super().score(jobs)
        elif len(self.sweeper.parts) == 1:
            for job in jobs:
                yield from self._score_together(self.sweeper, [job])
        else:
            yield from self._score_together(self.sweeper, list(jobs))

    def describe(self) -> dict[str, Any]:
        """Adds `Sweeper.describe` and the memory budget of the frontier, in GiB or `auto`."""
        if not self.sweeper:
            return super().describe()
        budget = self._sweeper_options["frontier_bytes"]
        frontier_memory = "auto" if budget is None else budget / 2**30
        return {**super().describe(), "sweep": {**self.sweeper.describe(), "frontier_memory": frontier_memory}}

    def _score_together(self, sweeper: Sweeper, jobs: Sequence[Job]) -> Iterator[Outcome]:
        progresses = [self._begin(sweeper, job) for job in jobs]
        several = len(sweeper.parts) > 1
        for number, part in enumerate(sweeper.parts, 1):
            waiting = [progress for progress in progresses if progress.error is None and number not in progress.known]
            jobs_left = Counter(progress.block for progress in waiting)  # each part's states move up separately
            for progress in waiting:
                before = progress.seconds
                while not self._answer(sweeper, progress, part, number):
                    pass
                charge = self._unbilled / (jobs_left[progress.block] if several else progress.job.sharing)
                self._unbilled -= charge
                progress.seconds += charge
                jobs_left[progress.block] -= 1
                if several and progress.error is None and self.partials is not None:
                    answers = progress.tally.of(part.queries)
                    self.partials.add(progress.job.cell, Partial(part.queries, *answers, progress.seconds - before))
        for progress in progresses:
            self._generate(progress)
            yield self._outcome(progress)

    def _begin(self, sweeper: Sweeper, job: Job) -> _JobProgress:
        """Starts a job with the stored answers of an earlier process; incomplete parts are scored again."""
        progress = _JobProgress(job, Tally(len(self._request_tokens())))
        known: dict[int, tuple[float, bool]] = {}
        for partial in self.partials.read(job.cell) if self.partials is not None else ():
            answers = zip(partial.loglikelihoods, partial.greedy, strict=True)
            known.update(zip(partial.queries, answers, strict=True))
            progress.seconds += partial.seconds
        for number, part in enumerate(sweeper.parts, 1):
            if known and known.keys() >= set(part.queries):
                progress.tally.restore(part.queries, [known[index] for index in part.queries])
                progress.known.add(number)
        return progress

    def _answer(self, sweeper: Sweeper, progress: _JobProgress, part: QueryPart, number: int) -> bool:
        """Answers a part's requests for one job. False if memory ran out and the call is to be repeated."""
        started = time.perf_counter()
        scoring = memory_ran_out = False
        failure: LrbenchError | None = None
        with ExitStack() as stack:  # outside the try: a failure to undo an edit concerns more than this cell
            try:
                try:
                    states = sweeper.advance(part, progress.block)
                    synchronize(self._model.device)
                finally:
                    self._unbilled += time.perf_counter() - started
                stack.enter_context(progress.job.edited())
                synchronize(self._model.device)
                started, scoring = time.perf_counter(), True
                with contained():
                    sweeper.score(part, progress.block, states, progress.tally, progress.job.modules)
            except LrbenchError as error:
                failure = error
            except Exception as error:  # torch, lm-eval and task code may raise anything
                failure, memory_ran_out = self._failure(error), is_out_of_memory(error)
            seconds = time.perf_counter() - started if scoring else 0.0
        progress.seconds += seconds
        if failure is None:
            self._report_step(sweeper, progress, part, number, seconds)
            return True
        # outside the edit and the handlers, so that the tensors of the failed pass are released
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if memory_ran_out and sweeper.halve():
            progress.tally.forget(part.queries)
            return False
        if memory_ran_out:
            tokens = sweeper.describe()["batch_tokens"]
            failure = EvaluationError(
                f"out of memory even with batches of {tokens} tokens; set a smaller frontier_memory or max_length"
            )
        progress.error = failure
        return True

    def _report_step(
        self, sweeper: Sweeper, progress: _JobProgress, part: QueryPart, number: int, seconds: float
    ) -> None:
        if self.report is None:
            return
        blocks = self.blocks
        block = progress.block if sweeper.mode != "whole" else 0
        tokens = sum(batch.tokens for batch in part.batches) * (blocks - block) / blocks
        self.report(Step(block, blocks, number, len(sweeper.parts), tokens, seconds))

    def _generate(self, progress: _JobProgress) -> None:
        """Generates the texts that tasks request, with lm-eval."""
        if progress.error is not None or not self.requests.prompts:
            return
        started = time.perf_counter()
        with ExitStack() as stack:
            try:
                stack.enter_context(progress.job.edited())
                started = time.perf_counter()
                with contained():
                    progress.texts = self._texts()
            except LrbenchError as error:
                progress.error = error
            except Exception as error:  # as in `_answer`
                progress.error = self._failure(error)
            progress.seconds += time.perf_counter() - started

    def _outcome(self, progress: _JobProgress) -> Outcome:
        started = time.perf_counter()
        if progress.error is None:
            try:
                with contained():
                    scores, samples = score(self.requests, self._answers(progress))
                return Outcome(progress.job.cell, scores, samples, progress.seconds + time.perf_counter() - started)
            except LrbenchError as error:
                progress.error = error
            except Exception as error:  # task code may raise anything
                progress.error = self._failure(error)
        return Outcome(progress.job.cell, seconds=progress.seconds, error=progress.error)

    def _request_tokens(self) -> list[Any]:
        return [*self.requests.pairs, *self.requests.windows]

    def _answers(self, progress: _JobProgress) -> Answers:
        answers = progress.tally.answers()
        pairs, windows = answers[: len(self.requests.pairs)], answers[len(self.requests.pairs) :]
        rolling = []
        start = 0
        for count in self.requests.window_counts:
            rolling.append(sum(loglikelihood for loglikelihood, _ in windows[start : start + count]))
            start += count
        return Answers(pairs, rolling, progress.texts)
