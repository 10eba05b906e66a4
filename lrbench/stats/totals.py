"""Metrics as ratios of two sums over resampling units, the form that pairing, resampling and testing use.

A mean is Σx / n, a perplexity exp(−Σ log-likelihood / Σ words), bits per byte −Σ log-likelihood / Σ bytes / ln 2.
A unit is a document, or a group of dependent documents, such as paraphrases of one fact: a group is resampled as a
whole, and contributes the sums over its documents.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrbench.stats.metric_names import base_name

#: One document's metric as lm-eval aggregates it: a number, or (log-likelihood, weight) for a perplexity.
PerDocument = float | Sequence[float]

#: The function from the ratio of sums to the metric.
Link = Literal["mean", "perplexity", "bits"]


def link_of(metric: str) -> Link:
    """The link of a metric, judged by its name."""
    if "perplexity" in metric:
        return "perplexity"
    return "bits" if base_name(metric) == "bits_per_byte" else "mean"


@dataclass(frozen=True, eq=False)
class DocumentValues:
    """One model's values of a metric, by document.

    Attributes:
        documents: document indices, ascending.
        values: (documents,) numbers, or (documents, 2) log-likelihoods and weights; None if missing or not finite.
    """

    documents: tuple[int, ...]
    values: np.ndarray | None

    @classmethod
    def of(cls, values: Mapping[int, PerDocument]) -> DocumentValues:
        """From a mapping of document index to value."""
        documents = tuple(sorted(values))
        try:
            table = np.array([values[document] for document in documents], dtype=float)
        except (TypeError, ValueError, OverflowError):
            return cls(documents, None)
        fits = len(table) > 0 and (table.ndim == 1 or table.shape[1:] == (2,))
        return cls(documents, table if fits and np.isfinite(table).all() else None)

    def on(self, documents: tuple[int, ...]) -> np.ndarray | None:
        """The values of some of the documents, in their order; None if a value is missing or not finite."""
        if self.values is None or documents == self.documents:
            return self.values
        place = {document: index for index, document in enumerate(self.documents)}
        selected: np.ndarray = self.values[[place[document] for document in documents]]
        return selected


@dataclass(frozen=True, eq=False)
class Totals:
    """One model's metric, summed within each unit: `value = link(Σ numerators / Σ weights)`.

    Attributes:
        numerators: (units,) sums of the documents' values, or of their log-likelihoods.
        weights: (units,) the number of documents, words or bytes of each unit.
        link: the function from the ratio to the metric.
    """

    numerators: np.ndarray
    weights: np.ndarray
    link: Link

    @classmethod
    def of(cls, values: np.ndarray | None, metric: str, units: Sequence[int] | None = None) -> Totals | None:
        """From one value per document.

        Args:
            values: (documents,) numbers, or (documents, 2) log-likelihoods and weights, as in `DocumentValues`.
            metric: the metric's name, which determines the link.
            units: the unit of each document, numbered from 0 without gaps; None if each document is a unit.

        Returns:
            The totals; None if there are no values, the weights sum to zero, or the metric overflows.
        """
        if values is None:
            return None
        numerators, weights = (values, np.ones(len(values))) if values.ndim == 1 else values.T.copy()
        if units is not None:
            numerators, weights = np.bincount(units, numerators), np.bincount(units, weights)
        if not weights.sum() > 0:
            return None
        totals = cls(numerators, weights, link_of(metric))
        return totals if math.isfinite(totals.value) else None

    @property
    def ratio(self) -> float:
        """Σ numerators / Σ weights."""
        return float(self.numerators.sum() / self.weights.sum())

    @property
    def value(self) -> float:
        """The metric; infinite if it overflows."""
        return float(apply_link(np.array(self.ratio), self.link))

    @property
    def linear(self) -> float:
        """The metric, or the logarithm of a perplexity: the scale on which documents add up."""
        return {"mean": self.ratio, "perplexity": -self.ratio, "bits": -self.ratio / math.log(2)}[self.link]

    def influence(self) -> np.ndarray:
        """(units,) the first-order influence of each unit on the metric; its Euclidean norm is the standard error.

        By the delta method, with the factor n / (n − 1) of an unbiased variance; NaN for a single unit.
        """
        n = len(self.weights)
        if n < 2:
            return np.full(n, np.nan)
        slope = {"mean": 1.0, "perplexity": -self.value, "bits": -1 / math.log(2)}[self.link]
        residuals: np.ndarray = (self.numerators - self.ratio * self.weights) / self.weights.sum()
        return slope * math.sqrt(n / (n - 1)) * residuals


def apply_link(ratios: np.ndarray, link: Link) -> np.ndarray:
    """The metric at each ratio."""
    if link == "mean":
        return ratios
    if link == "bits":
        return -ratios / math.log(2)
    with np.errstate(over="ignore"):
        return np.exp(-ratios)


def unit_indices(documents: Sequence[int], groups: Mapping[int, Hashable]) -> list[int] | None:
    """The unit of each document, numbered from 0; None if every document is a unit by itself.

    Args:
        documents: document indices.
        groups: document index -> group; a document without a group is a unit by itself.
    """
    numbers: dict[Hashable, int] = {}
    units = [
        numbers.setdefault(("group", groups[doc]) if doc in groups else ("document", doc), len(numbers))
        for doc in documents
    ]
    return units if len(numbers) < len(units) else None


def nearly_equal(a: float, b: float) -> bool:
    """Whether two values differ by no more than the rounding of their sums."""
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7)
