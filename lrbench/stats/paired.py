"""The difference between two models on the same documents: its size, its interval, and the test of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lrbench.stats.bootstrap import bca_interval, resampled
from lrbench.stats.signflips import sign_flip_test
from lrbench.stats.totals import PerDocument, Scores, Totals, unit_numbers


@dataclass(frozen=True, eq=False)
class Estimate:
    """One model's value of a metric, and how it would vary with other documents.

    Attributes:
        value: the metric.
        draws: (resamples,) the metric on each resample of the units.
        influence: (units,) what each unit moves it by; the root sum of squares is its standard error.
    """

    value: float
    draws: np.ndarray
    influence: np.ndarray

    @property
    def stderr(self) -> float | None:
        """None where a single unit says nothing of the spread."""
        return _root(self.influence)


@dataclass(frozen=True, eq=False)
class Difference:
    """Ours less theirs, on the units that both have.

    Attributes:
        ours, theirs: the two models.
        steps: (units,) what each unit adds to the difference, on the scale on which units add up: that of the metric,
            or of the logarithm of a perplexity. Their signs are what the test flips.
        n: documents.
        discordant: of a metric that is 0 or 1 on every document: how many rose to 1, how many fell to 0.
        documents: equal for differences from the same model on the same units and scale.
        logarithmic: whether the steps are on the scale of logarithms.
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
        """Ours less theirs."""
        return self.ours.value - self.theirs.value

    @property
    def influence(self) -> np.ndarray:
        """(units,) what each unit moves the difference by."""
        return self.ours.influence - self.theirs.influence

    @cached_property
    def stderr(self) -> float | None:
        """None where a single unit says nothing of the spread."""
        return _root(self.influence)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval (BCa), of this difference alone; None where there is a single unit."""
        return bca_interval(self.ours.draws - self.theirs.draws, self.value, self.influence)

    @cached_property
    def p_value(self) -> float:
        """Of the exact test by sign flips, two-sided; McNemar's where documents are 0 or 1."""
        return sign_flip_test(self.steps)


@dataclass(frozen=True)
class Pair:
    """Two models' values of one metric, by document.

    A model may be several rows, of one method at several seeds: its value is then the mean of theirs.

    Attributes:
        ours, theirs: of each row.
        groups: document -> what it shares with the documents it is to be drawn with.
    """

    ours: Sequence[Scores]
    theirs: Sequence[Scores]
    groups: Mapping[int, Hashable] = field(default_factory=dict)


def differences(pairs: Sequence[Pair], metric: str, key: str) -> list[Difference | None]:
    """The differences of a metric over the documents that both of a pair have.

    Args:
        pairs: ours and theirs. Those with the same documents are resampled together.
        metric: its name tells whether it is a mean or a perplexity.
        key: names the documents, such as the task; the same key draws the same resamples.

    Returns:
        One for each pair; None where no document is shared, or a value is missing or not finite: such a difference has
        no error that could be stated.
    """
    found: list[Difference | None] = [None] * len(pairs)
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
            found[place] = difference
    return found


def paired_difference(
    edited: Mapping[int, PerDocument],
    baseline: Mapping[int, PerDocument],
    metric: str,
    groups: Mapping[int, Hashable] | None = None,
) -> Difference | None:
    """The difference of a metric over the documents that both have: document index -> value.

    Returns None where no document is shared, or a value is missing or not finite.
    """
    return differences([Pair([Scores.of(edited)], [Scores.of(baseline)], groups or {})], metric, key="")[0]


def tied(ours: Difference, theirs: Difference) -> float | None:
    """The p-value of the difference between two models that were each compared with the same third one.

    Returns None where it was not the same third one, or not on the same documents.
    """
    if ours.documents is None or ours.documents != theirs.documents:
        return None
    return sign_flip_test(ours.steps - theirs.steps)


def _of_one_batch(
    documents: tuple[int, ...], places: Sequence[int], pairs: Sequence[Pair], metric: str, key: str
) -> list[Difference | None]:
    """Of pairs that share the same documents: every row is resampled once, whichever pairs it is in."""
    rows: dict[int, Totals | None] = {}
    units = unit_numbers(documents, {doc: group for place in places for doc, group in pairs[place].groups.items()})
    for place in places:
        for side in (*pairs[place].ours, *pairs[place].theirs):
            if id(side) not in rows:
                rows[id(side)] = Totals.of(side.on(documents), metric, units)
    known = {row: totals for row, totals in rows.items() if totals is not None}
    draws = dict(zip(known, resampled(list(known.values()), key), strict=True)) if known else {}
    done: list[Difference | None] = []
    for place in places:
        pair = pairs[place]
        if any(id(side) not in known for side in (*pair.ours, *pair.theirs)):
            done.append(None)
            continue
        ours, theirs = ([known[id(side)] for side in sides] for sides in (pair.ours, pair.theirs))
        steps = sum(_parts(one) for one in ours) / len(ours) - sum(_parts(one) for one in theirs) / len(theirs)
        discordant = None
        if len(ours) == len(theirs) == 1:
            discordant = _discordant(pair.ours[0].on(documents), pair.theirs[0].on(documents))
        edited = _estimate(ours, [draws[id(side)] for side in pair.ours])
        baseline = _estimate(theirs, [draws[id(side)] for side in pair.theirs])
        logarithmic = ours[0].link == "perplexity"
        identity = key, metric, hash(documents), hash(tuple(one.numerators.tobytes() for one in theirs))
        done.append(Difference(edited, baseline, np.asarray(steps), len(documents), discordant, identity, logarithmic))
    return done


def _estimate(rows: Sequence[Totals], draws: Sequence[np.ndarray]) -> Estimate:
    """The mean over seeds."""
    if len(rows) == 1:
        return Estimate(rows[0].value, draws[0], rows[0].influence())
    value = math.fsum(row.value for row in rows) / len(rows)
    return Estimate(value, np.mean(draws, axis=0), np.mean([row.influence() for row in rows], axis=0))


def _parts(totals: Totals) -> np.ndarray:
    """(units,) what each unit adds to the metric on its linear scale."""
    factor = {"mean": 1.0, "perplexity": -1.0, "bits": -1 / math.log(2)}[totals.link]
    parts: np.ndarray = factor * totals.numerators / totals.weights.sum()
    return parts


def _discordant(ours: np.ndarray | None, theirs: np.ndarray | None) -> tuple[int, int] | None:
    if ours is None or theirs is None or not (np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all()):
        return None
    return (int((ours > theirs).sum()), int((ours < theirs).sum())) if ours.ndim == theirs.ndim == 1 else None


def _root(influence: np.ndarray) -> float | None:
    found = float(np.sqrt((influence**2).sum()))
    return found if math.isfinite(found) else None
