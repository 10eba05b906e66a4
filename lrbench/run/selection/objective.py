"""What a choice is made by: the main metric of one task, or the mean over tasks, and log-loss between equals."""

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

#: What a choice over all tasks is called, where others have a task's name.
MEAN = "mean"


@dataclass(frozen=True)
class Objective:
    """What one choice is to be best at.

    Attributes:
        name: the task or group, or `MEAN`.
        parts: the tasks and groups that count, each with the single tasks that it is made of.
        higher: single task -> metric -> whether higher is better, as the tasks say.
    """

    name: str
    parts: Mapping[str, Sequence[str]]
    higher: Mapping[str, Mapping[str, bool]]

    @property
    def tasks(self) -> list[str]:
        """Single tasks whose documents it needs."""
        return list(dict.fromkeys(task for tasks in self.parts.values() for task in tasks))

    def lower_is_better(self, part: str, metric: str) -> bool:
        """Whether a smaller value of a part's metric is a better one."""
        for task in self.parts[part]:
            said = self.higher.get(task, {}).get(base_name(metric))
            if isinstance(said, bool):
                return not said
        return lower_is_better(metric)

    def value(self, row: Row) -> float:
        """How good a row is at it: larger is better, -inf where there is no number.

        Of one task its main metric, with the sign turned where lower is better. Over several it is the score of the
        leaderboard: the mean of accuracies, or, where no task has one, the geometric mean of perplexities.
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
        """Mean over documents of minus the log-likelihood of what is right; over parts, the mean of theirs.

        Of choices, of the right one; of a text, the whole. Infinite where no document has such a number, as where
        texts are written.
        """
        losses: dict[str, list[float]] = defaultdict(list)
        for sample in samples:
            loss = document_loss(sample)
            if loss is not None:
                losses[sample["task"]].append(loss)
        of_parts = []
        for tasks in self.parts.values():
            known = [loss for task in tasks for loss in losses.get(task, ())]
            if known:
                of_parts.append(math.fsum(known) / len(known))
        return math.fsum(of_parts) / len(of_parts) if of_parts else math.inf


def objectives(requests: FrozenRequests, named: Mapping[str, Sequence[str]], on: str) -> list[Objective]:
    """What a suite chooses for.

    Args:
        named: what the suite lists under `tasks`, with the single tasks that each stands for. A group with a score of
            its own is one task; of a tag, a pattern or another group, each single task is one.
        on: `task` for one choice each, `mean` for one in all.
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
