"""Caches activations of the first edited block, per batch, for later cells that edit the same modules of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.block_replay import Memo, Recipe, Recording
from lrbench.evaluation.sweep.partial_forward import PartialForward

#: A block's index, and the modules in it whose parameters are edited.
EditSite = tuple[int, frozenset[nn.Module]]


class ActivationCache:
    """Filled by the first cell that edits certain modules of a block; later cells with the same edit site reuse it.

    Args:
        budget: bytes for all cached activations. Batches beyond the budget are computed in full in each cell.
        recipes: the known recipes by edit site, extended here. A recipe does not depend on the tokens.
    """

    def __init__(self, passes: PartialForward, budget: int, recipes: dict[EditSite, list[Recipe]]) -> None:
        self._passes = passes
        self._budget = budget
        self._known = recipes
        self._site: EditSite | None = None
        self._batches: Sequence[Batch] = ()
        self._states: Sequence[torch.Tensor | None] = ()
        self._recipes: list[Recipe] = []
        self._cache: dict[int, Memo | None] = {}  # by batch index
        self._held = self._to_come = 0

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self._held

    def use(
        self,
        batches: Sequence[Batch],
        states: Sequence[torch.Tensor | None],
        block: int,
        modules: frozenset[nn.Module],
    ) -> None:
        """Sets the batches and the edit site of the calls to come; drops the cache if either differs.

        Args:
            states: the block's input, per batch.
            modules: the modules of the block whose parameters are edited.
        """
        if self._batches is not batches or self._site != (block, modules):
            self.drop()
            self._batches, self._site = batches, (block, modules)
            if self._site not in self._known:
                smallest = min(range(len(batches)), key=lambda index: batches[index].ids.numel())
                self._known[self._site] = self._passes.recipes(batches[smallest], block, states[smallest], modules)
            self._recipes = self._known[self._site]
            self._to_come = sum(batch.ids.numel() for batch in batches)
        self._states = states

    def known(self, batches: Sequence[Batch], block: int, index: int) -> Memo | None:
        """The cached activations of a batch in a block, for any edit site; None if there are none."""
        here = self._batches is batches and self._site is not None and self._site[0] == block
        return self._cache.get(index) if here else None

    def keep_only(self, batches: Sequence[Batch], block: int) -> None:
        """Drops the cache if it belongs to other batches or another block."""
        if self._batches is not batches or self._site is None or self._site[0] != block:
            self.drop()

    def drop(self) -> None:
        """Drops the cache."""
        self._site, self._batches, self._states, self._recipes, self._cache = None, (), (), [], {}
        self._held = self._to_come = 0

    def head_inputs(self, index: int) -> torch.Tensor:
        """The head's input at the scored positions of a batch, run from the edited block on."""
        assert self._site is not None
        batch, states, block = self._batches[index], self._states[index], self._site[0]
        if index in self._cache:
            return self._passes.head_inputs(batch, block, states, self._cache[index])
        recipe = self._affordable(batch.ids.numel())
        recording = Recording(recipe) if recipe else None
        entering = self._passes.head_inputs(batch, block, states, recording)
        memo = self._cache[index] = recording.memo() if recording else None
        self._held += memo.bytes if memo else 0
        self._to_come -= batch.ids.numel()
        return entering

    def _affordable(self, tokens: int) -> Recipe | None:
        """The first recipe that fits for all remaining batches; else the smallest, if it fits for this batch."""
        left = self._budget - self._held
        for recipe in self._recipes:
            if recipe.bytes_per_token * self._to_come <= left:
                return recipe
        return next((recipe for recipe in self._recipes[-1:] if recipe.bytes_per_token * tokens <= left), None)
