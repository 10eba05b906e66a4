"""The floor of a sweep: what no exact method avoids, at the speed at which this machine does it.

For every cell, the real tokens (a shared context once) go through the blocks from the edited one on, and the head is
applied at the positions that are asked about. Blocks and head are timed on full batches without padding.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lrbench.models.load import LoadedModel
from lrbench.tasks.frozen_requests import FrozenRequests
from lrbench.tasks.tokenization import TokenPair


@dataclass(frozen=True)
class Work:
    """What a set of requests asks for, once, at any weights.

    Attributes:
        starts, ends: each span of tokens that must be computed, by its positions in its row: a context from 0 on, and
            each continuation from the end of its context on.
        asked: positions whose logits are needed; the last one of a context counts once for all its choices.
        requests, request_tokens: what is asked when nothing is shared.
    """

    starts: np.ndarray
    ends: np.ndarray
    asked: int
    requests: int
    request_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens through each block."""
        return int((self.ends - self.starts).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.ends.max())


def count(requests: FrozenRequests, max_length: int) -> Work:
    """The work of multiple-choice, log-likelihood and rolling requests."""
    continuations: dict[tuple[int, ...], list[int]] = defaultdict(list)
    tokens = 0
    everything: list[TokenPair] = [*requests.pairs, *requests.windows]
    for _, context, continuation in everything:
        row = (context + continuation)[-(max_length + 1) :]  # as lm-eval truncates
        tokens += len(row) - 1
        continuations[tuple(row[: len(row) - len(continuation)])].append(len(continuation))
    starts, ends, asked = [], [], 0
    for context_ids, lengths in continuations.items():
        starts.append(0)
        ends.append(len(context_ids))
        asked += 1
        for length in lengths:
            starts.append(len(context_ids))
            ends.append(len(context_ids) + length - 1)  # the last token predicts nothing that is asked
            asked += length - 1
    return Work(np.array(starts), np.array(ends), asked, len(everything), tokens)


@dataclass(frozen=True)
class Speed:
    """How fast this machine runs a model's blocks and head.

    Attributes:
        lengths, seconds_per_token: of one block, for full rows of these lengths.
        tokens_at_once: of the batches, the best of those tried.
        head_seconds: per position, with the float32 log-softmax, the target's log-probability and the arg max.
        head_gemm_seconds: per position, the matrix product alone.
        peak: FLOP/s of the best of several matrix products.
    """

    lengths: tuple[int, ...]
    seconds_per_token: tuple[float, ...]
    tokens_at_once: int
    head_seconds: float
    head_gemm_seconds: float
    peak: float

    def block_seconds(self, work: Work) -> float:
        """Seconds for one block over all tokens: a row of n tokens takes n times the time per token at length n."""

        def row(n: np.ndarray) -> np.ndarray:
            return n * np.interp(n, self.lengths, self.seconds_per_token)

        return float((row(work.ends) - row(work.starts)).sum())

    def floor(self, work: Work, blocks_to_run: Sequence[int]) -> float:
        """Seconds for cells that run so many blocks each."""
        return sum(blocks_to_run) * self.block_seconds(work) + len(blocks_to_run) * work.asked * self.head_seconds

    def mean_with(self, other: Speed) -> Speed:
        """The mean of two measurements, before and after a sweep."""
        pairs = zip(self.seconds_per_token, other.seconds_per_token, strict=True)
        return Speed(
            self.lengths,
            tuple((a + b) / 2 for a, b in pairs),
            self.tokens_at_once,
            (self.head_seconds + other.head_seconds) / 2,
            (self.head_gemm_seconds + other.head_gemm_seconds) / 2,
            max(self.peak, other.peak),
        )


@torch.no_grad()
def measure(
    loaded: LoadedModel, longest: int, *, quick: bool = False, tokens_at_once: int | None = None, repeats: int = 3
) -> Speed:
    """Times the blocks for rows up to `longest` tokens, the head, and plain matrix products.

    Args:
        quick: measures roughly.
        tokens_at_once: of a batch; None tries several sizes and takes the best.
        repeats: the fastest of so many counts.
    """
    blocks = loaded.inventory.blocks
    longest = max(longest, 16)
    lengths = sorted({16, longest} | {16 << i for i in range(1, 16) if 16 << i < longest})
    if quick:
        repeats, blocks, tokens_at_once = 1, blocks[::3], 512
        lengths = lengths[:1] + lengths[2:-1:2] + lengths[-1:]
    if tokens_at_once is None:
        middle = lengths[len(lengths) // 2]
        tokens_at_once = min(_batch_sizes(loaded), key=lambda n: _block(loaded, blocks, middle, n, 2))
    per_token = tuple(_block(loaded, blocks, length, tokens_at_once, repeats) for length in lengths)
    head, gemm = _head(loaded, repeats)
    return Speed(tuple(lengths), per_token, tokens_at_once, head, gemm, _peak(loaded, repeats))


def flops(loaded: LoadedModel) -> tuple[float, float]:
    """FLOPs of the matrix products with weights, for one token in one block (the mean), and for one head position."""
    inside = sum(slot.size for slot in loaded.inventory.slots if slot.about.layer is not None)
    return 2.0 * inside / len(loaded.inventory.blocks), 2.0 * _head_module(loaded).weight.numel()  # type: ignore[operator]


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _batch_sizes(loaded: LoadedModel) -> tuple[int, ...]:
    return (4096, 16384, 32768) if loaded.device.type == "cuda" else (512, 1024, 2048, 4096, 8192)


def _fastest(device: torch.device, repeats: int, call: Callable[[], object]) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def _block(loaded: LoadedModel, blocks: Sequence[nn.Module], length: int, tokens_at_once: int, repeats: int) -> float:
    """Seconds a token and block: several blocks in turn, on inputs caught in the model's own forward."""
    rows = max(1, tokens_at_once // length)
    vocabulary = loaded.model.config.vocab_size
    ids = torch.randint(1, vocabulary, (rows, length), device=loaded.device)
    caught: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def catch(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((block, args, kwargs))

    hooks = [block.register_forward_pre_hook(catch, with_kwargs=True) for block in blocks]
    try:
        loaded.model.base_model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    def run() -> None:
        for block, args, kwargs in caught:
            block(*args, **kwargs)

    return _fastest(loaded.device, repeats, run) / (rows * length * len(blocks))


def _head_module(loaded: LoadedModel) -> nn.Module:
    return loaded.model.get_output_embeddings()


def _head(loaded: LoadedModel, repeats: int) -> tuple[float, float]:
    """Seconds a position: with log-softmax, and without; the best of several chunk sizes."""
    head = _head_module(loaded)
    width, vocabulary = loaded.model.config.hidden_size, loaded.model.config.vocab_size
    sizes = (1024, 4096, 16384) if loaded.device.type == "cuda" else (64, 256, 1024)
    whole, product = [], []
    for size in sizes:
        hidden = torch.randn(size, width, device=loaded.device, dtype=loaded.dtype)
        targets = torch.randint(vocabulary, (size, 1), device=loaded.device)

        def answer(hidden: torch.Tensor = hidden, targets: torch.Tensor = targets) -> None:
            logits = head(hidden).float()
            (logits.gather(-1, targets)[:, 0] - logits.logsumexp(-1), logits.argmax(-1))

        whole.append(_fastest(loaded.device, repeats, answer) / size)
        product.append(_fastest(loaded.device, repeats, lambda h=hidden: head(h)) / size)  # type: ignore[misc]
    return min(whole), min(product)


def _peak(loaded: LoadedModel, repeats: int) -> float:
    """FLOP/s of x Wᵀ, the best over the shapes of the model's own weights and one large square."""
    large = loaded.device.type == "cuda"
    tokens, square = (16384, 8192) if large else (2048, 1024)
    shapes = {slot.about.shape for slot in loaded.inventory.slots if slot.about.layer is not None}
    rates = []
    for out_features, in_features in [*shapes, (square, square)]:
        weight = torch.randn(out_features, in_features, device=loaded.device, dtype=loaded.dtype)
        x = torch.randn(tokens, in_features, device=loaded.device, dtype=loaded.dtype)
        seconds = _fastest(loaded.device, repeats + 2, lambda x=x, w=weight: nn.functional.linear(x, w))  # type: ignore[misc]
        rates.append(2.0 * tokens * out_features * in_features / seconds)
    return max(rates)
