"""The order of rows in fused parameters and of stacked experts, by model type.

This table is the only place that names model families; everything else about slots follows from structure and name
patterns. A fused or stacked parameter of unknown order stays whole: shapes, which may be square, do not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrbench.models.layouts import MatrixLayout, Rows

#: Parts of fused parameters -> roles.
PART_ROLES = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "gate": "mlp.gate", "up": "mlp.up"}


@dataclass(frozen=True)
class Interleaving:
    """The order of the rows of a fused matrix: `groups` repetitions of all `parts`, each (name, number of rows)."""

    groups: int
    parts: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        """The number of rows of the whole matrix."""
        return self.groups * sum(size for _, size in self.parts)

    def layouts(self) -> dict[str, Rows]:
        """Part -> its rows."""
        layouts, start = {}, 0
        for part, size in self.parts:
            layouts[part] = Rows(self.groups, start, start + size)
            start += size
        return layouts


@dataclass(frozen=True)
class _Heads:
    """The attention heads of a configuration: query heads, key-value heads, rows per head."""

    count: int
    shared: int
    width: int

    @classmethod
    def of(cls, config: Any, shared: int | None = None) -> _Heads:
        count = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // count
        return cls(count, shared or getattr(config, "num_key_value_heads", None) or count, width)


def _blocks(heads: _Heads) -> Interleaving:
    """All queries, then all keys, then all values."""
    sizes = (heads.count, heads.shared, heads.shared)
    return Interleaving(1, tuple((part, size * heads.width) for part, size in zip("qkv", sizes, strict=True)))


def _by_head(heads: _Heads) -> Interleaving:
    """For each head: query, key, value."""
    return Interleaving(heads.count, tuple((part, heads.width) for part in "qkv"))


def _by_key_value_head(heads: _Heads) -> Interleaving:
    """For each key-value head: the queries that share it, key, value."""
    queries = heads.count // heads.shared
    return Interleaving(heads.shared, (("q", queries * heads.width), ("k", heads.width), ("v", heads.width)))


def _falcon(config: Any) -> Interleaving:
    if config.new_decoder_architecture:
        return _by_key_value_head(_Heads.of(config, config.num_kv_heads))
    return _blocks(_Heads.of(config, 1)) if config.multi_query else _by_head(_Heads.of(config))


def _gpt_bigcode(config: Any) -> Interleaving:
    return _blocks(_Heads.of(config, 1)) if config.multi_query else _by_head(_Heads.of(config))


def _codegen(config: Any) -> Interleaving:
    """Four groups, one per core used in training: queries, values, keys."""
    return Interleaving(4, tuple((part, config.hidden_size // 4) for part in "qvk"))


def _in_blocks(config: Any) -> Interleaving:
    return _blocks(_Heads.of(config))


def _in_heads(config: Any) -> Interleaving:
    return _by_head(_Heads.of(config))


#: model type -> the order of the rows of its fused query, key and value projection
ATTENTION: Mapping[str, Callable[[Any], Interleaving]] = {
    "bloom": _in_heads,
    "codegen": _codegen,
    "falcon": _falcon,
    "gpt2": _in_blocks,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neox": _in_heads,
    "gpt_neox_japanese": _in_heads,
    "mpt": _in_blocks,
    "openai-gpt": _in_blocks,
    "persimmon": _in_heads,
    "phi3": _in_blocks,
}

#: model types whose MLP's fused projection holds the gate, then the up-projection
GATE_THEN_UP = frozenset({"glm", "glm4", "phi3"})


@dataclass(frozen=True)
class Stack:
    """The layout of stacked experts (experts, ., .).

    Attributes:
        transposed: whether each matrix is (in, out).
        interleaved: whether rows of gate and up-projection alternate; else all gate rows come first.
    """

    transposed: bool = False
    interleaved: bool = False


#: layouts of stacked experts for model types whose modules do not state them
STACKS = {"llama4_text": Stack(transposed=True)}


def fused_layouts(path: str, rows: int, config: Any) -> dict[str, Rows] | str:
    """Part -> rows of a fused projection, or the reason why it stays whole.

    Args:
        path: the module's path in its block.
        rows: the number of rows of its matrix (out, in).
        config: the configuration of the language model.
    """
    kind: str = getattr(config, "model_type", "") or "this model"
    if "up" in path.rpartition(".")[2]:
        order = Interleaving(1, (("gate", rows // 2), ("up", rows // 2))) if kind in GATE_THEN_UP else None
    else:
        order = ATTENTION[kind](config) if kind in ATTENTION else None
    if order is None:
        return f"several roles fused in one matrix, in an order that is unknown for {kind}"
    if order.rows != rows:
        return f"several roles fused in one matrix of {rows} rows, where {kind} has {order.rows}"
    return order.layouts()


def stack_of(module: nn.Module, config: Any) -> Stack | None:
    """The layout of the stacked experts in `module`; None if unknown."""
    transposed, concatenated = getattr(module, "is_transposed", None), getattr(module, "is_concatenated", None)
    if isinstance(transposed, bool) and isinstance(concatenated, bool):
        return Stack(transposed, not concatenated)
    return STACKS.get(getattr(config, "model_type", ""))


def expert_layouts(stack: Stack, expert: int, rows: int, *, gated: bool) -> dict[str, MatrixLayout]:
    """Part -> layout of a matrix in a stack; the part is empty if the matrix has a single role.

    Args:
        stack: the layout of the stack.
        expert: the index of the matrix.
        rows: the number of rows of the matrix (out, in).
        gated: whether the matrix holds a gate and an up-projection.
    """
    if not gated:
        return {"": MatrixLayout(expert, stack.transposed)}
    half = rows // 2
    groups, size = (half, 1) if stack.interleaved else (1, half)
    parts = Interleaving(groups, (("gate", size), ("up", size))).layouts()
    return {part: MatrixLayout(expert, stack.transposed, where) for part, where in parts.items()}
