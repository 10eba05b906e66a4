"""After the last attention, every position is computed independently: so compute only the scored positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.forward_patching import Call, Forward, Patch, Trace

WORTH = 0.9  # of a batch's positions; if more than this fraction is scored, selecting them costs as much as it saves


def positionwise(trace: Trace, block: nn.Module, shape: tuple[int, int]) -> list[nn.Module]:
    """The modules that need to compute only the scored positions.

    Decided by the trace, not by names: a module whose only arguments are hidden states (no mask, positions or flags)
    treats positions independently; any other module may mix them. In the last block these are the children called
    after the last mixing child, and that child's own output projection if the child returns its output unchanged;
    after the block, the modules called up to the head.

    Args:
        trace: of a pass through the last block, up to the head.
        block: the last block.
        shape: (rows, length) of the pass.
    """
    called = [call for call in trace.calls if call.module is block]
    if len(called) != 1 or called[0].ended is None:
        return []
    last = called[0]
    after = [call for call in trace.calls if call.begun > called[0].ended and call.ended is not None]
    outermost = [call for call in after if call.parent is None or call.parent.begun < last.begun]
    modules = [call.module for call in outermost if _only_hidden_states(call, shape)]
    children = [call for call in trace.calls if call.parent is last]
    mixing = [call for call in children if not _only_hidden_states(call, shape)]
    if mixing:
        modules += [call.module for call in children if call.begun > mixing[-1].begun]
        modules += _projection(trace, mixing[-1], shape)
    times = [sum(call.module is module for call in trace.calls) for module in modules]
    return [m for m, count in zip(modules, times, strict=True) if count == 1 and any(True for _ in m.parameters())]


def trimming(modules: Sequence[nn.Module], batch: Batch) -> list[Patch]:
    """The patches that make modules compute only a batch's scored positions and return zeros elsewhere."""
    rows, length = batch.ids.shape

    def patch(forward: Forward) -> Forward:
        def trimmed(*args: Any, **kwargs: Any) -> Any:
            picked = tuple(_pick(value, batch.scored) for value in args)
            output = forward(*picked, **{name: _pick(value, batch.scored) for name, value in kwargs.items()})
            if isinstance(output, tuple):
                return tuple(_spread(value, batch.scored, rows, length) for value in output)
            return _spread(output, batch.scored, rows, length)

        return trimmed

    return [(module, patch) for module in modules]


def _projection(trace: Trace, call: Call, shape: tuple[int, int]) -> list[nn.Module]:
    """The module inside a call whose output the call returns unchanged, if that module is positionwise."""
    output = call.output[0] if isinstance(call.output, tuple) else call.output
    makers = [other for other in trace.calls if other is not call and other.within(call) and other.output is output]
    return [makers[0].module] if makers and _only_hidden_states(makers[0], shape) else []


def _only_hidden_states(call: Call, shape: tuple[int, int]) -> bool:
    """Whether a call's only arguments are hidden states, (rows, length, width) or (rows · length, width)."""
    values = [*call.args, *call.kwargs.values()]
    return bool(values) and all(isinstance(v, torch.Tensor) and _folded(v.shape, shape) is not None for v in values)


def _folded(size: torch.Size, shape: tuple[int, int]) -> int | None:
    """The number of dimensions that index positions in hidden states of shape `size`; None for any other tensor."""
    if len(size) == 3 and size[:2] == shape:
        return 2
    return 1 if len(size) == 2 and size[0] == shape[0] * shape[1] else None


def _pick(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Selects positions, n of them: (rows, length, width) to (1, n, width), (rows · length, width) to (n, width)."""
    positions = positions.to(states.device)
    return (
        states.flatten(0, 1).index_select(0, positions)[None] if states.ndim == 3 else states.index_select(0, positions)
    )


def _spread(picked: Any, positions: torch.Tensor, rows: int, length: int) -> Any:
    """The inverse of `_pick`; values that are not hidden states (None, a router's scores) are returned unchanged."""
    if not isinstance(picked, torch.Tensor) or _folded(picked.shape, (1, len(positions))) is None:
        return picked
    states = picked.new_zeros(rows * length, picked.shape[-1])
    states.index_copy_(0, positions.to(picked.device), picked[0] if picked.ndim == 3 else picked)
    return states.unflatten(0, (rows, length)) if picked.ndim == 3 else states
