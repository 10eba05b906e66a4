"""Running parts of a model through its own forward: some blocks stand aside, and the pass may stop early."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.block_replay import Memo, Recipe, Recording, recipes
from lrbench.evaluation.sweep.forward_patching import Change, Trace, answering, changed, instead
from lrbench.evaluation.sweep.last_block import WORTH, positionwise, trimming
from lrbench.evaluation.sweep.masks import Masks


class _Stop(Exception):  # noqa: N818 - no error: it ends a pass whose rest is not needed
    """Carries what the pass was made for."""

    def __init__(self, found: torch.Tensor) -> None:
        self.found = found


class Passes:
    """Parts of a model's forward pass over batches, all without gradients.

    No family is named. A block stands aside by returning, in the form in which it returns itself, hidden states that
    were recorded earlier; all else (embeddings, masks, rotary angles) the model makes as ever. What is asked of the
    head is put in as the head's input, so that scaled and capped logits come out as the model computes them.

    Args:
        blocks: the decoder blocks.
        resume: whether blocks may stand aside at all; else every pass goes through all of them.

    Attributes:
        width: of the hidden states, once recorded.
        trim: whether what follows the last attention computes at the asked positions only. Hidden states elsewhere
            then mean nothing.
        trimmed: the modules that this concerns, once recorded.
        vocabulary: how many logits a position has.
    """

    def __init__(self, model: PreTrainedModel, blocks: Sequence[nn.Module], *, resume: bool = True) -> None:
        self.model = model
        self.blocks = list(blocks)
        self.resume = resume
        self.trim = False
        self.trimmed: list[nn.Module] = []
        self._masks = Masks(model.config, model.dtype)
        self._forms: list[int | None] = []  # of each block: how many things it returns; None: a bare tensor
        self.width = 0
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])  # an edited head may hold no such matrix

    @property
    def _head(self) -> nn.Module:
        """The one that is there now: an edit may have put another in its place."""
        return self.model.get_output_embeddings()

    @torch.no_grad()
    def states(
        self, batch: Batch, start: int, states: torch.Tensor | None, stop: int, inside: Memo | Recording | None = None
    ) -> torch.Tensor:
        """Hidden states that leave block `stop` - 1, (rows, length, width).

        Args:
            start: the first block that computes; those below stand aside.
            states: what left block `start` - 1; None where `start` is 0.
            inside: what of block `start` stands aside, or is to be remembered for that.
        """

        def caught(_module: nn.Module, _args: Any, output: Any) -> None:
            raise _Stop(output if isinstance(output, torch.Tensor) else output[0])

        hook = self.blocks[stop - 1].register_forward_hook(caught)
        try:
            return self._until_stopped(batch, start, states, inside, last=stop == len(self.blocks))
        finally:
            hook.remove()

    @torch.no_grad()
    def asked(
        self, batch: Batch, start: int, states: torch.Tensor | None, inside: Memo | Recording | None = None
    ) -> torch.Tensor:
        """What enters the head at the asked positions, (positions, width); arguments as in `states`."""

        def caught(_module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Stop(args[0])

        hook = self._head.register_forward_pre_hook(caught)
        try:
            entering = self._until_stopped(batch, start, states, inside)
        finally:
            hook.remove()
        return entering.reshape(-1, entering.shape[-1]).index_select(0, batch.asked.to(entering.device))

    @torch.no_grad()
    def recipes(
        self, batch: Batch, start: int, states: torch.Tensor | None, edited: Collection[nn.Module]
    ) -> list[Recipe]:
        """What of block `start` need not be computed again once remembered, if only `edited` in it change.

        Args:
            batch, states: to find it out with, in a pass through this block.
        """
        block = self.blocks[start]
        if not set(edited) <= set(block.modules()):
            return []
        trace, trim = Trace(), self.trim
        self.trim = False
        try:
            with changed(trace.follow(module) for module in block.modules()), trace:
                self.states(batch, start, states, start + 1)
        finally:
            self.trim = trim
        return recipes(trace, block, edited, batch.ids.numel())

    @torch.no_grad()
    def logits(self, entering: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary), float32, from what enters the head (positions, width)."""

        def replaced(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (entering[None].to(args[0].device), *args[1:])

        one = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        idle = torch.zeros(1, 1, self.width, dtype=entering.dtype, device=entering.device)
        hook = self._head.register_forward_pre_hook(replaced)
        try:
            with changed(self._aside(len(self.blocks) if self.resume else 0, idle)):
                return self.model(input_ids=one, use_cache=False).logits[0].to(entering.device).float()
        finally:
            hook.remove()

    @torch.no_grad()
    def record(self, batch: Batch) -> None:
        """Learns in what form each block returns, how wide, and what may be trimmed; needed before any of these."""
        forms: dict[int, int | None] = {}

        def noted(module: nn.Module, _args: Any, output: Any) -> None:
            forms[id(module)] = None if isinstance(output, torch.Tensor) else len(output)
            self.width = (output if isinstance(output, torch.Tensor) else output[0]).shape[-1]

        trace, self.trimmed = Trace(), []
        below = {module for block in self.blocks[:-1] for module in block.modules()}
        hooks = [block.register_forward_hook(noted) for block in self.blocks]
        try:
            with changed(trace.follow(module) for module in self.model.modules() if module not in below):
                self.asked(batch, 0, None)
        finally:
            for hook in hooks:
                hook.remove()
        self._forms = [forms[id(block)] for block in self.blocks]
        rows, length = batch.ids.shape
        self.trimmed = positionwise(trace, self.blocks[-1], (rows, length))

    def _until_stopped(
        self, batch: Batch, start: int, states: torch.Tensor | None, inside: Memo | Recording | None, last: bool = True
    ) -> torch.Tensor:
        arguments: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.depths is not None:
            arguments |= {"position_ids": batch.depths, "attention_mask": self._masks.of(batch)}
        changes = [*self._aside(start, states), *(inside.inner() if inside else ())]
        if last and self.trim and len(batch.asked) <= WORTH * batch.ids.numel():
            changes += trimming(self.trimmed, batch)
        if isinstance(inside, Recording):
            changes += inside.outer()
        try:
            with changed(changes):
                self.model(**arguments)
        except _Stop as stop:
            return stop.found
        raise RuntimeError("the model's forward pass went by the place where it was to be stopped")

    def _aside(self, count: int, states: torch.Tensor | None) -> list[Change]:
        """The first `count` blocks return `states`."""
        return [
            instead(block, answering(states if form is None else (states, *[None] * (form - 1))))
            for block, form in zip(self.blocks[:count], self._forms, strict=False)
        ]
