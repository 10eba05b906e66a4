"""What is known of lm-eval's metrics by name: which one stands for a task, which way is better, which are shares.

Which way is better a run's manifest says, as its tasks do; the name is asked only where the manifest is silent.

Names are those of rows: `acc`, `exact_match,strict`. An unknown metric is taken to be better where it is higher, and is
not averaged with others.
"""

from __future__ import annotations

from collections.abc import Iterable

_LOWER_IS_BETTER = frozenset(
    {"bits_per_byte", "brier_score", "brier", "loss", "nll", "ece", "mse", "mae", "ter", "wer", "cer", "bypass"}
)
# Between 0 and 1, so they are written in percent and may be averaged over tasks.
_SHARES = frozenset(
    {
        *("acc", "acc_norm", "acc_bytes", "acc_all", "acc_mutual_info", "acc_greedy", "exact_match", "em", "f1"),
        *("mc1", "mc2", "pass@1", "quasi_exact_match", "prefix_exact_match", "contains", "recall", "precision"),
    }
)
_PREFERENCE = ("acc", "exact_match", "word_perplexity", "perplexity", "byte_perplexity", "bits_per_byte")


def base_name(metric: str) -> str:
    """The metric without its filter: `exact_match,strict` is `exact_match`."""
    return metric.split(",", 1)[0]


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value is a better one, as far as the name tells."""
    return "perplexity" in metric or base_name(metric) in _LOWER_IS_BETTER


def is_share(metric: str) -> bool:
    """Whether the metric is an accuracy or its like: between 0 and 1, higher is better."""
    return base_name(metric) in _SHARES


def primary(metrics: Iterable[str]) -> str:
    """The metric that stands for a task: accuracy, else exact match, else a perplexity, else the first there is."""
    names = list(metrics)
    for preferred in _PREFERENCE:
        for name in names:
            if base_name(name) == preferred:
                return name
    return names[0]
