"""Queries on one model, in the fastest way that the model allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedModel

from lrbench.errors import one_line
from lrbench.evaluate.sweep import memory
from lrbench.evaluate.sweep.batches import Batch, Layout, make_batches
from lrbench.evaluate.sweep.frontier import Frontier
from lrbench.evaluate.sweep.passes import Passes
from lrbench.evaluate.sweep.queries import Query
from lrbench.evaluate.sweep.scoring import Tally, score_batches
from lrbench.evaluate.sweep.selfcheck import TOLERANCES, choose, compare, plainly
from lrbench.evaluate.sweep.trees import Costs, grow
from lrbench.models.slots import find_slots

#: From the fastest down. `packed`: trees of tokens, put together in rows under one mask; `padded`: a plain row for each
#: query; `whole`: likewise, and no block stands aside; `none`: the plain model's numbers were not reproduced.
MODES = ("packed", "padded", "whole", "none")


def silent(message: str) -> None:
    """Says nothing."""


@dataclass
class Part:
    """Queries whose hidden states fit the memory budget together."""

    queries: list[int]
    batches: list[Batch]


class Sweeper:
    """Scores queries from any block on. Made while the model is unedited: it then compares itself with the plain model.

    Args:
        tokens: of a batch; None: as suits the device.
        frontier_bytes: what hidden states kept between calls may take; None: half of what is free. Where it is not
            enough, the queries go in parts.
        mode: the first of `MODES` to be tried.
        notify: told once what has to be done without, and why.

    Attributes:
        mode: what the self-check allowed; with `none`, nothing here may be used.
        parts: to be scored one after the other.
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
        self._blocks = find_slots(model).blocks
        self.parts: list[Part] = []
        self.mode = self._first_that_passes(MODES[MODES.index(mode) :])
        if self.mode == "none":
            return
        self._frontier = Frontier(self._passes)
        budget = memory.free_bytes(model.device) // 2 if frontier_bytes is None else frontier_bytes
        batches = make_batches(queries, self._order, self._layout(self.mode), model.device)
        for part in memory.split(batches, self._passes.width * model.dtype.itemsize, budget):
            asked = {int(index) for batch in part for index in batch.owners.unique()}
            self.parts.append(Part([index for index in self._order if index in asked], part))

    def describe(self) -> dict[str, Any]:
        """The mode, what the self-check found, what was done without and why, and the tokens computed."""
        return {
            "mode": self.mode,
            "self_check": self._checked,
            "fallbacks": self._fallbacks,
            "out_of_memory": self._halvings,
            "batch_tokens": self._tokens,
            "parts": len(self.parts),
            "tokens_asked": sum(len(query.tokens) for query in self._queries),
            "tokens_computed": sum(batch.ids.numel() for part in self.parts for batch in part.batches),
        }

    def advance(self, part: Part, block: int) -> list[torch.Tensor | None]:
        """What enters `block`, batch by batch, for `score`. The model must be unedited."""
        return self._frontier.at(part.batches, block)

    def score(self, part: Part, block: int, states: Sequence[torch.Tensor | None], tally: Tally) -> None:
        """Adds a part's answers to `tally`, with the model as it stands from `block` on."""
        score_batches(self._passes, part.batches, block if self._passes.resume else 0, states, tally)

    def halve(self) -> bool:
        """Makes batches half as large, after memory ran out. False where they are as small as is sensible."""
        self._frontier.drop()
        if self._tokens // 2 < memory.LEAST_TOKENS:
            return False
        self._tokens //= 2
        text = f"batches of {2 * self._tokens} tokens do not fit the memory; going on with {self._tokens}"
        self._halvings.append(text)
        self._notify(f"sweep engine: {text}")
        for part in self.parts:
            part.batches = make_batches(self._queries, part.queries, self._layout(self.mode), self._model.device)
        return True

    def _first_that_passes(self, modes: Sequence[str]) -> str:
        """The fastest mode that gives the plain model's numbers."""
        chosen = choose(self._queries, list(grow(self._queries, self._order, self._costs())))
        try:
            plain = [plainly(self._model, query) for query in chosen]
        except Exception as error:  # a model that cannot even score a sequence will say so again, cell by cell
            self._fall_back(modes[0], MODES[-1], f"the plain model fails: {one_line(error)}")
            return MODES[-1]
        for mode, following in pairwise(modes):
            self._passes = Passes(self._model, self._blocks, resume=mode != "whole")
            try:
                layout, tolerance = self._layout(mode), TOLERANCES[self._model.dtype]
                found = compare(self._passes, chosen, plain, layout, tolerance)
            except Exception as error:  # models refuse masks, positions and stand-ins in many ways
                self._fall_back(mode, following, one_line(error))
                continue
            self._checked = {
                "requests": len(chosen),
                "largest_difference": found.loglikelihood,
                "entering_the_head": found.entering,
                "resuming_is_exact": found.exact,
            }
            if found.passed:
                return mode
            reason = f"log-likelihoods differ by {found.loglikelihood:.2g}, hidden states by {found.entering:.2g}"
            self._fall_back(mode, following, reason)
        return MODES[-1]

    def _fall_back(self, mode: str, following: str, reason: str) -> None:
        self._fallbacks.append({"from": mode, "to": following, "reason": reason})
        instead = "lm-eval's own forward passes are" if following == "none" else f"{following!r} is"
        self._notify(f"sweep engine: this model does not allow mode {mode!r}, so {instead} used ({reason})")

    def _layout(self, mode: str) -> Layout:
        style = "packed" if mode == "packed" else "padded"
        row = min(memory.ROW, self._tokens)
        return Layout(style, self._tokens, row, self._scores(), self._costs())  # type: ignore[arg-type]

    def _costs(self) -> Costs:
        block = sum(parameter.numel() for parameter in self._blocks[0].parameters())
        scores = self._scores()
        longest = memory.LONGEST if scores is None else min(memory.LONGEST, isqrt(scores))
        return Costs(float(block), 4.0 * self._model.config.get_text_config().hidden_size, longest)

    def _scores(self) -> int | None:
        """Attention scores of one head that a batch may have; None where the model does not hold them."""
        if getattr(self._model.config, "_attn_implementation", "eager") != "eager":
            return None
        heads = self._model.config.get_text_config().num_attention_heads
        return memory.of(memory.SCORES, self._model.device) // heads
