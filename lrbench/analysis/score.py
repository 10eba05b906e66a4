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
class Measured:
    """A metric's value on `n` documents, with its difference from the baseline of the same run and model.

    Attributes:
        value: the mean over seeds, where a method was run with several.
        stderr: over documents.
        n: documents.
        delta: edited less baseline.
        delta_stderr: of the difference, paired by document.
        interval: the 95 % bootstrap interval of the difference, for itself.
        discordant: of zeros and ones: documents that rose, that fell.
        p_value: of the exact test of the difference, for itself.
        p_holm: the same after Holm's correction over the cells of a table; None while there is no table.
        significant: whether that is at most 5 %.
        by_seed: the values that `value` is the mean of, where there are several.
        difference: what all this was computed from.
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
        """The standard deviation over seeds; None where there is one seed."""
        return (
            statistics.stdev(self.by_seed) if len(self.by_seed) > 1 and all(map(math.isfinite, self.by_seed)) else None
        )

    def judged(self, p_holm: float | None) -> Measured:
        """With what Holm's correction over a table makes of its p-value."""
        if p_holm is None or self.difference is None or self.delta is None:
            return self
        # The mean over seeds of perplexities and that of their logarithms, which is tested, may differ in direction.
        same_way = float(self.difference.steps.sum()) * self.delta > 0
        return replace(self, p_holm=p_holm, significant=p_holm <= LEVEL and same_way)

    def record(self) -> dict[str, Any]:
        """The figures as plain data."""
        names = [entry.name for entry in fields(self) if entry.name not in ("difference", "by_seed")]
        seeds = {"seeds": max(1, len(self.by_seed)), "spread": self.spread}
        return {name: getattr(self, name) for name in names} | seeds


def unpaired(row: Row) -> dict[str, dict[str, Measured]]:
    """All metrics of a row, without differences."""
    return {
        task: {metric: Measured(score.value, score.stderr, score.n) for metric, score in scores.items()}
        for task, scores in row.scores.items()
    }


def asked_for(subtasks: Mapping[str, Sequence[str]], scored: Collection[str]) -> set[str]:
    """The tasks that a suite asked for itself, rather than for a group with them.

    A tag or a pattern has no score of its own: then the tasks that it stands for were asked for.

    Args:
        subtasks: each task that the suite names, with the tasks that it is made of.
        scored: the tasks that have scores, which are all asked for where the suite is not known.
    """
    return {name for task, parts in subtasks.items() for name in ([task] if task in scored else parts)} or set(scored)


@dataclass(frozen=True)
class Overall:
    """What the one score of a row is made of.

    It is the mean of the tasks' accuracies; where none has one, the geometric mean of what is better lower, such as
    perplexities, which may differ by orders of magnitude.

    Attributes:
        metrics: task -> its metric that counts.
        higher_is_better: whether these are accuracies.
    """

    metrics: Mapping[str, str]
    higher_is_better: bool

    @classmethod
    def of(cls, metrics: Mapping[str, str], lower: Collection[str]) -> Overall:
        """Of tasks that were asked for.

        Args:
            metrics: task -> the metric that stands for it.
            lower: the tasks for which a lower value of it is better.
        """
        shares = {task: metric for task, metric in metrics.items() if task not in lower and is_fraction(metric)}
        return cls(shares or {task: metric for task, metric in metrics.items() if task in lower}, bool(shares))

    @classmethod
    def of_row(cls, row: Row, subtasks: Mapping[str, Sequence[str]]) -> Overall:
        """Of a row by itself, while there is no table and no manifest to ask which way is better."""
        asked = asked_for(subtasks, row.scores)
        metrics = {task: primary(scores) for task, scores in row.scores.items() if scores and task in asked}
        return cls.of(metrics, {task for task, metric in metrics.items() if lower_is_better(metric)})

    def score(self, measured: Mapping[str, Mapping[str, Measured]]) -> Measured | None:
        """The score of one row over those of the tasks that it has; None where it has none of them."""
        parts = [measured[task][metric] for task, metric in self.metrics.items() if metric in measured.get(task, {})]
        if not parts:
            return None
        return mean(parts) if self.higher_is_better else geometric_mean(parts)


def compared(score: Measured, delta: float, difference: Difference | None) -> Measured:
    """A score with its difference from the baseline, and what the documents say of that."""
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


def mean(parts: Sequence[Measured]) -> Measured:
    """The mean of several tasks' accuracies; its error takes tasks to share no documents."""
    if len(parts) == 1:
        return parts[0]
    weights = [1 / len(parts)] * len(parts)
    value = math.fsum(part.value for part in parts) / len(parts)
    by_seed = tuple(math.fsum(values) / len(parts) for values in _seeds(parts))
    whole = Measured(value, independent([part.stderr for part in parts], weights), by_seed=by_seed)
    deltas = [part.delta for part in parts if part.delta is not None]
    if len(deltas) < len(parts):
        return whole
    found = [part.difference for part in parts if part.difference is not None]
    return compared(
        whole, math.fsum(deltas) / len(parts), weighted(found, weights) if len(found) == len(parts) else None
    )


def geometric_mean(parts: Sequence[Measured]) -> Measured | None:
    """The geometric mean of several tasks' perplexities, which may differ by orders of magnitude."""
    if len(parts) == 1:
        return parts[0]
    value = _geometric([part.value for part in parts])
    if value is None:
        return None
    by_seed = tuple(of_seed for values in _seeds(parts) if (of_seed := _geometric(values)) is not None)
    whole = Measured(value, by_seed=by_seed)
    baseline = _geometric([part.value - part.delta for part in parts if part.delta is not None])
    if baseline is None or any(part.delta is None for part in parts):
        return whole
    found = [part.difference for part in parts if part.difference is not None]
    difference = geometric(found) if len(found) == len(parts) else None
    # Of one seed the difference of the values is just that of the estimates; over several, means do not commute.
    return compared(whole, value - baseline, difference)


def _seeds(parts: Sequence[Measured]) -> list[tuple[float, ...]]:
    """For each seed the values of all parts; empty unless all have the same number of seeds."""
    counts = {len(part.by_seed) for part in parts}
    return list(zip(*(part.by_seed for part in parts), strict=True)) if len(counts) == 1 else []


def _geometric(values: Sequence[float]) -> float | None:
    if not values or any(not 0 < value < math.inf for value in values):
        return None
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def document_loss(sample: Mapping[str, Any]) -> float | None:
    """Minus the log-likelihood of a document's right answer; None where that is not known."""
    given = sample.get("loglikelihoods")
    if not given:
        return None
    right = sample.get("gold")
    if right is None:
        return -float(given[0]) if len(given) == 1 else None
    several = [given[place] for place in (right if isinstance(right, list) else [right])]
    largest = max(several)
    if not math.isfinite(largest):
        return -largest
    return -(largest + math.log(math.fsum(math.exp(value - largest) for value in several)))
