"""Properties of lm-eval's metrics by name: the primary metric of a task, the better direction, fractions.

A run's manifest states the better direction of its metrics; the name decides only if the manifest does not. Names are
as in rows: `acc`, `exact_match,strict`. Unknown metrics count as higher is better and are not averaged with others.
"""

from __future__ import annotations

from collections.abc import Iterable

_LOWER_IS_BETTER = frozenset(
    {"bits_per_byte", "brier_score", "brier", "loss", "nll", "ece", "mse", "mae", "ter", "wer", "cer", "bypass"}
)
# Between 0 and 1: shown in percent, and averaged over tasks.
_FRACTIONS = frozenset(
    {
        *("acc", "acc_norm", "acc_bytes", "acc_all", "acc_mutual_info", "acc_greedy", "exact_match", "em", "f1"),
        *("mc1", "mc2", "pass@1", "quasi_exact_match", "prefix_exact_match", "contains", "recall", "precision"),
    }
)
_PREFERENCE = ("acc", "exact_match", "word_perplexity", "perplexity", "byte_perplexity", "bits_per_byte")


def base_name(metric: str) -> str:
    """The metric without its filter: `exact_match` for `exact_match,strict`."""
    return metric.split(",", 1)[0]


def lower_is_better(metric: str) -> bool:
    """Whether lower values are better, judged by the name."""
    return "perplexity" in metric or base_name(metric) in _LOWER_IS_BETTER


def is_fraction(metric: str) -> bool:
    """Whether the metric is a fraction between 0 and 1 such as an accuracy, where higher is better."""
    return base_name(metric) in _FRACTIONS


def primary(metrics: Iterable[str]) -> str:
    """The primary metric of a task: accuracy, else exact match, else a perplexity, else the first in `metrics`."""
    names = list(metrics)
    for preferred in _PREFERENCE:
        for name in names:
            if base_name(name) == preferred:
                return name
    return names[0]
