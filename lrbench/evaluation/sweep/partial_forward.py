"""Runs part of a model through its own forward: leading blocks are skipped, and the pass may stop early."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.block_replay import Memo, Recipe, Recording, recipes
from lrbench.evaluation.sweep.forward_patching import Patch, Trace, patched, replacing, returning
from lrbench.evaluation.sweep.last_block import WORTH, positionwise, trimming
from lrbench.evaluation.sweep.masks import Masks


class _Stop(Exception):  # noqa: N818 - not an error: it ends a pass whose rest is not needed
    """Carries the tensor for which the pass was run."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class PartialForward:
    """Runs parts of a model's forward pass over batches, without gradients and for any model family.

    A skipped block returns recorded hidden states in its usual output format; the model itself still makes embeddings,
    masks and rotary angles. Logits are computed by replacing the head's input in the model's own forward, so that the
    model's scaling and capping of logits apply.

    Args:
        blocks: the decoder blocks.
        resume: whether leading blocks may be skipped; otherwise every pass runs all of them.

    Attributes:
        width: the width of hidden states, after `record`.
        trim: whether modules after the last attention compute only scored positions; hidden states elsewhere are
            then meaningless.
        trimmed: these modules, after `record`.
        vocabulary: logits per position.
    """

    def __init__(self, model: PreTrainedModel, blocks: Sequence[nn.Module], *, resume: bool = True) -> None:
        self.model = model
        self.blocks = list(blocks)
        self.resume = resume
        self.trim = False
        self.trimmed: list[nn.Module] = []
        self._masks = Masks(model.config, model.dtype)
        self._forms: list[int | None] = []  # per block: the length of the tuple that it returns; None: a bare tensor
        self.width = 0
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])  # an edited head may have no weight

    @property
    def _head(self) -> nn.Module:
        """The current head, which an edit may have replaced."""
        return self.model.get_output_embeddings()

    @torch.no_grad()
    def states(
        self, batch: Batch, start: int, states: torch.Tensor | None, stop: int, inside: Memo | Recording | None = None
    ) -> torch.Tensor:
        """The output of block `stop` - 1, (rows, length, width).

        Args:
            start: the first block to run; earlier ones are skipped.
            states: the output of block `start` - 1; None if `start` is 0.
            inside: replays or records modules of block `start`.
        """

        def caught(_module: nn.Module, _args: Any, output: Any) -> None:
            raise _Stop(output if isinstance(output, torch.Tensor) else output[0])

        hook = self.blocks[stop - 1].register_forward_hook(caught)
        try:
            return self._until_stopped(batch, start, states, inside, last=stop == len(self.blocks))
        finally:
            hook.remove()

    @torch.no_grad()
    def head_inputs(
        self, batch: Batch, start: int, states: torch.Tensor | None, inside: Memo | Recording | None = None
    ) -> torch.Tensor:
        """The head's input at the scored positions, (positions, width); arguments as in `states`."""

        def caught(_module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Stop(args[0])

        hook = self._head.register_forward_pre_hook(caught)
        try:
            entering = self._until_stopped(batch, start, states, inside)
        finally:
            hook.remove()
        return entering.reshape(-1, entering.shape[-1]).index_select(0, batch.scored.to(entering.device))

    @torch.no_grad()
    def recipes(
        self, batch: Batch, start: int, states: torch.Tensor | None, edited: Collection[nn.Module]
    ) -> list[Recipe]:
        """The recipes for replaying block `start` when only the `edited` modules change.

        Args:
            batch, states: the input of the traced pass through the block.
        """
        block = self.blocks[start]
        if not set(edited) <= set(block.modules()):
            return []
        trace, trim = Trace(), self.trim
        self.trim = False
        try:
            with patched(trace.follow(module) for module in block.modules()), trace:
                self.states(batch, start, states, start + 1)
        finally:
            self.trim = trim
        return recipes(trace, block, edited, batch.ids.numel())

    @torch.no_grad()
    def logits(self, entering: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary), float32, from the head's input (positions, width)."""

        def replaced(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (entering[None].to(args[0].device), *args[1:])

        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        placeholder = torch.zeros(1, 1, self.width, dtype=entering.dtype, device=entering.device)
        hook = self._head.register_forward_pre_hook(replaced)
        try:
            with patched(self._skipping(len(self.blocks) if self.resume else 0, placeholder)):
                return self.model(input_ids=token, use_cache=False).logits[0].to(entering.device).float()
        finally:
            hook.remove()

    @torch.no_grad()
    def record(self, batch: Batch) -> None:
        """Records each block's output format, the width, and the trimmable modules; call it before a partial pass."""
        forms: dict[int, int | None] = {}

        def recorded(module: nn.Module, _args: Any, output: Any) -> None:
            forms[id(module)] = None if isinstance(output, torch.Tensor) else len(output)
            self.width = (output if isinstance(output, torch.Tensor) else output[0]).shape[-1]

        trace, self.trimmed = Trace(), []
        below = {module for block in self.blocks[:-1] for module in block.modules()}
        hooks = [block.register_forward_hook(recorded) for block in self.blocks]
        try:
            with patched(trace.follow(module) for module in self.model.modules() if module not in below):
                self.head_inputs(batch, 0, None)
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
        patches = [*self._skipping(start, states), *(inside.inner() if inside else ())]
        if last and self.trim and len(batch.scored) <= WORTH * batch.ids.numel():
            patches += trimming(self.trimmed, batch)
        if isinstance(inside, Recording):
            patches += inside.outer()
        try:
            with patched(patches):
                self.model(**arguments)
        except _Stop as stop:
            return stop.tensor
        raise RuntimeError("the model's forward pass did not reach the module where it was to stop")

    def _skipping(self, count: int, states: torch.Tensor | None) -> list[Patch]:
        """The patches that make the first `count` blocks return `states`."""
        return [
            replacing(block, returning(states if form is None else (states, *[None] * (form - 1))))
            for block, form in zip(self.blocks[:count], self._forms, strict=False)
        ]
