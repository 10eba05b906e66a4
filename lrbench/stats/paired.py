"""The paired difference between two models on the same documents: value, interval and test."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lrbench.stats.bootstrap import bca_interval, resampled
from lrbench.stats.signflips import sign_flip_test
from lrbench.stats.totals import DocumentValues, PerDocument, Totals, unit_indices


@dataclass(frozen=True, eq=False)
class Estimate:
    """One model's value of a metric, with its sampling variation.

    Attributes:
        value: the metric.
        draws: (resamples,) the metric on each resample of the units.
        influence: (units,) the influence of each unit; its Euclidean norm is the standard error.
    """

    value: float
    draws: np.ndarray
    influence: np.ndarray

    @property
    def stderr(self) -> float | None:
        """The standard error; None with a single unit."""
        return _norm(self.influence)


@dataclass(frozen=True, eq=False)
class Difference:
    """The difference of a metric, `ours` minus `theirs`, on their common units.

    Attributes:
        ours, theirs: the two models.
        steps: (units,) the contribution of each unit to the difference of the metrics, or of their logarithms for a
            perplexity. The test flips their signs.
        n: the number of documents.
        discordant: for a 0/1 metric, how many documents rose to 1 and how many fell to 0.
        documents: equal for differences from the same model on the same units and scale.
        logarithmic: whether the steps are on the logarithmic scale.
    """

    ours: Estimate
    theirs: Estimate
    steps: np.ndarray
    n: int
    discordant: tuple[int, int] | None = None
    documents: Hashable = field(default=None, repr=False)
    logarithmic: bool = False

    @property
    def value(self) -> float:
        """`ours` minus `theirs`."""
        return self.ours.value - self.theirs.value

    @property
    def influence(self) -> np.ndarray:
        """(units,) the influence of each unit on the difference."""
        return self.ours.influence - self.theirs.influence

    @cached_property
    def stderr(self) -> float | None:
        """The standard error; None with a single unit."""
        return _norm(self.influence)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval (BCa), not corrected for other differences; None with a single unit."""
        return bca_interval(self.ours.draws - self.theirs.draws, self.value, self.influence)

    @cached_property
    def p_value(self) -> float:
        """The two-sided p-value of the exact sign-flip test; McNemar's test for 0/1 metrics."""
        return sign_flip_test(self.steps)


@dataclass(frozen=True)
class PairedValues:
    """Two models' values of one metric, by document.

    A model with several seeds has several rows; its value is their mean.

    Attributes:
        ours, theirs: the values of each row.
        groups: document -> group of documents that are resampled together.
    """

    ours: Sequence[DocumentValues]
    theirs: Sequence[DocumentValues]
    groups: Mapping[int, Hashable] = field(default_factory=dict)


def differences(pairs: Sequence[PairedValues], metric: str, key: str) -> list[Difference | None]:
    """The difference of a metric for each pair of models, over the pair's common documents.

    Args:
        pairs: pairs of models; pairs with the same documents are resampled together.
        metric: the metric's name, which tells a mean from a perplexity.
        key: names the documents, such as the task; equal keys give equal resamples.

    Returns:
        One difference per pair; None if the pair has no common document, or a value is missing or not finite.
    """
    result: list[Difference | None] = [None] * len(pairs)
    batches: dict[tuple[int, ...], list[int]] = {}
    for place, pair in enumerate(pairs):
        first, *others = [*pair.ours, *pair.theirs]
        shared = first.documents
        for side in others:
            if side.documents != shared:
                shared = tuple(sorted(set(shared).intersection(side.documents)))
        if shared:
            batches.setdefault(shared, []).append(place)
    for documents, places in batches.items():
        for place, difference in zip(places, _of_one_batch(documents, places, pairs, metric, key), strict=True):
            result[place] = difference
    return result


def paired_difference(
    edited: Mapping[int, PerDocument],
    baseline: Mapping[int, PerDocument],
    metric: str,
    groups: Mapping[int, Hashable] | None = None,
) -> Difference | None:
    """The difference of a metric between an edited model and the baseline, over their common documents.

    Args:
        edited, baseline: document index -> value.
        metric: the metric's name, which tells a mean from a perplexity.
        groups: document index -> group of documents that are resampled together.

    Returns:
        The difference; None if there is no common document, or a value is missing or not finite.
    """
    values = PairedValues([DocumentValues.of(edited)], [DocumentValues.of(baseline)], groups or {})
    return differences([values], metric, key="")[0]


def p_value_between(ours: Difference, theirs: Difference) -> float | None:
    """The p-value of the difference between two models, from their differences to the same third model.

    Returns None if the third model or the documents are not the same.
    """
    if ours.documents is None or ours.documents != theirs.documents:
        return None
    return sign_flip_test(ours.steps - theirs.steps)


def _of_one_batch(
    documents: tuple[int, ...], places: Sequence[int], pairs: Sequence[PairedValues], metric: str, key: str
) -> list[Difference | None]:
    """The differences of pairs with the same documents; a row in several pairs is resampled once."""
    rows: dict[int, Totals | None] = {}
    units = unit_indices(documents, {doc: group for place in places for doc, group in pairs[place].groups.items()})
    for place in places:
        for side in (*pairs[place].ours, *pairs[place].theirs):
            if id(side) not in rows:
                rows[id(side)] = Totals.of(side.on(documents), metric, units)
    known = {row: totals for row, totals in rows.items() if totals is not None}
    draws = dict(zip(known, resampled(list(known.values()), key), strict=True)) if known else {}
    result: list[Difference | None] = []
    for place in places:
        pair = pairs[place]
        if any(id(side) not in known for side in (*pair.ours, *pair.theirs)):
            result.append(None)
            continue
        ours, theirs = ([known[id(side)] for side in sides] for sides in (pair.ours, pair.theirs))
        steps = np.asarray(sum(map(_parts, ours)) / len(ours) - sum(map(_parts, theirs)) / len(theirs))
        discordant = None
        if len(ours) == len(theirs) == 1:
            discordant = _discordant(pair.ours[0].on(documents), pair.theirs[0].on(documents))
        edited = _estimate(ours, [draws[id(side)] for side in pair.ours])
        baseline = _estimate(theirs, [draws[id(side)] for side in pair.theirs])
        logarithmic = ours[0].link == "perplexity"
        identity = key, metric, hash(documents), hash(tuple(row.numerators.tobytes() for row in theirs))
        result.append(
            Difference(edited, baseline, np.asarray(steps), len(documents), discordant, identity, logarithmic)
        )
    return result


def _estimate(rows: Sequence[Totals], draws: Sequence[np.ndarray]) -> Estimate:
    """The mean over rows, one per seed."""
    if len(rows) == 1:
        return Estimate(rows[0].value, draws[0], rows[0].influence())
    value = math.fsum(row.value for row in rows) / len(rows)
    return Estimate(value, np.mean(draws, axis=0), np.mean([row.influence() for row in rows], axis=0))


def _parts(totals: Totals) -> np.ndarray:
    """(units,) the contribution of each unit to the metric, or to the logarithm of a perplexity."""
    factor = {"mean": 1.0, "perplexity": -1.0, "bits": -1 / math.log(2)}[totals.link]
    parts: np.ndarray = factor * totals.numerators / totals.weights.sum()
    return parts


def _discordant(ours: np.ndarray | None, theirs: np.ndarray | None) -> tuple[int, int] | None:
    if ours is None or theirs is None or not (np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all()):
        return None
    return (int((ours > theirs).sum()), int((ours < theirs).sum())) if ours.ndim == theirs.ndim == 1 else None


def _norm(influence: np.ndarray) -> float | None:
    norm = float(np.sqrt((influence**2).sum()))
    return norm if math.isfinite(norm) else None
