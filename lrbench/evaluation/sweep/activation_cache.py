"""What was remembered of the first edited block, batch by batch, for the cells to come that edit the same of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.block_replay import Memo, Recipe, Recording
from lrbench.evaluation.sweep.partial_forward import Passes

#: A block, and the modules in it of which parameters are edited.
Place = tuple[int, frozenset[nn.Module]]


class Memos:
    """Remembers during the first cell that edits certain modules of a block, and gives back to those after it.

    Args:
        budget: bytes for all that is remembered at a time. What saves most for its bytes comes first; the rest is
            computed again in each cell.
        recipes: those found so far, and to come: how a block computes is no matter of the tokens.
    """

    def __init__(self, passes: Passes, budget: int, recipes: dict[Place, list[Recipe]]) -> None:
        self._passes = passes
        self._budget = budget
        self._known = recipes
        self._of: Place | None = None
        self._batches: Sequence[Batch] = ()
        self._states: Sequence[torch.Tensor | None] = ()
        self._recipes: list[Recipe] = []
        self._memos: dict[int, Memo | None] = {}  # of the batches that were seen
        self._held = self._to_come = 0

    @property
    def bytes(self) -> int:
        """What is held."""
        return self._held

    def use(
        self,
        batches: Sequence[Batch],
        states: Sequence[torch.Tensor | None],
        block: int,
        modules: frozenset[nn.Module],
    ) -> None:
        """Says what is edited from now on. What was remembered of other batches or for other edits is forgotten.

        Args:
            states: what enters the block, batch by batch.
            modules: those of which parameters are edited.
        """
        if self._batches is not batches or self._of != (block, modules):
            self.drop()
            self._batches, self._of = batches, (block, modules)
            if self._of not in self._known:
                smallest = min(range(len(batches)), key=lambda index: batches[index].ids.numel())
                self._known[self._of] = self._passes.recipes(batches[smallest], block, states[smallest], modules)
            self._recipes = self._known[self._of]
            self._to_come = sum(batch.ids.numel() for batch in batches)
        self._states = states

    def known(self, batches: Sequence[Batch], block: int, index: int) -> Memo | None:
        """What is remembered of a batch in a block, whatever was edited there; None where that is nothing."""
        here = self._batches is batches and self._of is not None and self._of[0] == block
        return self._memos.get(index) if here else None

    def keep_only(self, batches: Sequence[Batch], block: int) -> None:
        """Forgets what belongs to other batches or another block."""
        if self._batches is not batches or self._of is None or self._of[0] != block:
            self.drop()

    def drop(self) -> None:
        """Forgets everything."""
        self._of, self._batches, self._states, self._recipes, self._memos = None, (), (), [], {}
        self._held = self._to_come = 0

    def asked(self, index: int) -> torch.Tensor:
        """As `Passes.asked`, for a batch by its index, from the edited block on."""
        assert self._of is not None
        batch, states, block = self._batches[index], self._states[index], self._of[0]
        if index in self._memos:
            return self._passes.asked(batch, block, states, self._memos[index])
        recipe = self._affordable(batch.ids.numel())
        recording = Recording(recipe) if recipe else None
        entering = self._passes.asked(batch, block, states, recording)
        memo = self._memos[index] = recording.memo() if recording else None
        self._held += memo.bytes if memo else 0
        self._to_come -= batch.ids.numel()
        return entering

    def _affordable(self, tokens: int) -> Recipe | None:
        """The first recipe that fits for all batches to come; else the least one, while there is room for it."""
        left = self._budget - self._held
        for recipe in self._recipes:
            if recipe.bytes_per_token * self._to_come <= left:
                return recipe
        return next((recipe for recipe in self._recipes[-1:] if recipe.bytes_per_token * tokens <= left), None)
