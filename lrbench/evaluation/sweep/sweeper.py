"""Scores queries on one model in the fastest mode that the model supports."""

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
from lrbench.evaluation.sweep.activation_cache import ActivationCache, EditSite
from lrbench.evaluation.sweep.answers import Tally, predictions
from lrbench.evaluation.sweep.batches import PLAIN_FROM, Batch, BatchLayout, make_batches
from lrbench.evaluation.sweep.block_replay import Recipe
from lrbench.evaluation.sweep.frontier import Frontier
from lrbench.evaluation.sweep.partial_forward import PartialForward
from lrbench.evaluation.sweep.prefix_trees import Costs, grow
from lrbench.evaluation.sweep.queries import Query
from lrbench.evaluation.sweep.selfcheck import (
    SHORT,
    TOLERANCES,
    PassComparison,
    Reference,
    choose,
    compare,
    first_wrong_replay,
    length_limits,
    make_check,
    make_plain_rows,
    make_side_by_side,
    score_plainly,
)
from lrbench.models.slot_search import find_slots
from lrbench.system.device import is_out_of_memory
from lrbench.system.text import one_line, silent

#: The fastest first. `packed`: rows of prefix trees under one mask; `padded`: a plain row per query; `whole`: likewise,
#: but every pass runs all blocks; `none`: the engine does not reproduce the plain model's results.
MODES = ("packed", "padded", "whole", "none")

Checked = TypeVar("Checked")


@dataclass
class QueryPart:
    """Queries whose hidden states fit the memory budget together."""

    queries: list[int]
    batches: list[Batch]


class Sweeper:
    """Scores queries from any block on.

    Make it while the model has its original weights, because it then runs the self-check against the plain model.

    Args:
        tokens: per batch; None: chosen for the device.
        frontier_bytes: the budget for hidden states kept between calls, and, in what they leave, for cached
            activations of the edited block; None: half of the free memory. If the hidden states do not fit, the
            queries are split into parts.
        mode: the first of `MODES` to try.
        notify: called with one line for each optimisation that the model does not support.

    Attributes:
        mode: the mode that passed the self-check; with `none`, do not call `advance` or `score`.
        parts: to be scored one after the other.
        replays: whether modules of the edited block that do not depend on the edit are computed once for all cells
            with the same edit; decided by the self-check.
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
        self._recipes: dict[EditSite, list[Recipe]] = {}
        self.replays = False
        self.mode = self._first_that_passes(MODES[MODES.index(mode) :])
        self.parts = self._divided()

    def restricted(self, queries: Sequence[Query]) -> Sweeper:
        """A sweeper for other queries of the same kind, which reuses the result of the self-check."""
        part = copy.copy(self)
        part._queries = queries
        part._order = sorted(range(len(queries)), key=lambda index: queries[index].key)
        part._fallbacks, part._halvings = list(self._fallbacks), list(self._halvings)
        part.parts = part._divided()
        return part

    def _divided(self) -> list[QueryPart]:
        """Splits the queries into parts whose hidden states fit the memory, and makes the frontier and the cache."""
        if self.mode == "none":
            return []
        model, query_parts = self._model, []
        self._frontier = Frontier(self._passes)
        budget = memory.free_bytes(model.device) // 2 if self._frontier_bytes is None else self._frontier_bytes
        batches = make_batches(self._queries, self._order, self._layout(self.mode), model.device)
        size = self._passes.width * model.dtype.itemsize
        parts = memory.split(batches, size, budget)
        if len(parts) > 1 and self.replays:  # more parts cost nothing, and leave room for the cache
            parts = memory.split(batches, size, budget // 2)
        held = max(size * sum(batch.ids.numel() for batch in part) for part in parts)
        self._cache = ActivationCache(self._passes, max(0, budget - held), self._recipes)
        for part in parts:
            indices = {int(index) for batch in part for index in batch.owners.unique()}
            query_parts.append(QueryPart([index for index in self._order if index in indices], part))
        return query_parts

    def describe(self) -> dict[str, Any]:
        """The mode, the self-check's result, the fallbacks with reasons, and token counts; for the manifest."""
        return {
            "mode": self.mode,
            "self_check": self._checked,
            "remembers_before_the_edit": self.replays,
            "last_block_only_where_asked": self.mode != "none" and self._passes.trim,
            "fallbacks": self._fallbacks,
            "out_of_memory": self._halvings,
            "batch_tokens": self._tokens,
            "parts": len(self.parts),
            "tokens_asked": sum(len(query.tokens) for query in self._queries),
            "tokens_computed": sum(batch.ids.numel() for part in self.parts for batch in part.batches),
        }

    def advance(self, part: QueryPart, block: int) -> list[torch.Tensor | None]:
        """The hidden states that enter `block`, per batch, for `score`. The model must have its original weights."""
        states = self._frontier.at(part.batches, block, self._cache)
        self._cache.keep_only(part.batches, block)
        return states

    def score(
        self,
        part: QueryPart,
        block: int,
        states: Sequence[torch.Tensor | None],
        tally: Tally,
        modules: Collection[str] = (),
    ) -> None:
        """Adds a part's answers to `tally`, running the edited model from `block` on.

        Args:
            modules: names of the modules edited in `block`, if nothing before the block is edited. Activations of the
                block that do not depend on them are then cached for the next call with the same modules, unless an
                edit has replaced one of these modules.
        """
        edited = frozenset(self._model.get_submodule(name) for name in modules)
        remembering = self.replays and bool(edited) and block < len(self._blocks) and edited <= self._own
        if remembering:
            self._cache.use(part.batches, states, block, edited)
        start = block if self._passes.resume else 0
        for index, (batch, state) in enumerate(zip(part.batches, states, strict=True)):
            if remembering:
                entering = self._cache.head_inputs(index)
            else:
                entering = self._passes.head_inputs(batch, start, state)
            tally.add(batch, *predictions(self._passes, batch, entering))

    def halve(self) -> bool:
        """Halves the batch size after memory ran out. False if batches are already at the minimum."""
        self._frontier.drop()
        self._cache.drop()
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
        """The fastest mode that reproduces the plain model's results, with its further optimisations checked."""
        limits = length_limits(self._model.config)
        chosen = choose(self._queries, list(grow(self._queries, self._order, self._costs())), limits)
        try:
            plain = [score_plainly(self._model, query) for query in chosen]
        except Exception as error:  # a model that cannot even score a sequence fails again in each cell
            self._fall_back(modes[0], MODES[-1], f"the plain model fails: {one_line(error)}")
            return MODES[-1]
        for mode, following in pairwise(modes):
            self._passes = PartialForward(self._model, self._blocks, resume=mode != "whole")
            blocks = len(self._blocks)
            starts = {0, blocks // 2, blocks - 1, blocks} if self._passes.resume else {0}
            comparison = self._attempted(partial(self._compare, mode, chosen, plain, starts, record=True))
            if isinstance(comparison, str):
                self._fall_back(mode, following, comparison)
                continue
            self._checked = {
                "requests": len(chosen),
                "largest_difference": comparison.loglikelihood,
                "entering_the_head": comparison.entering,
                "resuming_is_exact": comparison.exact,
            }
            if comparison.passed:
                if not comparison.exact:
                    rounding = "its numbers depend on where a pass begins, by rounding"
                    self._do_without("resumed passes to the last bit", "the same up to rounding", rounding)
                if self._passes.resume:
                    self._check_trimming(mode, chosen, plain, comparison.exact)
                    self._check_remembering(mode, chosen)
                return mode
            self._fall_back(mode, following, _differ(comparison))
        return MODES[-1]

    def _check_trimming(self, mode: str, chosen: Sequence[Query], plain: Sequence[Reference], exact: bool) -> None:
        """Restricts the last block and what follows to scored positions, if that changes no answer."""
        if not self._passes.trimmed:
            return
        self._passes.trim = True
        starts = {len(self._blocks) - 1, len(self._blocks)}
        comparison = self._attempted(partial(self._compare, mode, chosen, plain, starts, record=False))
        if isinstance(comparison, str) or not comparison.passed or (exact and not comparison.exact):
            self._passes.trim = False
            reason = comparison if isinstance(comparison, str) else _differ(comparison)
            self._do_without("the last block only where asked", "the last block at every position", reason)

    def _check_remembering(self, mode: str, chosen: Sequence[Query]) -> None:
        """Enables the replay of the edited block, if that gives bit-identical results."""

        def check() -> str | None:
            # bit-exactness does not depend on the tokens
            shortest = [
                query.shortened(SHORT // 3) for query in sorted(chosen, key=lambda query: len(query.tokens))[:3]
            ]
            batch = make_check(shortest, self._layout(mode), self._model.device)[-1]
            name = first_wrong_replay(self._passes, batch, self._inventory.slots)
            return name and f"what was remembered before {name} is not what it computes"

        problem = self._attempted(check)
        self.replays = problem is None
        if problem is not None:
            self._do_without("what precedes the edit once", "the whole edited block in each cell", problem)

    def _compare(
        self,
        mode: str,
        chosen: Sequence[Query],
        plain: Sequence[Reference],
        starts: Collection[int],
        *,
        record: bool,
    ) -> PassComparison:
        """Compares all batches of the chosen queries. `record`: notes the form of the blocks' outputs first."""
        layout, device, tolerance = self._layout(mode), self._model.device, TOLERANCES[self._model.dtype]
        batches = make_check(chosen, layout, device)
        assert {owner for batch in batches for owner in batch.owners.tolist()} == set(range(len(chosen)))
        if record:
            self._passes.record(batches[-1])
        comparison = compare(self._passes, batches, plain, tolerance, starts, overwrite=record)
        uneven = make_side_by_side(chosen, layout, device)
        comparison &= compare(self._passes, uneven, plain, tolerance, {min(starts)}, overwrite=record)
        if layout.style == "packed" and any(len(query.tokens) >= PLAIN_FROM for query in self._queries):
            rows = make_plain_rows(chosen, layout, device)
            starts = {min(starts), len(self._blocks) // 2}
            comparison &= compare(self._passes, rows, plain, tolerance, starts, overwrite=record)
        return comparison

    def _attempted(self, check: Callable[[], Checked]) -> Checked | str:
        """The result of a check, run in smaller batches if memory runs out; or the reason why the model fails it."""
        while True:
            try:
                return check()
            except Exception as error:  # models reject masks, positions and skipped modules in many ways
                reason, ran_out = one_line(error), is_out_of_memory(error)
            # outside the handler, so that the tensors of the failed pass are released
            if not (ran_out and self._halve_tokens()):
                return reason

    def _fall_back(self, mode: str, following: str, reason: str) -> None:
        self._fallbacks.append({"from": mode, "to": following, "reason": reason})
        instead = "lm-eval's own forward passes" if following == "none" else f"mode {following!r}"
        self._notify(f"sweep engine: this model does not support mode {mode!r}; using {instead} ({reason})")

    # the manifest stores these words: a comparison with an older run must not show a difference
    def _do_without(self, optimisation: str, instead: str, reason: str) -> None:
        self._fallbacks.append({"from": optimisation, "to": instead, "reason": reason})
        self._notify(f"sweep engine: this model cannot compute {optimisation}; computing {instead} ({reason})")

    def _layout(self, mode: str) -> BatchLayout:
        style = "packed" if mode == "packed" else "padded"
        return BatchLayout(style, self._tokens, 1, self._scores(), self._costs())  # type: ignore[arg-type]

    def _costs(self) -> Costs:
        block = sum(parameter.numel() for parameter in self._blocks[0].parameters())
        scores = self._scores()
        longest = memory.LONGEST if scores is None else min(memory.LONGEST, isqrt(scores))
        return Costs(float(block), 4.0 * getattr(self._model.config.get_text_config(), "hidden_size", 0), longest)

    def _scores(self) -> int | None:
        """The maximum attention scores per head and batch; None if the model does not materialise them."""
        heads = getattr(self._model.config.get_text_config(), "num_attention_heads", None)
        if heads is None or getattr(self._model.config, "_attn_implementation", "eager") != "eager":
            return None
        return memory.of(memory.SCORES, self._model.device) // heads


def _differ(comparison: PassComparison) -> str:
    return f"log-likelihoods differ by {comparison.loglikelihood:.2g}, hidden states by {comparison.entering:.2g}"
