"""Measures how fast a model reads a prompt and writes after it, and what memory that takes."""

from __future__ import annotations

import inspect
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from lrbench.models.factored_layers import runs_as_factors
from lrbench.models.slots import WeightSlot
from lrbench.reduction.apply import in_place
from lrbench.reduction.reduced_weight import Reduction
from lrbench.results.rows import AtBatch, InferenceSpeed, Speed
from lrbench.system.device import synchronize
from lrbench.system.text import one_line


@dataclass(frozen=True)
class Protocol:
    """What is run: prompts of random tokens, then greedy tokens one at a time.

    Attributes:
        batches: how many prompts at once.
        prompt_tokens, new_tokens: as long as that; shorter where the model's positions end.
        repeats: timed after one that is not; the median counts.
    """

    batches: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 128
    new_tokens: int = 32
    repeats: int = 5

    def within(self, positions: int | None) -> Protocol:
        """The same in a model of so many positions: the prompt gives way, then the new tokens."""
        room = positions or self.prompt_tokens + self.new_tokens
        new = max(1, min(self.new_tokens, room // 2))
        return Protocol(self.batches, max(1, min(self.prompt_tokens, room - new)), new, self.repeats)


def measure_inference(
    model: PreTrainedModel,
    slots: Sequence[WeightSlot] = (),
    reductions: Sequence[Reduction] = (),
    protocol: Protocol | None = None,
) -> InferenceSpeed:
    """Dense against factored, in turns, so that both meet the same machine.

    Dense is the baseline: matrices of the same shapes take the same time. Factors that cannot take a layer's
    place run as matrices, and are counted out of `factored_weights`.

    Args:
        model: with its original weights, on its device.
        slots, reductions: one of each for each edited weight; none for the baseline's own row.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    plan = (protocol or Protocol()).within(positions)
    running = sum(runs_as_factors(slot, done.factors) for slot, done in zip(slots, reductions, strict=True))
    found = InferenceSpeed(
        prompt_tokens=plan.prompt_tokens, new_tokens=plan.new_tokens, repeats=plan.repeats, factored_weights=running
    )
    forms: list[Callable[[], AbstractContextManager[None]]] = [nullcontext]
    if slots:
        forms.append(lambda: in_place(model, slots, reductions, "factored"))
    for batch in plan.batches:
        try:
            speeds = _in_turns(model, forms, batch, plan)
        except Exception as error:  # memory, or a model whose forward takes something else: a fact, no failed cell
            name = "out of memory" if isinstance(error, torch.OutOfMemoryError) else one_line(error)
            return found.model_copy(update={"reason": f"batch {batch}: {name}"})
        found.batches.append(AtBatch(batch=batch, dense=speeds[0], factored=speeds[1] if slots else None))
    return found


def _in_turns(
    model: PreTrainedModel, forms: Sequence[Callable[[], AbstractContextManager[None]]], batch: int, plan: Protocol
) -> list[Speed]:
    prompts = prompts_of(model, batch, plan.prompt_tokens)
    prefill: list[list[float]] = [[] for _ in forms]
    decode: list[list[float]] = [[] for _ in forms]
    peaks: list[int] = []
    for repeat in range(plan.repeats + 1):
        for index, form in enumerate(forms):
            with form(), torch.no_grad():
                if repeat == 0:  # untimed: libraries warm up, and memory is watched, which takes time of its own
                    time_once(model, prompts, plan.new_tokens)
                    peaks.append(_peak(model, prompts, plan.new_tokens))
                    continue
                seconds, after = time_once(model, prompts, plan.new_tokens)
                prefill[index].append(seconds)
                if after is not None:
                    decode[index].append(after)
    return [
        Speed(
            prefill_tokens_per_second=prompts.numel() / statistics.median(reading),
            decode_tokens_per_second=batch * plan.new_tokens / statistics.median(writing) if writing else None,
            peak_bytes=peak,
        )
        for reading, writing, peak in zip(prefill, decode, peaks, strict=True)
    ]


def prompts_of(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    """Random tokens, (batch, length), on the model's device; the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(model.device)


def time_once(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> tuple[float, float | None]:
    """Seconds of reading prompts (batch, length), and of writing after them; None where the model keeps no cache."""
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    synchronize(prompts.device)
    started = time.perf_counter()
    output: Any = model(input_ids=prompts, use_cache=True, **last)
    token = output.logits[:, -1:].argmax(-1)
    synchronize(prompts.device)
    read = time.perf_counter() - started
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        return read, None
    started = time.perf_counter()
    for _ in range(new_tokens):
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
    synchronize(prompts.device)
    return read, time.perf_counter() - started


def _peak(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> int:
    """Bytes of the weights as they run, and of what lives beside them at the most.

    What stands aside for an edit is not counted. On a GPU the allocator says, elsewhere the tensors are counted.
    """
    held = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in _tensors(model)}
    weights = sum(held.values())
    if prompts.device.type == "cuda":
        before = torch.cuda.memory_allocated(prompts.device)
        torch.cuda.reset_peak_memory_stats(prompts.device)
        time_once(model, prompts, new_tokens)
        return weights + torch.cuda.max_memory_allocated(prompts.device) - before
    with _Alive() as alive:
        time_once(model, prompts, new_tokens)
    return weights + alive.peak


def _tensors(model: PreTrainedModel) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from their making until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not _is_plain(leaf):
                continue
            storage = leaf.untyped_storage()
            place = storage.data_ptr()
            if place in given or place in self._known or not place:
                continue
            self._known.add(place)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, place, storage.nbytes())
        return result

    def _gone(self, place: int, size: int) -> None:
        self.now -= size
        self._known.discard(place)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
