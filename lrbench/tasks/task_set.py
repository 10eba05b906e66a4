"""The tasks of a suite, loaded: what is asked for, and what was found."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lm_eval.api.group import Group
from lm_eval.api.task import Task

from lrbench.errors import TaskError
from lrbench.system.text import one_line
from lrbench.tasks.token_windows import TokenPerplexity

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


class TaskSpec(Protocol):
    """What a suite says of a task."""

    @property
    def task(self) -> str:
        """A task, group or tag, or a pattern (`*`, `?`, `[...]`) that stands for the tasks whose names match."""

    @property
    def limit(self) -> int | None:
        """Only the first so many documents of each task; None or more than there are: all."""

    @property
    def num_fewshot(self) -> int | None:
        """Examples in the prompt; None: as the task itself says, or none."""

    @property
    def data(self) -> str | None:
        """A file that holds its documents; None: where the task itself has them from."""


@dataclass(frozen=True)
class TaskSet:
    """Loaded tasks.

    Attributes:
        tasks: every single task, in the order asked for, with its number of few-shot examples set.
        groups: every group among what was asked for, subgroups included.
        limits: task -> how many documents at most.
        named: what was asked for -> the tasks it stands for.
    """

    tasks: dict[str, Task]
    groups: dict[str, Group]
    limits: dict[str, int | None]
    named: dict[str, list[str]]

    def summary(self) -> list[str]:
        """One line for each name that was asked for: its tasks, documents and few-shot examples."""
        return [f"{asked}: {self._counts(names)}" for asked, names in self.named.items()]

    def _counts(self, names: list[str]) -> str:
        if len(names) == 1 and isinstance(task := self.tasks[names[0]], TokenPerplexity):
            limit = self.limits[names[0]]
            return f"a text, in {f'at most {limit:,} ' if limit else ''}windows of up to {task.layout.length:,} tokens"
        documents = sum(min(self.limits[name] or sys.maxsize, len(self.tasks[name].eval_docs)) for name in names)
        shots = sorted({self.tasks[name].get_config("num_fewshot") for name in names})
        tasks = f"{len(names)} tasks, " if len(names) > 1 else ""
        return f"{tasks}{documents:,} documents, {' or '.join(map(str, shots))}-shot"


def cut_into_windows(tasks: TaskSet, lm: HFLM) -> TaskSet:
    """The tasks, those of token perplexity cut into windows of this model's tokens. Raises as `TokenPerplexity.cut`."""
    found = dict(tasks.tasks)
    for name, task in found.items():
        if isinstance(task, TokenPerplexity):
            try:
                found[name] = task.cut(lm)
            except TaskError:
                raise
            except Exception as error:  # tokenizers raise whatever they like
                raise TaskError(f"task {name!r}: its text cannot be cut into tokens: {one_line(error)}") from error
    return dataclasses.replace(tasks, tasks=found)
