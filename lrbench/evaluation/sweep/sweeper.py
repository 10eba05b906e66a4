"""Queries on one model, in the fastest way that the model allows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isqrt
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.activation_cache import Memos, Place
from lrbench.evaluation.sweep.answers import Tally, predictions
from lrbench.evaluation.sweep.batches import Batch, Layout, make_batches
from lrbench.evaluation.sweep.block_replay import Recipe
from lrbench.evaluation.sweep.frontier import Frontier
from lrbench.evaluation.sweep.partial_forward import Passes
from lrbench.evaluation.sweep.prefix_trees import Costs, grow
from lrbench.evaluation.sweep.queries import Query
from lrbench.evaluation.sweep.selfcheck import (
    TOLERANCES,
    Compared,
    Plain,
    choose,
    compare,
    make_check,
    make_side_by_side,
    plainly,
    remembers_amiss,
)
from lrbench.models.slots import find_slots
from lrbench.system.device import is_out_of_memory
from lrbench.system.text import one_line

#: From the fastest down. `packed`: trees of tokens, put together in rows under one mask; `padded`: a plain row for each
#: query; `whole`: likewise, and no block stands aside; `none`: the plain model's numbers were not reproduced.
MODES = ("packed", "padded", "whole", "none")

Checked = TypeVar("Checked")


def silent(message: str) -> None:
    """Says nothing."""


@dataclass
class Part:
    """Queries whose hidden states fit the memory budget together."""

    queries: list[int]
    batches: list[Batch]


class Sweeper:
    """Scores queries from any block on. Make it while the model has its original weights: it
    then compares itself with the plain model.

    Args:
        tokens: of a batch; None: as suits the device.
        frontier_bytes: what is kept between calls may take, hidden states and, as far as there is room, what the edited
            block computes before the edit; None: half of what is free. Where it is not enough for the hidden states,
            the queries go in parts.
        mode: the first of `MODES` to be tried.
        notify: told once what has to be done without, and why.

    Attributes:
        mode: what the self-check allowed; with `none`, nothing here may be used.
        parts: to be scored one after the other.
        remembers: whether what precedes the first edited matrix in its block is computed once for all cells that edit
            the same; found out by the self-check.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        queries: Sequence[Query],
        *,
        tokens: int | None = None,
        frontier_bytes: int | None = None,
        mode: str = MODES[0],
        notify: Callable[[str], None] = silent,
    ) -> None:
        self._model = model
        self._queries = queries
        self._notify = notify
        self._order = sorted(range(len(queries)), key=lambda index: queries[index].key)
        self._tokens = tokens or memory.of(memory.TOKENS, model.device)
        self._fallbacks: list[dict[str, str]] = []
        self._halvings: list[str] = []
        self._checked: dict[str, Any] = {}
        self._inventory = find_slots(model)
        self._blocks = self._inventory.blocks
        self._frontier_bytes = frontier_bytes
        self._own = frozenset(model.modules())
        self._recipes: dict[Place, list[Recipe]] = {}
        self.remembers = False
        self.mode = self._first_that_passes(MODES[MODES.index(mode) :])
        self.parts = self._divided()

    def restricted(self, queries: Sequence[Query]) -> Sweeper:
        """The same for some of the queries, or others that are alike: what the self-check found holds for them, too."""
        part = copy.copy(self)
        part._queries = queries
        part._order = sorted(range(len(queries)), key=lambda index: queries[index].key)
        part._fallbacks, part._halvings = list(self._fallbacks), list(self._halvings)
        part.parts = part._divided()
        return part

    def _divided(self) -> list[Part]:
        """The queries in parts whose hidden states fit the memory, and room for these states."""
        if self.mode == "none":
            return []
        model, found = self._model, []
        self._frontier = Frontier(self._passes)
        budget = memory.free_bytes(model.device) // 2 if self._frontier_bytes is None else self._frontier_bytes
        batches = make_batches(self._queries, self._order, self._layout(self.mode), model.device)
        size = self._passes.width * model.dtype.itemsize
        parts = memory.split(batches, size, budget)
        if len(parts) > 1 and self.remembers:  # more of them cost nothing, and leave room for memos
            parts = memory.split(batches, size, budget // 2)
        held = max(size * sum(batch.ids.numel() for batch in part) for part in parts)
        self._memos = Memos(self._passes, max(0, budget - held), self._recipes)
        for part in parts:
            asked = {int(index) for batch in part for index in batch.owners.unique()}
            found.append(Part([index for index in self._order if index in asked], part))
        return found

    def describe(self) -> dict[str, Any]:
        """The mode, what the self-check found, what was done without and why, and the tokens computed."""
        return {
            "mode": self.mode,
            "self_check": self._checked,
            "remembers_before_the_edit": self.remembers,
            "last_block_only_where_asked": self.mode != "none" and self._passes.trim,
            "fallbacks": self._fallbacks,
            "out_of_memory": self._halvings,
            "batch_tokens": self._tokens,
            "parts": len(self.parts),
            "tokens_asked": sum(len(query.tokens) for query in self._queries),
            "tokens_computed": sum(batch.ids.numel() for part in self.parts for batch in part.batches),
        }

    def advance(self, part: Part, block: int) -> list[torch.Tensor | None]:
        """What enters `block`, batch by batch, for `score`. The model must have its original weights."""
        states = self._frontier.at(part.batches, block, self._memos)
        self._memos.keep_only(part.batches, block)
        return states

    def score(
        self,
        part: Part,
        block: int,
        states: Sequence[torch.Tensor | None],
        tally: Tally,
        modules: Collection[str] = (),
    ) -> None:
        """Adds a part's answers to `tally`, with the model as it stands from `block` on.

        Args:
            modules: names of those whose parameters are edited in `block`, if that is all that is edited up to there;
                what the block computes before them is then remembered for the next call with the same ones. Not where
                another module stands in the place of one of them: that is gone when the call is over.
        """
        edited = frozenset(self._model.get_submodule(name) for name in modules)
        remembering = self.remembers and bool(edited) and block < len(self._blocks) and edited <= self._own
        if remembering:
            self._memos.use(part.batches, states, block, edited)
        start = block if self._passes.resume else 0
        for index, (batch, state) in enumerate(zip(part.batches, states, strict=True)):
            if remembering:
                entering = self._memos.asked(index)
            else:
                entering = self._passes.asked(batch, start, state)
            tally.add(batch, *predictions(self._passes, batch, entering))

    def halve(self) -> bool:
        """Makes batches half as large, after memory ran out. False where they are as small as is sensible."""
        self._frontier.drop()
        self._memos.drop()
        if not self._halve_tokens():
            return False
        for part in self.parts:
            part.batches = make_batches(self._queries, part.queries, self._layout(self.mode), self._model.device)
        return True

    def _halve_tokens(self) -> bool:
        if self._tokens // 2 < memory.LEAST_TOKENS:
            return False
        self._tokens //= 2
        text = f"batches of {2 * self._tokens} tokens do not fit the memory; going on with {self._tokens}"
        self._halvings.append(text)
        self._notify(f"sweep engine: {text}")
        return True

    def _first_that_passes(self, modes: Sequence[str]) -> str:
        """The fastest mode that gives the plain model's numbers; then what can be left out in it is found out, too."""
        chosen = choose(self._queries, list(grow(self._queries, self._order, self._costs())))
        try:
            plain = [plainly(self._model, query) for query in chosen]
        except Exception as error:  # a model that cannot even score a sequence will say so again, cell by cell
            self._fall_back(modes[0], MODES[-1], f"the plain model fails: {one_line(error)}")
            return MODES[-1]
        for mode, following in pairwise(modes):
            self._passes = Passes(self._model, self._blocks, resume=mode != "whole")
            blocks = len(self._blocks)
            starts = {0, blocks // 2, blocks - 1, blocks} if self._passes.resume else {0}
            found = self._tried(partial(self._compare, mode, chosen, plain, starts, record=True))
            if isinstance(found, str):
                self._fall_back(mode, following, found)
                continue
            self._checked = {
                "requests": len(chosen),
                "largest_difference": found.loglikelihood,
                "entering_the_head": found.entering,
                "resuming_is_exact": found.exact,
            }
            if found.passed:
                if not found.exact:
                    rounding = "its numbers depend on where a pass begins, by rounding"
                    self._do_without("resumed passes to the last bit", "the same up to rounding", rounding)
                if self._passes.resume:
                    self._check_trimming(mode, chosen, plain, found.exact)
                    self._check_remembering(mode, chosen)
                return mode
            self._fall_back(mode, following, _differ(found))
        return MODES[-1]

    def _check_trimming(self, mode: str, chosen: Sequence[Query], plain: Sequence[Plain], exact: bool) -> None:
        """Lets the last block and what follows compute only where something is asked, if that changes no answer."""
        if not self._passes.trimmed:
            return
        self._passes.trim = True
        starts = {len(self._blocks) - 1, len(self._blocks)}
        found = self._tried(partial(self._compare, mode, chosen, plain, starts))
        if isinstance(found, str) or not found.passed or (exact and not found.exact):
            self._passes.trim = False
            reason = found if isinstance(found, str) else _differ(found)
            self._do_without("the last block only where asked", "the last block at every position", reason)

    def _check_remembering(self, mode: str, chosen: Sequence[Query]) -> None:
        """Lets cells share what their block computes before their edit, if that changes nothing to the last bit."""

        def check() -> str | None:
            shortest = sorted(chosen, key=lambda query: len(query.tokens))[:3]  # what is exact is so on any tokens
            batch = make_check(shortest, self._layout(mode), self._model.device)[-1]
            name = remembers_amiss(self._passes, batch, self._inventory.slots)
            return name and f"what was remembered before {name} is not what it computes"

        amiss = self._tried(check)
        self.remembers = amiss is None
        if amiss is not None:
            self._do_without("what precedes the edit once", "the whole edited block in each cell", amiss)

    def _compare(
        self, mode: str, chosen: Sequence[Query], plain: Sequence[Plain], starts: Collection[int], record: bool = False
    ) -> Compared:
        layout, device, tolerance = self._layout(mode), self._model.device, TOLERANCES[self._model.dtype]
        batches = make_check(chosen, layout, device)
        assert {owner for batch in batches for owner in batch.owners.tolist()} == set(range(len(chosen)))
        if record:
            self._passes.record(batches[-1])
        found = compare(self._passes, batches, plain, tolerance, starts)
        uneven = make_side_by_side(chosen, layout, device)
        return found & compare(self._passes, uneven, plain, tolerance, {min(starts)})

    def _tried(self, check: Callable[[], Checked]) -> Checked | str:
        """What a check finds, in smaller batches where memory runs out; or why the model does not allow it."""
        while True:
            try:
                return check()
            except Exception as error:  # models refuse masks, positions and stand-ins in many ways
                reason, ran_out = one_line(error), is_out_of_memory(error)
            if not (ran_out and self._halve_tokens()):  # outside the handler: what it holds of the failed pass is gone
                return reason

    def _fall_back(self, mode: str, following: str, reason: str) -> None:
        self._fallbacks.append({"from": mode, "to": following, "reason": reason})
        instead = "lm-eval's own forward passes are" if following == "none" else f"{following!r} is"
        self._notify(f"sweep engine: this model does not allow mode {mode!r}, so {instead} used ({reason})")

    def _do_without(self, trick: str, instead: str, reason: str) -> None:
        self._fallbacks.append({"from": trick, "to": instead, "reason": reason})
        self._notify(f"sweep engine: this model does not allow to compute {trick}; {instead} is computed ({reason})")

    def _layout(self, mode: str) -> Layout:
        style = "packed" if mode == "packed" else "padded"
        return Layout(style, self._tokens, 1, self._scores(), self._costs())  # type: ignore[arg-type]

    def _costs(self) -> Costs:
        block = sum(parameter.numel() for parameter in self._blocks[0].parameters())
        scores = self._scores()
        longest = memory.LONGEST if scores is None else min(memory.LONGEST, isqrt(scores))
        return Costs(float(block), 4.0 * getattr(self._model.config.get_text_config(), "hidden_size", 0), longest)

    def _scores(self) -> int | None:
        """Attention scores of one head that a batch may have; None where the model does not hold them, or has none."""
        heads = getattr(self._model.config.get_text_config(), "num_attention_heads", None)
        if heads is None or getattr(self._model.config, "_attn_implementation", "eager") != "eager":
            return None
        return memory.of(memory.SCORES, self._model.device) // heads


def _differ(found: Compared) -> str:
    return f"log-likelihoods differ by {found.loglikelihood:.2g}, hidden states by {found.entering:.2g}"
