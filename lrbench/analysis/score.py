"""Scores as measurements: value, standard error, and the paired difference from the baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lrbench.results.rows import Row
from lrbench.stats import LEVEL, Difference, geometric, independent, weighted
from lrbench.stats.metric_names import is_fraction, lower_is_better, primary


@dataclass(frozen=True)
class Measurement:
    """A metric's value on `n` documents, with its difference from the baseline of the same run and model.

    Attributes:
        value: the mean over seeds, if there are several.
        stderr: over documents.
        n: the number of documents.
        delta: edited minus baseline.
        delta_stderr: of the difference, paired by document.
        interval: the 95 % bootstrap interval of the difference, uncorrected.
        discordant: for 0/1 metrics, how many documents rose and how many fell.
        p_value: of the exact test of the difference, uncorrected.
        p_holm: the p-value after Holm's correction over the cells of a table; None outside a table.
        significant: whether `p_holm` is at most 5 %.
        by_seed: the values of the seeds, if there are several.
        difference: the paired difference that these statistics come from.
    """

    value: float
    stderr: float | None = None
    n: int | None = None
    delta: float | None = None
    delta_stderr: float | None = None
    interval: tuple[float, float] | None = None
    discordant: tuple[int, int] | None = None
    p_value: float | None = None
    p_holm: float | None = None
    significant: bool | None = None
    by_seed: tuple[float, ...] = ()
    difference: Difference | None = field(default=None, repr=False, compare=False)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None for a single seed."""
        return (
            statistics.stdev(self.by_seed) if len(self.by_seed) > 1 and all(map(math.isfinite, self.by_seed)) else None
        )

    def with_p_holm(self, p_holm: float | None) -> Measurement:
        """Adds the p-value after Holm's correction over a table."""
        if p_holm is None or self.difference is None or self.delta is None:
            return self
        # Over seeds, the mean perplexity and the mean logarithm, which is tested, may differ in direction.
        same_way = float(self.difference.steps.sum()) * self.delta > 0
        return replace(self, p_holm=p_holm, significant=p_holm <= LEVEL and same_way)

    def record(self) -> dict[str, Any]:
        """The figures as plain data."""
        names = [entry.name for entry in fields(self) if entry.name not in ("difference", "by_seed")]
        seeds = {"seeds": max(1, len(self.by_seed)), "spread": self.spread}
        return {name: getattr(self, name) for name in names} | seeds


def unpaired(row: Row) -> dict[str, dict[str, Measurement]]:
    """All metrics of a row, without differences."""
    return {
        task: {metric: Measurement(score.value, score.stderr, score.n) for metric, score in scores.items()}
        for task, scores in row.scores.items()
    }


def requested_tasks(subtasks: Mapping[str, Sequence[str]], scored: Collection[str]) -> set[str]:
    """The tasks that a suite names itself, not as part of a group.

    A tag or a pattern has no score of its own and stands for its tasks.

    Args:
        subtasks: each task that the suite names, with its subtasks.
        scored: the tasks that have scores; returned if the suite is unknown.
    """
    return {name for task, parts in subtasks.items() for name in ([task] if task in scored else parts)} or set(scored)


@dataclass(frozen=True)
class Overall:
    """Defines the overall score of a row.

    The mean of the tasks' accuracies; without accuracies, the geometric mean of metrics for which lower is better, such
    as perplexities, which may differ by orders of magnitude.

    Attributes:
        metrics: task -> the metric that counts.
        higher_is_better: whether the metrics are accuracies.
    """

    metrics: Mapping[str, str]
    higher_is_better: bool

    @classmethod
    def of(cls, metrics: Mapping[str, str], lower: Collection[str]) -> Overall:
        """The overall score of the requested tasks.

        Args:
            metrics: task -> its primary metric.
            lower: the tasks for which a lower value is better.
        """
        shares = {task: metric for task, metric in metrics.items() if task not in lower and is_fraction(metric)}
        return cls(shares or {task: metric for task, metric in metrics.items() if task in lower}, bool(shares))

    @classmethod
    def of_row(cls, row: Row, subtasks: Mapping[str, Sequence[str]]) -> Overall:
        """The overall score of a single row without a manifest; metric names tell which direction is better."""
        requested = requested_tasks(subtasks, row.scores)
        metrics = {task: primary(scores) for task, scores in row.scores.items() if scores and task in requested}
        return cls.of(metrics, {task for task, metric in metrics.items() if lower_is_better(metric)})

    def score(self, measured: Mapping[str, Mapping[str, Measurement]]) -> Measurement | None:
        """The score of one row over the tasks that it has; None if it has none."""
        parts = [measured[task][metric] for task, metric in self.metrics.items() if metric in measured.get(task, {})]
        if not parts:
            return None
        return mean(parts) if self.higher_is_better else geometric_mean(parts)


def with_difference(score: Measurement, delta: float, difference: Difference | None) -> Measurement:
    """Adds the difference from the baseline and its statistics to a score."""
    if difference is None:
        return replace(score, delta=delta)
    return replace(
        score,
        stderr=difference.ours.stderr if score.by_seed else score.stderr,
        delta=delta,
        delta_stderr=difference.stderr,
        interval=difference.interval,
        discordant=difference.discordant,
        p_value=difference.p_value,
        difference=difference,
    )


def mean(parts: Sequence[Measurement]) -> Measurement:
    """The mean of several tasks' accuracies; its error assumes that tasks share no documents."""
    if len(parts) == 1:
        return parts[0]
    weights = [1 / len(parts)] * len(parts)
    value = math.fsum(part.value for part in parts) / len(parts)
    by_seed = tuple(math.fsum(values) / len(parts) for values in _seeds(parts))
    whole = Measurement(value, independent([part.stderr for part in parts], weights), by_seed=by_seed)
    deltas = [part.delta for part in parts if part.delta is not None]
    if len(deltas) < len(parts):
        return whole
    differences = [part.difference for part in parts if part.difference is not None]
    return with_difference(
        whole,
        math.fsum(deltas) / len(parts),
        weighted(differences, weights) if len(differences) == len(parts) else None,
    )


def geometric_mean(parts: Sequence[Measurement]) -> Measurement | None:
    """The geometric mean of several tasks' perplexities, which may differ by orders of magnitude."""
    if len(parts) == 1:
        return parts[0]
    value = _geometric([part.value for part in parts])
    if value is None:
        return None
    by_seed = tuple(of_seed for values in _seeds(parts) if (of_seed := _geometric(values)) is not None)
    whole = Measurement(value, by_seed=by_seed)
    baseline = _geometric([part.value - part.delta for part in parts if part.delta is not None])
    if baseline is None or any(part.delta is None for part in parts):
        return whole
    differences = [part.difference for part in parts if part.difference is not None]
    difference = geometric(differences) if len(differences) == len(parts) else None
    # For one seed the difference of values equals that of estimates; over several seeds, means do not commute.
    return with_difference(whole, value - baseline, difference)


def _seeds(parts: Sequence[Measurement]) -> list[tuple[float, ...]]:
    """The values of all parts for each seed; empty unless all parts have equally many seeds."""
    counts = {len(part.by_seed) for part in parts}
    return list(zip(*(part.by_seed for part in parts), strict=True)) if len(counts) == 1 else []


def _geometric(values: Sequence[float]) -> float | None:
    if not values or any(not 0 < value < math.inf for value in values):
        return None
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def document_loss(sample: Mapping[str, Any]) -> float | None:
    """The negative log-likelihood of a document's gold answer; None if it is unknown."""
    loglikelihoods = sample.get("loglikelihoods")
    if not loglikelihoods:
        return None
    gold = sample.get("gold")
    if gold is None:
        return -float(loglikelihoods[0]) if len(loglikelihoods) == 1 else None
    of_gold = [loglikelihoods[place] for place in (gold if isinstance(gold, list) else [gold])]
    largest = max(of_gold)
    if not math.isfinite(largest):
        return -largest
    return -(largest + math.log(math.fsum(math.exp(value - largest) for value in of_gold)))
