"""Computing only where something is asked: what comes after the last attention treats every position by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.forward_patching import Call, Change, Forward, Trace

WORTH = 0.9  # of the positions of a batch: where more are asked, picking them out costs what it saves


def positionwise(trace: Trace, block: nn.Module, shape: tuple[int, int]) -> list[nn.Module]:
    """Modules that need to compute only at the asked positions.

    Without regard to names: what is called with hidden states and nothing else (no mask, no positions, no flag) treats
    positions apart, and whatever else a block calls may bring them together. So in the last block all that it calls
    with hidden states alone after the last other child, that child's own last projection if it returns what that made,
    and what the model calls between the last block and its head.

    Args:
        trace: of a pass through the last block and all that follows, up to the head.
        block: the last one.
        shape: (rows, length) of the pass.
    """
    called = [call for call in trace.calls if call.module is block]
    if len(called) != 1 or called[0].ended is None:
        return []
    last = called[0]
    after = [call for call in trace.calls if call.begun > called[0].ended and call.ended is not None]
    outermost = [call for call in after if call.parent is None or call.parent.begun < last.begun]
    found = [call.module for call in outermost if _alone(call, shape)]
    children = [call for call in trace.calls if call.parent is last]
    mixing = [call for call in children if not _alone(call, shape)]
    if mixing:
        found += [call.module for call in children if call.begun > mixing[-1].begun]
        found += _projection(trace, mixing[-1], shape)
    times = [sum(call.module is module for call in trace.calls) for module in found]
    return [m for m, count in zip(found, times, strict=True) if count == 1 and any(True for _ in m.parameters())]


def trimming(modules: Sequence[nn.Module], batch: Batch) -> list[Change]:
    """The changes that make modules compute at a batch's asked positions only; elsewhere they return zeros."""
    rows, length = batch.ids.shape

    def change(forward: Forward) -> Forward:
        def trimmed(*args: Any, **kwargs: Any) -> Any:
            picked = tuple(_pick(one, batch.asked) for one in args)
            output = forward(*picked, **{name: _pick(one, batch.asked) for name, one in kwargs.items()})
            if isinstance(output, tuple):
                return tuple(_spread(one, batch.asked, rows, length) for one in output)
            return _spread(output, batch.asked, rows, length)

        return trimmed

    return [(module, change) for module in modules]


def _projection(trace: Trace, call: Call, shape: tuple[int, int]) -> list[nn.Module]:
    """Of what a call made within it, the module whose output it hands on as its own, if it is called so."""
    output = call.output[0] if isinstance(call.output, tuple) else call.output
    makers = [one for one in trace.calls if one is not call and one.within(call) and one.output is output]
    return [makers[0].module] if makers and _alone(makers[0], shape) else []


def _alone(call: Call, shape: tuple[int, int]) -> bool:
    """Whether hidden states, (rows, length, width) or (rows · length, width), are all that a call was given."""
    given = [*call.args, *call.kwargs.values()]
    return bool(given) and all(isinstance(one, torch.Tensor) and _folded(one.shape, shape) is not None for one in given)


def _folded(own: torch.Size, shape: tuple[int, int]) -> int | None:
    """How many dimensions the positions have in hidden states of a shape; None where it has no such form."""
    if len(own) == 3 and own[:2] == shape:
        return 2
    return 1 if len(own) == 2 and own[0] == shape[0] * shape[1] else None


def _pick(states: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """(rows, length, width) to (1, asked, width), (rows · length, width) to (asked, width)."""
    asked = asked.to(states.device)
    return states.flatten(0, 1).index_select(0, asked)[None] if states.ndim == 3 else states.index_select(0, asked)


def _spread(picked: Any, asked: torch.Tensor, rows: int, length: int) -> Any:
    """The way back; what is no hidden states (nothing, a router's scores) as it is."""
    if not isinstance(picked, torch.Tensor) or _folded(picked.shape, (1, len(asked))) is None:
        return picked
    states = picked.new_zeros(rows * length, picked.shape[-1])
    states.index_copy_(0, asked.to(picked.device), picked[0] if picked.ndim == 3 else picked)
    return states.unflatten(0, (rows, length)) if picked.ndim == 3 else states
