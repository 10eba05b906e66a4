"""What was remembered of the first edited block, batch by batch, for the cells to come that edit the same of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lrbench.evaluate.sweep.batches import Batch
from lrbench.evaluate.sweep.passes import Passes
from lrbench.evaluate.sweep.replay import Memo, Recipe, Recording


class Memos:
    """Remembers during the first cell that edits certain modules of a block, and gives back to those after it.

    Args:
        budget: bytes for all that is remembered at a time. What saves most for its bytes comes first; the rest is
            computed again in each cell.
    """

    def __init__(self, passes: Passes, budget: int) -> None:
        self._passes = passes
        self._budget = budget
        self._of: tuple[int, frozenset[nn.Module]] | None = None
        self._batches: Sequence[Batch] = ()
        self._recipes: list[Recipe] | None = None
        self._memos: list[Memo | None] = []
        self._seen: list[bool] = []

    @property
    def bytes(self) -> int:
        """What is held."""
        return sum(memo.bytes for memo in self._memos if memo is not None)

    def use(self, batches: Sequence[Batch], block: int, modules: frozenset[nn.Module]) -> None:
        """Says what is edited from now on. What was remembered of other batches or for other edits is forgotten."""
        if self._batches is not batches or self._of != (block, modules):
            self.drop()
            self._batches, self._of = batches, (block, modules)
            self._memos, self._seen = [None] * len(batches), [False] * len(batches)

    def keep_only(self, batches: Sequence[Batch], block: int) -> None:
        """Forgets what belongs to other batches or another block."""
        if self._batches is not batches or self._of is None or self._of[0] != block:
            self.drop()

    def drop(self) -> None:
        """Forgets everything."""
        self._of, self._batches, self._recipes, self._memos, self._seen = None, (), None, [], []

    def asked(self, index: int, states: torch.Tensor | None) -> torch.Tensor:
        """As `Passes.asked`, for a batch by its index, from the edited block on."""
        assert self._of is not None
        block, modules = self._of
        batch = self._batches[index]
        if self._seen[index]:
            return self._passes.asked(batch, block, states, self._memos[index])
        if self._recipes is None:
            self._recipes = self._passes.recipes(batch, block, states, modules)
        recipe = self._affordable(index)
        recording = Recording(recipe) if recipe else None
        entering = self._passes.asked(batch, block, states, recording)
        self._memos[index] = recording.memo() if recording else None
        self._seen[index] = True
        return entering

    def _affordable(self, index: int) -> Recipe | None:
        """The first recipe that fits for this and all later batches; else the last one, while there is room for it."""
        assert self._recipes is not None
        left = self._budget - self.bytes
        here, later = self._batches[index].ids.numel(), sum(b.ids.numel() for b in self._batches[index + 1 :])
        for recipe in self._recipes:
            if recipe.bytes_per_token * (here + later) <= left:
                return recipe
        return next((r for r in self._recipes[-1:] if r.bytes_per_token * here <= left), None)
