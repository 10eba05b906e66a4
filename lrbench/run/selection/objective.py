"""The objective of a choice: the main metric of one task, or the mean over tasks; ties are broken by log-loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrbench.analysis.score import Overall, document_loss, unpaired
from lrbench.results.rows import Row
from lrbench.stats.metric_names import base_name, lower_is_better, primary
from lrbench.tasks.frozen_requests import FrozenRequests

#: The name of the objective over all tasks; other objectives have a task's name.
MEAN = "mean"


@dataclass(frozen=True)
class Objective:
    """The value that one choice maximises.

    Attributes:
        name: the task or group, or `MEAN`.
        parts: task or group that counts -> its single tasks.
        higher: single task -> metric -> whether higher is better, as the task states.
    """

    name: str
    parts: Mapping[str, Sequence[str]]
    higher: Mapping[str, Mapping[str, bool]]

    @property
    def tasks(self) -> list[str]:
        """The single tasks of all parts."""
        return list(dict.fromkeys(task for tasks in self.parts.values() for task in tasks))

    def lower_is_better(self, part: str, metric: str) -> bool:
        """Whether smaller values of a part's metric are better."""
        for task in self.parts[part]:
            stated = self.higher.get(task, {}).get(base_name(metric))
            if isinstance(stated, bool):
                return not stated
        return lower_is_better(metric)

    def value(self, row: Row) -> float:
        """The objective's value of a row: larger is better, -inf if there is none.

        For one task, its main metric, negated if lower is better. For several, the leaderboard's overall score: the
        mean of accuracies, or the geometric mean of perplexities if no task has an accuracy.
        """
        metrics = {part: primary(row.scores[part]) for part in self.parts if row.scores.get(part)}
        if set(metrics) != set(self.parts):
            return -math.inf
        lower = {part for part, metric in metrics.items() if self.lower_is_better(part, metric)}
        if len(metrics) == 1:
            [(part, metric)] = metrics.items()
            value = row.scores[part][metric].value
            higher = not lower
        else:
            overall = Overall.of(metrics, lower)
            score = overall.score(unpaired(row))
            value, higher = (math.nan if score is None else score.value), overall.higher_is_better
        value = value if higher else -value
        return -math.inf if math.isnan(value) else value

    def log_loss(self, samples: Iterable[Mapping[str, Any]]) -> float:
        """The mean over parts of the mean log-loss of their documents: minus the log-likelihood of the gold answer.

        For perplexity tasks, minus the log-likelihood of the whole text. Infinite if no document has a log-loss, as in
        tasks that generate text.
        """
        losses: dict[str, list[float]] = defaultdict(list)
        for sample in samples:
            loss = document_loss(sample)
            if loss is not None:
                losses[sample["task"]].append(loss)
        means = []
        for tasks in self.parts.values():
            of_part = [loss for task in tasks for loss in losses.get(task, ())]
            if of_part:
                means.append(math.fsum(of_part) / len(of_part))
        return math.fsum(means) / len(means) if means else math.inf


def objectives(requests: FrozenRequests, named: Mapping[str, Sequence[str]], on: str) -> list[Objective]:
    """The objectives of a suite's choices.

    Args:
        named: entry of the suite's `tasks` -> its single tasks. A group with a score of its own counts as one task; of
            tags, patterns and other groups, each single task counts.
        on: `task` for one objective for each task, `mean` for a single one.
    """
    higher = {name: dict(frozen.task.higher_is_better()) for name, frozen in requests.tasks.items()}
    scored = {name for name, group in requests.groups.items() if group.has_aggregation}
    parts: dict[str, list[str]] = {}
    for name, tasks in named.items():
        if name in scored:
            parts[name] = [task.task_name for task in requests.groups[name].get_all_tasks()]
        else:
            parts |= {task: [task] for task in tasks}
    if on == MEAN:
        return [Objective(MEAN, parts, higher)]
    return [Objective(name, {name: tasks}, higher) for name, tasks in parts.items()]
