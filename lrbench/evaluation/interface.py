"""The boundary between a run and whatever scores its cells."""

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
        sharing: how many jobs, from this one on, start at its block: what it costs to get there is shared by them.
    """

    cell: str
    first_block: int | None
    edited: Callable[[], AbstractContextManager[None]]
    modules: tuple[str, ...] = ()
    sharing: int = 1


@dataclass(frozen=True)
class Outcome:
    """What an engine says of one job: its scores, or the error that kept it from scoring.

    Attributes:
        scores: task (or group) -> metric -> score, named as in rows.
        samples: one dict a document: `task`, `doc` (its index in the task), `metrics` {metric: value}, and for
            log-likelihood tasks `loglikelihoods` and `greedy`, one entry a request.
        seconds: spent scoring, with the job's share of what several jobs need, and with `Partial.seconds`.
    """

    cell: str
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: LrbenchError | None = None


@dataclass(frozen=True)
class Partial:
    """What one job has been answered so far, of some of its log-likelihood queries.

    Attributes:
        queries: their indices, in the engine's order.
        loglikelihoods, greedy: an answer each.
        seconds: spent on them.
    """

    queries: list[int]
    loglikelihoods: list[float]
    greedy: list[bool]
    seconds: float


class Partials(Protocol):
    """Keeps partial answers where a kill does not reach them. They must be of the same requests and environment."""

    def read(self, cell: str) -> list[Partial]:
        """All that was kept of a cell."""
        ...

    def add(self, cell: str, partial: Partial) -> None:
        """Keeps more of a cell; durably, when it returns."""
        ...


@dataclass(frozen=True)
class Step:
    """What an engine has just done for one job.

    Attributes:
        block: the first decoder block that was run; `blocks`, how many there are, where it was the head alone.
        part, parts: which part of the requests it was, from 1, and how many there are.
        tokens: put through all blocks; one that was put through half of them counts half.
        seconds: that this took, without what other jobs need too.
    """

    block: int
    blocks: int
    part: int
    parts: int
    tokens: float
    seconds: float


class Engine(Protocol):
    """Scores jobs. An engine is bound to one loaded model and one set of tasks.

    A run calls `score` again and again, with jobs in ascending `first_block`; what an engine learnt in one call it may
    keep for the next, as long as a job's numbers do not depend on the jobs before it.
    """

    name: str

    @property
    def prefers_many(self) -> bool:
        """Whether a call of `score` has costs of its own, so that jobs should come many at once."""
        ...

    def score(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Scores each job in turn; one that cannot be scored yields an Outcome with an error, and the next goes on."""
        ...

    def forget(self) -> None:
        """Drops whatever was computed with the model: it may not have been the model."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the engine: its name, batch size, and how it came to them."""
        ...
