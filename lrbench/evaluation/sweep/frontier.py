"""The hidden states that enter the first edited block, computed once with the original weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrbench.evaluation.sweep.activation_cache import ActivationCache
from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.partial_forward import PartialForward


class Frontier:
    """Keeps the hidden states of some batches at one block, and moves them up to later blocks.

    Move it only while the model has its original weights.

    Attributes:
        block: the block whose input is kept; 0 if nothing is, since a pass from block 0 starts from tokens.
    """

    def __init__(self, passes: PartialForward) -> None:
        self.block = 0
        self._passes = passes
        self._batches: Sequence[Batch] = ()
        self._states: list[torch.Tensor | None] = []

    def at(
        self, batches: Sequence[Batch], block: int, cache: ActivationCache | None = None
    ) -> list[torch.Tensor | None]:
        """The hidden states that enter `block`, per batch; None for block 0, which leaves the kept states as they are.

        Moving down, or to other batches, starts again from the tokens.

        Args:
            cache: cached activations of the block that the frontier leaves, which need not be computed again.
        """
        if block == 0 or not self._passes.resume:
            return [None] * len(batches)
        if batches is not self._batches or block < self.block:
            self.drop()
            self._batches, self._states = batches, [None] * len(batches)
        if self.block < block:
            try:
                for index, batch in enumerate(batches):
                    inside = cache.known(batches, self.block, index) if cache else None
                    self._states[index] = self._passes.states(batch, self.block, self._states[index], block, inside)
            except BaseException:  # the states would belong to different blocks
                self.drop()
                raise
            self.block = block
        return self._states

    def drop(self) -> None:
        """Drops all states."""
        self.block, self._batches, self._states = 0, (), []
