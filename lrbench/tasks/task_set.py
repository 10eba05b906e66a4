"""The loaded tasks of a suite."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lm_eval.api.group import Group
from lm_eval.api.task import Task

from lrbench.errors import TaskError
from lrbench.system.text import one_line
from lrbench.tasks.saved_datasets import origin_of
from lrbench.tasks.token_windows import TokenPerplexity

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


class RequestedTask(Protocol):
    """A task entry of a suite."""

    @property
    def task(self) -> str:
        """The name of a task, group or tag, or a pattern (`*`, `?`, `[...]`) for names of tasks."""

    @property
    def limit(self) -> int | None:
        """The maximum number of documents per task; None for all."""

    @property
    def num_fewshot(self) -> int | None:
        """The number of examples in the prompt; None for the task's default."""

    @property
    def data(self) -> str | None:
        """A file with the documents; None for the task's own documents."""


@dataclass(frozen=True)
class TaskSet:
    """Loaded tasks.

    Attributes:
        tasks: all single tasks, in the suite's order, with the number of few-shot examples set.
        groups: all groups, including subgroups.
        limits: task -> the maximum number of documents.
        named: name in the suite -> the names of its tasks.
    """

    tasks: dict[str, Task]
    groups: dict[str, Group]
    limits: dict[str, int | None]
    named: dict[str, list[str]]

    def summary(self) -> list[str]:
        """One line for each name in the suite: the number of tasks, documents and few-shot examples."""
        return [f"{name}: {self._counts(names)}" for name, names in self.named.items()]

    def _counts(self, names: list[str]) -> str:
        if len(names) == 1 and isinstance(task := self.tasks[names[0]], TokenPerplexity):
            limit = self.limits[names[0]]
            return f"a text, in {f'at most {limit:,} ' if limit else ''}windows of up to {task.layout.length:,} tokens"
        documents = sum(min(self.limits[name] or sys.maxsize, len(self.tasks[name].eval_docs)) for name in names)
        shots = sorted({self.tasks[name].get_config("num_fewshot") for name in names})
        tasks = f"{len(names)} tasks, " if len(names) > 1 else ""
        counts = f"{tasks}{documents:,} documents, {' or '.join(map(str, shots))}-shot"
        replaced: dict[str, None] = {}
        for origin in (origin_of(self.tasks[name]) for name in names):
            for key, missing in origin.get("missing", {}).items():
                kind, split = (
                    ("split", origin["split"]) if key == "scored" else ("examples of split", origin["examples"])
                )
                replaced[f"{kind} {split!r} in place of {missing!r}"] = None
        return ", ".join([counts, *replaced])


def cut_into_windows(tasks: TaskSet, lm: HFLM) -> TaskSet:
    """Cuts the tasks of token perplexity into windows of this model's tokens. Raises as `TokenPerplexity.cut`."""
    cut = dict(tasks.tasks)
    for name, task in cut.items():
        if isinstance(task, TokenPerplexity):
            try:
                cut[name] = task.cut(lm)
            except TaskError:
                raise
            except Exception as error:  # tokenizers may raise anything
                raise TaskError(f"task {name!r}: its text cannot be cut into tokens: {one_line(error)}") from error
    return dataclasses.replace(tasks, tasks=cut)
