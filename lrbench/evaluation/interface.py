"""The interface between a run and the engines that score its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from lrbench.errors import LrbenchError
from lrbench.results.rows import Score


@dataclass(frozen=True)
class Job:
    """One edited model to be scored.

    Attributes:
        cell: the cell's hash.
        first_block: index of the first decoder block that the edit touches (0 also for the embedding, the number of
            blocks for the head); None where nothing is edited. Everything below it computes what it always did.
        edited: puts the edit in place for as long as the context lasts. May be entered more than once.
        modules: names of the modules whose parameters the edit replaces in the first block, in no order. Empty where
            that is not known, or where something that comes before the block is edited too.
        sharing: how many jobs, from this one on, start at the same block and share the cost of reaching it.
    """

    cell: str
    first_block: int | None
    edited: Callable[[], AbstractContextManager[None]]
    modules: tuple[str, ...] = ()
    sharing: int = 1


@dataclass(frozen=True)
class Outcome:
    """The result of one job: its scores, or the error that prevented them.

    Attributes:
        scores: task (or group) -> metric -> score, named as in rows.
        samples: one dict a document: `task`, `doc` (its index in the task), `metrics` {metric: value}, and for
            log-likelihood tasks `loglikelihoods` and `greedy`, one entry a request.
        seconds: spent scoring, including `Partial.seconds` and the job's fraction of work shared by several jobs.
    """

    cell: str
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: LrbenchError | None = None


@dataclass(frozen=True)
class Partial:
    """The answers to some of one job's log-likelihood queries.

    Attributes:
        queries: their indices, in the engine's order.
        loglikelihoods, greedy: one entry per query.
        seconds: spent on these queries.
    """

    queries: list[int]
    loglikelihoods: list[float]
    greedy: list[bool]
    seconds: float


class Partials(Protocol):
    """Stores partial answers so that they survive a kill. They hold for the same requests and environment only."""

    def read(self, cell: str) -> list[Partial]:
        """All stored answers of a cell."""
        ...

    def add(self, cell: str, partial: Partial) -> None:
        """Stores more answers of a cell; they are on disk when this returns."""
        ...


@dataclass(frozen=True)
class Step:
    """One piece of work that an engine has finished for one job.

    Attributes:
        block: the first decoder block that was run; equal to `blocks` if only the head was run.
        blocks: the number of decoder blocks.
        part, parts: which part of the requests this was, from 1, and how many there are.
        tokens: tokens times the fraction of blocks that they passed through.
        seconds: taken by this step, without work shared with other jobs.
    """

    block: int
    blocks: int
    part: int
    parts: int
    tokens: float
    seconds: float


class Engine(Protocol):
    """Scores jobs. An engine is bound to one loaded model and one set of tasks.

    A run calls `score` repeatedly, with jobs in ascending `first_block`. An engine may keep results of one call for
    the next, as long as the scores of a job do not depend on the jobs before it.
    """

    name: str

    @property
    def prefers_many(self) -> bool:
        """Whether each call of `score` has a fixed cost, so that many jobs should be passed at once."""
        ...

    def score(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Scores each job in turn. A job that fails yields an Outcome with an error; the next ones still run."""
        ...

    def forget(self) -> None:
        """Drops everything computed with the model, because its weights may have been wrong."""
        ...

    def describe(self) -> dict[str, Any]:
        """The engine's name and settings, for the manifest."""
        ...
