"""The order in which a race draws documents, and the contribution of each document to an objective."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.group import Group
from numpy.typing import NDArray

from lrbench.analysis.score import Overall
from lrbench.results.rows import Row
from lrbench.run.selection.objective import MEAN, Objective
from lrbench.stats.metric_names import base_name, is_fraction, primary
from lrbench.tasks.frozen_requests import FrozenRequests

#: A document: its task, and its index there.
Key = tuple[str, int]


@dataclass(frozen=True)
class DocumentOrder:
    """The documents of an objective, in random order.

    The objective is the mean over units of the sum over their documents of `worth` times the document's value.

    Attributes:
        units: groups of documents that are drawn together.
        worth: the weight of each document.
        metrics: task -> the metric that gives its documents' values.
    """

    units: Sequence[Sequence[Key]]
    worth: Mapping[Key, float]
    metrics: Mapping[str, str]

    @property
    def bound(self) -> float:
        """The maximum value of a unit."""
        return max(math.fsum(self.worth[key] for key in unit) for unit in self.units)

    def values(self, start: int, end: int, samples: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """The values (units,) of the units from `start` to `end`, from per-document scores."""
        values = {
            (sample["task"], sample["doc"]): float(sample["metrics"][self.metrics[sample["task"]]])
            for sample in samples
            if sample["task"] in self.metrics
        }
        return np.array([math.fsum(self.worth[key] * values[key] for key in unit) for unit in self.units[start:end]])

    def documents(self, start: int, end: int) -> dict[str, list[int]]:
        """Task -> indices of the documents in the units from `start` to `end`."""
        indices: dict[str, list[int]] = {}
        for unit in self.units[start:end]:
            for task, document in unit:
                indices.setdefault(task, []).append(document)
        return indices

    def ends(self, first: int) -> list[int]:
        """The ends of the blocks: the first has `first` units, each further one half as many as all before it."""
        ends = [min(first, len(self.units))]
        while ends[-1] < len(self.units):
            ends.append(min(len(self.units), ends[-1] + max(first, ends[-1] // 2)))
        return ends


def document_order_of(
    objective: Objective, requests: FrozenRequests, row: Row, samples: Sequence[Mapping[str, Any]], seed: int
) -> DocumentOrder | str:
    """A random order of an objective's documents, or the reason why there can be no race.

    A race needs an objective that is a weighted mean over documents of values between 0 and 1, such as an accuracy.
    This is verified: the weights must reproduce the score of `row` from its documents.

    Args:
        requests: the documents.
        row, samples: of the baseline, on all documents.
        seed: of the order.
    """
    chosen = {part: primary(row.scores[part]) for part in objective.parts if row.scores.get(part)}
    if set(chosen) != set(objective.parts):
        return f"the baseline has no score on {objective.name}"
    lower = {part for part, metric in chosen.items() if objective.lower_is_better(part, metric)}
    counting = Overall.of(chosen, lower).metrics if objective.name == MEAN else chosen
    for part, metric in counting.items():
        if part in lower or not is_fraction(metric):
            return f"{metric} of {part} is no accuracy"
    weights: dict[Key, float] = {}
    metrics: dict[str, str] = {}
    for part, metric in counting.items():
        for task, weight in _task_weights(part, objective.parts[part], metric, requests).items():
            metrics[task] = metric
            indices = requests.tasks[task].indices
            weights |= {(task, index): weight / len(counting) / len(indices) for index in indices}
    units = _units(metrics, requests)
    order = DocumentOrder(units, {key: weight * len(units) for key, weight in weights.items()}, metrics)
    values = [sample["metrics"].get(metrics[sample["task"]]) for sample in samples if sample["task"] in metrics]
    if any(not isinstance(value, int | float) or not 0 <= value <= 1 for value in values):
        return f"{objective.name} has documents whose value is not between 0 and 1"
    if abs(float(order.values(0, len(units), samples).mean()) - objective.value(row)) > 1e-9:
        return f"the score on {objective.name} is no mean over documents"
    generator = np.random.default_rng([seed, int(hashlib.sha256(objective.name.encode()).hexdigest()[:8], 16)])
    shuffled = [units[place] for place in generator.permutation(len(units))]
    return DocumentOrder(shuffled, order.worth, metrics)


def _task_weights(part: str, tasks: Sequence[str], metric: str, requests: FrozenRequests) -> dict[str, float]:
    """The weight of each task in the score of a task or group."""
    group: Group | None = requests.groups.get(part)
    rules = (group.aggregate_metric_list or []) if group is not None else []
    by_size = all(rule.weight_by_size for rule in rules if rule.metric == base_name(metric))
    sizes = {task: len(requests.tasks[task].indices) if by_size else 1 for task in tasks}
    return {task: size / sum(sizes.values()) for task, size in sizes.items()}


def _units(tasks: Mapping[str, str], requests: FrozenRequests) -> list[list[Key]]:
    """The documents of tasks in order of appearance; those of one group together, also across tasks."""
    units: dict[Any, list[Key]] = {}
    for task in tasks:
        frozen = requests.tasks[task]
        for index in frozen.indices:
            group = frozen.groups.get(index)
            units.setdefault((task, index) if group is None else ("group", group, None), []).append((task, index))
    return list(units.values())
