"""The hidden states that enter the first edited block: computed once with the original weights, and kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrbench.evaluation.sweep.activation_cache import Memos
from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.partial_forward import Passes


class Frontier:
    """Keeps the states of some batches at one block, and moves them up.

    Move it only while the model has its original weights.

    Attributes:
        block: whose input is kept; 0 where nothing is, since there the model starts from tokens.
    """

    def __init__(self, passes: Passes) -> None:
        self.block = 0
        self._passes = passes
        self._batches: Sequence[Batch] = ()
        self._states: list[torch.Tensor | None] = []

    def at(self, batches: Sequence[Batch], block: int, memos: Memos | None = None) -> list[torch.Tensor | None]:
        """The states of each batch that enter `block`; for block 0 None, and what is kept stays as it is.

        Moving down, or to other batches, starts anew from the tokens.

        Args:
            memos: of the block that is left behind, whose parts before the edit need not be computed once more.
        """
        if block == 0 or not self._passes.resume:
            return [None] * len(batches)
        if batches is not self._batches or block < self.block:
            self.drop()
            self._batches, self._states = batches, [None] * len(batches)
        if self.block < block:
            try:
                for index, batch in enumerate(batches):
                    inside = memos.known(batches, self.block, index) if memos else None
                    self._states[index] = self._passes.states(batch, self.block, self._states[index], block, inside)
            except BaseException:  # some states would be of one block and some of another
                self.drop()
                raise
            self.block = block
        return self._states

    def drop(self) -> None:
        """Forgets all states."""
        self.block, self._batches, self._states = 0, (), []
