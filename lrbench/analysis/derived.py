"""The values of `derived` columns (`suite.derived_columns`): means and retentions of a row's scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lrbench.analysis.score import Measurement, mean
from lrbench.errors import InputError
from lrbench.stats import Difference, bca_interval
from lrbench.stats.metric_names import lower_is_better, primary
from lrbench.suite.derived_columns import DerivedColumn, Term

#: The scores of a row: task -> metric -> measurement.
RowScores = Mapping[str, Mapping[str, Measurement]]
#: (task, metric).
TaskMetric = tuple[str, str]


def derive(
    columns: Sequence[DerivedColumn],
    ours: RowScores,
    theirs: RowScores | None,
    lower: Callable[[str, str], bool] | None = None,
) -> dict[str, Measurement]:
    """The derived columns of one row.

    A mean is that of `analysis.score.mean`, with its standard error, difference from the baseline, interval and test.
    A retention's standard error follows by the delta method, paired by document where possible
    (`Measurement.difference`), else for independent scores; its interval is a bootstrap interval if all terms are
    paired; `delta` is its distance from 1. A retention has no test of its own; see those of its terms.

    Args:
        columns: in order; a mean may be a term of later columns.
        ours: the row's scores.
        theirs: the baseline's scores; None for the baseline itself.
        lower: (task, metric) -> whether lower is better; None: by the metric's name.

    Returns:
        Column -> measurement, without columns that lack a term or are undefined: a retention of a zero accuracy or of
        an infinite perplexity.

    Raises:
        InputError: a mean mixes terms for which higher is better with terms for which lower is better.
    """
    lower = lower or (lambda _, metric: lower_is_better(metric))
    result: dict[str, Measurement] = {}
    means: dict[str, _Term] = {}
    for column in columns:
        parts = [means.get(term.name) if term.metric is None else None for term in column.terms]
        terms = [part or _term(term, ours, theirs, lower) for part, term in zip(parts, column.terms, strict=True)]
        known = [term for term in terms if term is not None]
        if len(known) < len(terms):
            continue
        if column.kind == "mean" and len({term.lower for term in known}) > 1:
            raise InputError(
                f"column {column.name!r}: higher is better for some of its terms, lower for others; such a mean is "
                "meaningless: use two columns, or their retention"
            )
        if column.kind == "mean":
            result[column.name] = mean([term.ours for term in known])
            means[column.name] = _mean(result[column.name], known)
        elif theirs is None:
            result[column.name] = Measurement(1.0)
        elif (retention := _retention(known)) is not None:
            result[column.name] = retention
    return result


@dataclass(frozen=True)
class _Term:
    """A term's values in the row and in the baseline.

    Attributes:
        ours: the row's.
        theirs: the baseline's; NaN without a baseline.
        leaves: the weighted sum that the term is: (task, metric) -> (weight, ours, theirs).
        lower: whether lower is better.
    """

    ours: Measurement
    theirs: float
    leaves: Mapping[TaskMetric, tuple[float, Measurement, Measurement | None]] = field(repr=False)
    lower: bool = False


def _term(term: Term, ours: RowScores, theirs: RowScores | None, lower: Callable[[str, str], bool]) -> _Term | None:
    scored = ours.get(term.name)
    if not scored:
        return None
    metric = term.metric or primary(scored)
    if metric not in scored:
        return None
    base = None if theirs is None else theirs.get(term.name, {}).get(metric)
    if theirs is not None and base is None:
        return None
    leaves = {(term.name, metric): (1.0, scored[metric], base)}
    return _Term(scored[metric], math.nan if base is None else base.value, leaves, lower(term.name, metric))


def _mean(whole: Measurement, terms: Sequence[_Term]) -> _Term:
    leaves: dict[TaskMetric, tuple[float, Measurement, Measurement | None]] = {}
    for term in terms:
        for leaf, (weight, ours, theirs) in term.leaves.items():
            before = leaves[leaf][0] if leaf in leaves else 0.0
            leaves[leaf] = before + weight / len(terms), ours, theirs
    theirs_mean = math.fsum(term.theirs for term in terms) / len(terms)
    return _Term(whole, theirs_mean, leaves, all(term.lower for term in terms))


def _retention(terms: Sequence[_Term]) -> Measurement | None:
    value = _retained([term.ours.value for term in terms], [term.theirs for term in terms], terms)
    if value is None:
        return None
    seeds = {len(term.ours.by_seed) for term in terms}
    by_seed: list[float] = []
    if len(seeds) == 1:
        for values in zip(*(term.ours.by_seed for term in terms), strict=True):
            of_seed = _retained(values, [term.theirs for term in terms], terms)
            by_seed += [] if of_seed is None else [of_seed]
    retained = Measurement(value, delta=value - 1, by_seed=tuple(by_seed))
    slopes = _slopes(terms)
    influence = _influence(slopes)
    stderr = _stderr(slopes) if influence is None else float(np.sqrt((influence**2).sum()))
    if stderr is None or not math.isfinite(stderr):
        return retained
    draws = _draws(terms) if influence is not None else None
    interval = None if draws is None or influence is None else bca_interval(draws - 1, value - 1, influence)
    return replace(retained, stderr=stderr, delta_stderr=stderr, interval=interval)


def _retained(ours: Sequence[float], theirs: Sequence[float], terms: Sequence[_Term]) -> float | None:
    """The mean of the ratios; None if one is undefined."""
    ratios = []
    for our, their, term in zip(ours, theirs, terms, strict=True):
        above, below = (their, our) if term.lower else (our, their)
        if not below > 0 or not math.isfinite(above):
            return None
        ratios.append(above / below)  # an infinite perplexity retains nothing
    return math.fsum(ratios) / len(ratios)


@dataclass
class _Slope:
    """The partial derivatives of a retention with respect to one measurement of the row and of the baseline."""

    ours: Measurement
    theirs: Measurement | None
    by_ours: float = 0.0
    by_theirs: float = 0.0


def _slopes(terms: Sequence[_Term]) -> dict[TaskMetric, _Slope]:
    slopes: dict[TaskMetric, _Slope] = {}
    for term in terms:
        our, their = term.ours.value, term.theirs
        by_ours, by_theirs = (-their / our**2, 1 / our) if term.lower else (1 / their, -our / their**2)
        for leaf, (weight, ours, theirs) in term.leaves.items():
            slope = slopes.setdefault(leaf, _Slope(ours, theirs))
            slope.by_ours += by_ours * weight / len(terms)
            slope.by_theirs += by_theirs * weight / len(terms)
    return slopes


def _influence(slopes: Mapping[TaskMetric, _Slope]) -> np.ndarray | None:
    """(units of all tasks,) each unit's influence on the retention; None unless all terms are paired by document."""
    by_task: dict[str, np.ndarray] = {}
    for (task, _), slope in slopes.items():
        difference = slope.ours.difference
        if difference is None:
            return None
        moved = slope.by_ours * difference.ours.influence + slope.by_theirs * difference.theirs.influence
        if task in by_task and by_task[task].shape != moved.shape:
            return None
        by_task[task] = by_task[task] + moved if task in by_task else moved  # two metrics of the same documents
    return np.concatenate(list(by_task.values()))


def _stderr(slopes: Mapping[TaskMetric, _Slope]) -> float | None:
    """The standard error if not all terms are paired: unpaired scores are treated as independent."""
    terms: list[float] = []
    if len({task for task, _ in slopes}) < len(slopes):
        return None  # two metrics of the same documents are not independent
    for slope in slopes.values():
        difference = slope.ours.difference
        if difference is not None:
            moved = slope.by_ours * difference.ours.influence + slope.by_theirs * difference.theirs.influence
            terms.append(float(np.sqrt((moved**2).sum())))
        elif slope.ours.stderr is None or slope.theirs is None or slope.theirs.stderr is None:
            return None
        else:
            terms += [slope.by_ours * slope.ours.stderr, slope.by_theirs * slope.theirs.stderr]
    return math.hypot(*terms)


def _draws(terms: Sequence[_Term]) -> np.ndarray:
    """(resamples,) the retention on each bootstrap resample of the documents."""

    def drawn(term: _Term, side: Callable[[Difference], np.ndarray]) -> Any:
        return sum(
            weight * side(ours.difference) for weight, ours, _ in term.leaves.values() if ours.difference is not None
        )

    total = np.zeros(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        for term in terms:
            our, their = drawn(term, lambda of: of.ours.draws), drawn(term, lambda of: of.theirs.draws)
            total = total + (their / our if term.lower else our / their)
    return total / len(terms)
