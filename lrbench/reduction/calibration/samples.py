"""Calibration windows of tokens, drawn at random but reproducibly on every machine."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from lrbench.reduction.calibration.sources import LENGTH
from lrbench.suite.load import CalibrationSpec

JOINT = "\n\n"  # between documents
HELD_OUT = 2048  # tokens of the held-out part; at least one window
MARGIN = 64  # tokens on either side of a window that are also checked for evaluated documents
_AT_ONCE = 1000  # pieces tokenised together
_PIECE = 20_000  # characters; some tokenizers take more than linear time


@dataclass(frozen=True)
class Samples:
    """Calibration windows.

    Attributes:
        windows: (samples, length) token ids, int64, on the CPU.
        hash: SHA-256 (hex) of the windows.
        passages: the text of each window with a margin around it.
        tokens: the number of tokens of the whole text.
        held_out: (windows, length) token ids of other windows, on which no statistics are computed; may have no rows.
    """

    windows: torch.Tensor
    hash: str
    passages: tuple[str, ...]
    tokens: int
    held_out: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))


def draw(
    spec: CalibrationSpec,
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    *,
    held_out: bool = False,
) -> Samples:
    """Draws a suite's calibration windows.

    Each document is followed by a blank line and tokenised without special tokens, long ones in pieces of whole lines.
    Windows may begin and end within a document and never overlap; the gaps before them are drawn with
    `random.Random(seed)`. Held-out windows lie in the gaps, which they leave as they are.

    Args:
        longest: the model's maximum length, in tokens.
        held_out: whether to draw held-out windows too.

    Raises:
        SuiteError: the text is too short, or the windows are too long for the model; names the suite's line.
    """
    if spec.length is not None and spec.length > longest:
        raise spec.error_at(f"length {spec.length} exceeds the model's maximum of {longest}", "length")
    length = spec.length or min(LENGTH, longest)
    stream: list[int] = []
    pieces = [piece for document in documents for piece in _pieces(document + JOINT)]
    for start in range(0, len(pieces), _AT_ONCE):
        for ids in tokenizer(pieces[start : start + _AT_ONCE], add_special_tokens=False, verbose=False)["input_ids"]:
            stream.extend(ids)
    free = len(stream) - spec.samples * length
    if free < 0:
        raise spec.error_at(
            f"the calibration text has {len(stream):,} tokens, and {spec.samples} samples of {length} need "
            f"{spec.samples * length:,}; take more text, or fewer or shorter samples",
            spec.source,
        )
    random_state = random.Random(spec.seed)
    gaps = sorted(random_state.randint(0, free) for _ in range(spec.samples))
    starts = [gap + index * length for index, gap in enumerate(gaps)]
    others = _between(starts, length, len(stream), random_state) if held_out else []
    if held_out and not others:
        raise spec.error_at(
            f"the calibration text has {len(stream):,} tokens, and between {spec.samples} samples of {length} there "
            f"are no {length} more in a row, which 'allocation: loss' holds out to compare allocations; take more "
            "text, or fewer or shorter samples",
            spec.source,
        )
    windows, held_out_windows = (
        torch.tensor([stream[start : start + length] for start in part], dtype=torch.int64).reshape(-1, length)
        for part in (starts, others)
    )
    passages = (stream[max(0, start - MARGIN) : start + length + MARGIN] for start in (*starts, *others))
    return Samples(
        windows,
        hashlib.sha256(repr(windows.tolist()).encode()).hexdigest(),
        tuple(str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in passages),
        len(stream),
        held_out_windows,
    )


def _between(starts: Sequence[int], length: int, end: int, random_state: random.Random) -> list[int]:
    """Starts of disjoint windows in the gaps between those at `starts`: `HELD_OUT` tokens, or as many as there are."""
    possible: list[int] = []
    before = 0
    for start in (*starts, end):
        count = (start - before) // length
        offset = random_state.randint(0, start - before - count * length)
        possible += [before + offset + index * length for index in range(count)]
        before = start + length
    return sorted(random_state.sample(possible, min(len(possible), max(1, HELD_OUT // length))))


def _pieces(text: str) -> Iterator[str]:
    """Splits a text at line ends into pieces of at least `_PIECE` characters."""
    if len(text) <= _PIECE:
        yield text
        return
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)
