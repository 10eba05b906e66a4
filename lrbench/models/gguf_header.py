"""Reads the header of a GGUF file: its metadata, and how each tensor is stored. No tensor is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lrbench.errors import ModelError
from lrbench.system.text import one_line

_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
#: Types of metadata: number -> struct's letter. Text and arrays are not of fixed size.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a GGUF file.

    Attributes:
        shape: in torch's order.
        kind: such as `F32` or `Q4_1`.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        metadata: key -> number, text or truth value; of an array, its length.
        tensors: in the file's order.
    """

    metadata: dict[str, Any]
    tensors: tuple[StoredTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture; empty if the file has none."""
        return str(self.metadata.get("general.architecture", ""))

    def of_architecture(self, key: str) -> Any:
        """The metadata under a key that begins with the architecture's name; None if there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @property
    def stored(self) -> str:
        """How matrices are stored, the most frequent first: `Q4_1, Q8_0`."""
        elements: Counter[str] = Counter()
        for tensor in self.tensors:
            elements[tensor.kind] += tensor.size if len(tensor.shape) > 1 else 0
        return ", ".join(kind for kind, count in elements.most_common() if count)


def check_magic(file: Path) -> None:
    """Raises ModelError if a file cannot be read, or does not begin as a GGUF file does."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or one_line(error)}") from None
    if begin != _MAGIC:
        raise ModelError(f"{file}: not a GGUF file: it does not begin with the letters GGUF; name one under 'gguf'")


def read_header(file: Path) -> Header:
    """Reads the header of a GGUF file, and checks that the file holds all its tensors. Needs the package `gguf`.

    Raises:
        ModelError: the file is no GGUF file, of another version, cut off, one of several parts, or has tensors of a
            type that is unknown here.
    """
    check_magic(file)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            header, end = _parse(file, _Reader(data))
        except (struct.error, UnicodeDecodeError):
            raise ModelError(
                f"{file}: cut off or damaged: its header does not end within its {len(data):,} bytes; get it again"
            ) from None
        if end > len(data):
            raise ModelError(
                f"{file}: cut off: its tensors end at byte {end:,}, and it has {len(data):,}; get it again"
            )
    return header


class _Reader:
    """Reads values from a position on, which moves past them. Raises struct.error beyond the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def numbers(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self.data, self.position)
        self.position += struct.calcsize(f"<{letters}")
        return values

    def bytes(self, count: int) -> bytes:
        start = self.position
        if start + count > len(self.data):
            raise struct.error
        self.position += count
        return self.data[start : self.position]

    def text(self) -> str:
        return self.bytes(*self.numbers("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.numbers(_letter(kind))[0]
        of, count = self.numbers("IQ")
        if of == _TEXT:
            for _ in range(count):
                self.bytes(*self.numbers("Q"))
        elif self.position + count * struct.calcsize(_letter(of)) > len(self.data):
            raise struct.error
        else:
            self.position += count * struct.calcsize(_letter(of))
        return count


def _letter(kind: int) -> str:
    if kind not in _SCALARS:
        raise struct.error
    return _SCALARS[kind]


def _parse(file: Path, reader: _Reader) -> tuple[Header, int]:
    """The header, and the byte at which the last tensor ends."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    reader.bytes(len(_MAGIC))
    (version,) = reader.numbers("I")
    if version not in _VERSIONS:
        raise ModelError(f"{file}: a GGUF file of version {version}; versions 2 and 3 (little-endian) are read")
    tensor_count, key_count = reader.numbers("QQ")
    metadata = {}
    for _ in range(key_count):
        key = reader.text()
        metadata[key] = reader.value(*reader.numbers("I"))
    parts = metadata.get("split.count", 0)
    if parts > 1:
        raise ModelError(
            f"{file}: one of {parts} parts of a GGUF file; merge them (llama-gguf-split --merge FIRST-PART FILE), "
            "and name the merged file"
        )
    tensors, ends = [], [0]
    for _ in range(tensor_count):
        name, (dimensions,) = reader.text(), reader.numbers("I")
        shape = reader.numbers(f"{dimensions}Q")[::-1]
        kind, offset = reader.numbers("IQ")
        try:
            quantization = GGMLQuantizationType(kind)
        except ValueError:
            raise ModelError(
                f"{file}: {name} is stored as type {kind}, which the installed gguf does not know; "
                "pip install --upgrade gguf"
            ) from None
        elements, size = GGML_QUANT_SIZES[quantization]
        tensors.append(StoredTensor(name, shape, quantization.name))
        ends.append(offset + prod(shape) // elements * size)
    alignment = int(metadata.get("general.alignment", _ALIGNMENT)) or _ALIGNMENT
    start = -(-reader.position // alignment) * alignment
    return Header(metadata, tuple(tensors)), start + max(ends)
