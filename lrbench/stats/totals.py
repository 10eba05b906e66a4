"""A metric as a ratio of two sums over resampling units: all that pairing, resampling and testing need to know of it.

A mean is Σx / n, a perplexity exp(−Σ log-likelihood / Σ words), bits per byte −Σ log-likelihood / Σ bytes / ln 2.
A unit is a document, or a group of documents that stand or fall together, such as paraphrases of one fact: then the
group is what is drawn, and its documents' sums are what it adds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrbench.stats.metric_names import base_name

#: One document's metric as lm-eval hands it to the aggregation: a number, or (log-likelihood, weight) of a perplexity.
PerDocument = float | Sequence[float]

#: What turns the ratio of sums into the metric.
Link = Literal["mean", "perplexity", "bits"]


def link_of(metric: str) -> Link:
    """How a metric is made of its ratio, as its name tells."""
    if "perplexity" in metric:
        return "perplexity"
    return "bits" if base_name(metric) == "bits_per_byte" else "mean"


@dataclass(frozen=True, eq=False)
class Scores:
    """One model's values of a metric, by document.

    Attributes:
        documents: their indices, ascending.
        values: (documents,) numbers, or (documents, 2) log-likelihoods and weights; None where they are neither.
    """

    documents: tuple[int, ...]
    values: np.ndarray | None

    @classmethod
    def of(cls, values: Mapping[int, PerDocument]) -> Scores:
        """From document -> value."""
        documents = tuple(sorted(values))
        try:
            table = np.array([values[document] for document in documents], dtype=float)
        except (TypeError, ValueError, OverflowError):
            return cls(documents, None)
        fits = len(table) > 0 and (table.ndim == 1 or table.shape[1:] == (2,))
        return cls(documents, table if fits and np.isfinite(table).all() else None)

    def on(self, documents: tuple[int, ...]) -> np.ndarray | None:
        """The values on some of the documents; None where a value is missing or not finite."""
        if self.values is None or documents == self.documents:
            return self.values
        place = {document: index for index, document in enumerate(self.documents)}
        found: np.ndarray = self.values[[place[document] for document in documents]]
        return found


@dataclass(frozen=True, eq=False)
class Totals:
    """One model's metric, summed within each unit: `value = link(Σ numerators / Σ weights)`.

    Attributes:
        numerators: (units,) sums of the documents' values, or of their log-likelihoods.
        weights: (units,) how many documents, words or bytes a unit has.
        link: from the ratio to the metric.
    """

    numerators: np.ndarray
    weights: np.ndarray
    link: Link

    @classmethod
    def of(cls, values: np.ndarray | None, metric: str, units: Sequence[int] | None = None) -> Totals | None:
        """From one value a document, in a fixed order of documents.

        Args:
            values: (documents,) numbers, or (documents, 2) log-likelihoods and weights, as in `Scores`.
            metric: its name tells the link.
            units: the unit of each document, numbered from 0 without gaps; None where each document is its own.

        Returns:
            None where there are no values, nothing has weight, or the metric overflows.
        """
        if values is None:
            return None
        numerators, weights = (values, np.ones(len(values))) if values.ndim == 1 else values.T.copy()
        if units is not None:
            numerators, weights = np.bincount(units, numerators), np.bincount(units, weights)
        if not weights.sum() > 0:
            return None
        found = cls(numerators, weights, link_of(metric))
        return found if math.isfinite(found.value) else None

    @property
    def ratio(self) -> float:
        """Σ numerators / Σ weights."""
        return float(self.numerators.sum() / self.weights.sum())

    @property
    def value(self) -> float:
        """The metric; infinite where it overflows."""
        return float(linked(np.array(self.ratio), self.link))

    @property
    def linear(self) -> float:
        """The metric on the scale on which documents add up: itself, or the logarithm of a perplexity."""
        return {"mean": self.ratio, "perplexity": -self.ratio, "bits": -self.ratio / math.log(2)}[self.link]

    def influence(self) -> np.ndarray:
        """(units,) what each unit moves the metric by, to first order; their root sum of squares is its standard error.

        The delta method, with the factor n / (n − 1) of an unbiased variance; NaN for a single unit.
        """
        n = len(self.weights)
        if n < 2:
            return np.full(n, np.nan)
        slope = {"mean": 1.0, "perplexity": -self.value, "bits": -1 / math.log(2)}[self.link]
        moved: np.ndarray = (self.numerators - self.ratio * self.weights) / self.weights.sum()
        return slope * math.sqrt(n / (n - 1)) * moved


def linked(ratios: np.ndarray, link: Link) -> np.ndarray:
    """The metric at each ratio."""
    if link == "mean":
        return ratios
    if link == "bits":
        return -ratios / math.log(2)
    with np.errstate(over="ignore"):
        return np.exp(-ratios)


def unit_numbers(documents: Sequence[int], groups: Mapping[int, Hashable]) -> list[int] | None:
    """The unit of each document, numbered from 0; None where no document is in a group with another.

    Args:
        documents: in the order of the values.
        groups: document -> what it shares with the others of its unit; a document that is not there is a unit itself.
    """
    numbers: dict[Hashable, int] = {}
    units = [
        numbers.setdefault(("group", groups[doc]) if doc in groups else ("document", doc), len(numbers))
        for doc in documents
    ]
    return units if len(numbers) < len(units) else None


def agree(one: float, other: float) -> bool:
    """Whether two values are one number up to the rounding of their sums."""
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-7)
