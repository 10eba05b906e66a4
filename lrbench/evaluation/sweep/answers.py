"""From hidden states to answers: the log-likelihood of each query, and whether it is the greedy continuation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.partial_forward import PartialForward


class Tally:
    """Sums the predictions of each query, by index, to its answer."""

    def __init__(self, queries: int) -> None:
        self._loglikelihoods = torch.zeros(queries, dtype=torch.float64)
        self._misses = torch.zeros(queries, dtype=torch.int64)

    def add(self, batch: Batch, loglikelihoods: torch.Tensor, greedy: torch.Tensor) -> None:
        """Adds the predictions of a batch, two tensors of shape (predictions,)."""
        self._loglikelihoods.index_add_(0, batch.owners, loglikelihoods.to("cpu", torch.float64))
        self._misses.index_add_(0, batch.owners, (~greedy).to("cpu", torch.int64))

    def forget(self, indices: Sequence[int]) -> None:
        """Resets the sums of some queries to zero."""
        self._loglikelihoods[list(indices)] = 0
        self._misses[list(indices)] = 0

    def restore(self, indices: Sequence[int], answers: Sequence[tuple[float, bool]]) -> None:
        """Sets the answers of some queries."""
        loglikelihoods, greedy = zip(*answers, strict=True)
        self._loglikelihoods[list(indices)] = torch.tensor(loglikelihoods, dtype=torch.float64)
        self._misses[list(indices)] = (~torch.tensor(greedy, dtype=torch.bool)).to(torch.int64)

    def of(self, indices: Sequence[int]) -> tuple[list[float], list[bool]]:
        """The log-likelihoods of some queries, and whether they are greedy."""
        return self._loglikelihoods[list(indices)].tolist(), (self._misses[list(indices)] == 0).tolist()

    def answers(self) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of every query."""
        return list(zip(self._loglikelihoods.tolist(), (self._misses == 0).tolist(), strict=True))


def predictions(passes: PartialForward, batch: Batch, entering: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each target, and whether it is the most likely token; both of shape (predictions,).

    Args:
        entering: (positions, width), the head's input at the batch's scored positions.
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
