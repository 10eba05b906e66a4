"""From hidden states to answers: (log-likelihood, whether greedy) of each query."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.partial_forward import Passes


class Tally:
    """Sums predictions up to answers, for queries by index."""

    def __init__(self, queries: int) -> None:
        self._loglikelihoods = torch.zeros(queries, dtype=torch.float64)
        self._misses = torch.zeros(queries, dtype=torch.int64)

    def add(self, batch: Batch, loglikelihoods: torch.Tensor, greedy: torch.Tensor) -> None:
        """Adds a batch's predictions, (predictions,) each."""
        self._loglikelihoods.index_add_(0, batch.owners, loglikelihoods.to("cpu", torch.float64))
        self._misses.index_add_(0, batch.owners, (~greedy).to("cpu", torch.int64))

    def forget(self, indices: Sequence[int]) -> None:
        """Takes back what was added for some queries."""
        self._loglikelihoods[list(indices)] = 0
        self._misses[list(indices)] = 0

    def restore(self, indices: Sequence[int], answers: Sequence[tuple[float, bool]]) -> None:
        """Takes over what some queries were answered earlier."""
        loglikelihoods, greedy = zip(*answers, strict=True)
        self._loglikelihoods[list(indices)] = torch.tensor(loglikelihoods, dtype=torch.float64)
        self._misses[list(indices)] = (~torch.tensor(greedy, dtype=torch.bool)).to(torch.int64)

    def of(self, indices: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Log-likelihoods of some queries, and whether they are greedy."""
        return self._loglikelihoods[list(indices)].tolist(), (self._misses[list(indices)] == 0).tolist()

    def answers(self) -> list[tuple[float, bool]]:
        """Of each query."""
        return list(zip(self._loglikelihoods.tolist(), (self._misses == 0).tolist(), strict=True))


def predictions(passes: Passes, batch: Batch, entering: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each target and whether it is the likeliest token, (predictions,) each.

    Args:
        entering: the head at the asked positions, (positions, width).
    """
    entries, targets = batch.entries.to(entering.device), batch.targets.to(entering.device)
    loglikelihoods = torch.empty(len(entries), dtype=torch.float32, device=entering.device)
    greedy = torch.empty(len(entries), dtype=torch.bool, device=entering.device)
    at_once = max(1, memory.of(memory.LOGITS, entering.device) // passes.vocabulary)
    for first in range(0, len(entering), at_once):
        here = ((entries >= first) & (entries < first + at_once)).nonzero()[:, 0]
        logits = passes.logits(entering[first : first + at_once])  # (positions, vocabulary)
        highest, likeliest = logits.max(dim=-1)
        position, target = entries[here] - first, targets[here]
        chosen = logits[position, target]
        normaliser = highest + logits.sub_(highest[:, None]).exp_().sum(-1).log()
        loglikelihoods[here] = chosen - normaliser[position]
        greedy[here] = likeliest[position] == target
    return loglikelihoods, greedy
