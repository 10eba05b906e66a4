"""Measures prefill speed, decoding speed and peak memory of a model."""

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
class BenchmarkSettings:
    """Prompts of random tokens are read, then tokens are decoded greedily.

    Attributes:
        batches: batch sizes.
        prompt_tokens, new_tokens: lengths, shortened if the model has fewer positions.
        repeats: timed repetitions after one untimed one; the median is reported.
    """

    batches: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 128
    new_tokens: int = 32
    repeats: int = 5

    def fitted_to(self, positions: int | None) -> BenchmarkSettings:
        """Shortens the prompt, then the new tokens, to a model's number of positions."""
        room = positions or self.prompt_tokens + self.new_tokens
        new = max(1, min(self.new_tokens, room // 2))
        return BenchmarkSettings(self.batches, max(1, min(self.prompt_tokens, room - new)), new, self.repeats)


def measure_inference(
    model: PreTrainedModel,
    slots: Sequence[WeightSlot] = (),
    reductions: Sequence[Reduction] = (),
    settings: BenchmarkSettings | None = None,
) -> InferenceSpeed:
    """Times the dense and the factored model in alternation, so that changes of the machine's load affect both.

    The baseline stands for the dense model, since matrices of equal shapes take equal time. Factors that cannot replace
    a layer run as dense matrices and are not counted in `factored_weights`.

    Args:
        model: with its original weights, on its device.
        slots, reductions: one of each per edited weight; empty for the baseline.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    settings = (settings or BenchmarkSettings()).fitted_to(positions)
    running = sum(runs_as_factors(slot, reduction.factors) for slot, reduction in zip(slots, reductions, strict=True))
    measured = InferenceSpeed(
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        repeats=settings.repeats,
        factored_weights=running,
    )
    variants: list[Callable[[], AbstractContextManager[None]]] = [nullcontext]
    if slots:
        variants.append(lambda: in_place(model, slots, reductions, "factored"))
    for batch in settings.batches:
        try:
            speeds = _in_turns(model, variants, batch, settings)
        except Exception as error:  # out of memory, or an unusual forward: recorded, does not fail the cell
            name = "out of memory" if isinstance(error, torch.OutOfMemoryError) else one_line(error)
            return measured.model_copy(update={"reason": f"batch {batch}: {name}"})
        measured.batches.append(AtBatch(batch=batch, dense=speeds[0], factored=speeds[1] if slots else None))
    return measured


def _in_turns(
    model: PreTrainedModel,
    variants: Sequence[Callable[[], AbstractContextManager[None]]],
    batch: int,
    settings: BenchmarkSettings,
) -> list[Speed]:
    prompts = prompts_of(model, batch, settings.prompt_tokens)
    prefill: list[list[float]] = [[] for _ in variants]
    decode: list[list[float]] = [[] for _ in variants]
    peaks: list[int] = []
    for repeat in range(settings.repeats + 1):
        for index, variant in enumerate(variants):
            with variant(), torch.no_grad():
                if repeat == 0:  # untimed: libraries warm up, and measuring memory slows the run
                    time_once(model, prompts, settings.new_tokens)
                    peaks.append(_peak(model, prompts, settings.new_tokens))
                    continue
                reading, decoding = time_once(model, prompts, settings.new_tokens)
                prefill[index].append(reading)
                if decoding is not None:
                    decode[index].append(decoding)
    return [
        Speed(
            prefill_tokens_per_second=prompts.numel() / statistics.median(prefill_seconds),
            decode_tokens_per_second=batch * settings.new_tokens / statistics.median(decode_seconds)
            if decode_seconds
            else None,
            peak_bytes=peak,
        )
        for prefill_seconds, decode_seconds, peak in zip(prefill, decode, peaks, strict=True)
    ]


def prompts_of(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    """Random tokens, (batch, length), on the model's device; the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(model.device)


def time_once(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> tuple[float, float | None]:
    """Seconds of prefill for prompts (batch, length), and of decoding; None if the model has no cache."""
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    synchronize(prompts.device)
    started = time.perf_counter()
    output: Any = model(input_ids=prompts, use_cache=True, **last)
    token = output.logits[:, -1:].argmax(-1)
    synchronize(prompts.device)
    prefill = time.perf_counter() - started
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        return prefill, None
    started = time.perf_counter()
    for _ in range(new_tokens):
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
    synchronize(prompts.device)
    return prefill, time.perf_counter() - started


def _peak(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> int:
    """Peak bytes: the model's current weights and all other tensors alive at the same time.

    Original weights replaced by an edit are not counted. Uses the allocator's statistics on a GPU, else counts tensors.
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
    """Counts the bytes of all storages created by operations, as long as they are referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not _is_plain(leaf):
                continue
            storage = leaf.untyped_storage()
            place = storage.data_ptr()
            if place in arguments or place in self._known or not place:
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
