"""Other forwards for some modules, for a while; and what a pass called, in which order, with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Forward = Callable[..., Any]
#: a module, and what makes its new forward from the one it has
Change = tuple[nn.Module, Callable[[Forward], Forward]]

_MISSING = object()


def answering(answer: Any) -> Forward:
    """A forward that has its answer already."""
    return lambda *_, **__: answer


def instead(module: nn.Module, forward: Forward) -> Change:
    """The change that leaves nothing of a module's own forward."""
    return module, lambda _: forward


@contextmanager
def changed(changes: Iterable[Change]) -> Iterator[None]:
    """Changes forwards one after the other; what instances had as `forward` comes back afterwards."""
    kept: list[tuple[nn.Module, Any]] = []
    try:
        for module, change in changes:
            forward = change(module.forward)
            kept.append((module, module.__dict__.get("forward", _MISSING)))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, before in reversed(kept):
            if before is _MISSING:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        parent: the call within which it was made.
        begun, ended: places in the order of all beginnings and ends; `ended` is None where the pass was cut short.
        version: of the first tensor returned, at the end: another one later tells that it was written to.
    """

    module: nn.Module
    parent: Call | None
    begun: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    ended: int | None = None
    version: int | None = None

    def upwards(self) -> Iterator[Call]:
        """Itself, and the calls within which it was made, from the innermost out."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent

    def within(self, other: Call) -> bool:
        """Whether it is `other`, or was made by it, directly or not."""
        return any(call is other for call in self.upwards())


@dataclass(frozen=True)
class Operation:
    """One operation: the innermost call, the storages that it read, and those that it returned or wrote to."""

    when: int
    call: Call | None
    read: set[int]
    made: set[int]


class Trace(TorchDispatchMode):
    """Follows a pass: the calls of some modules, and the operations on tensors.

    Whatever the operations returned lives as long as the trace, so that no two tensors seem to lie in one place.

    Attributes:
        calls: in the order of their beginnings.
        operations: in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self._active: list[Call] = []
        self._alive: list[Any] = []
        self._clock = 0

    def follow(self, module: nn.Module) -> Change:
        """The change that makes a module's calls known."""

        def change(forward: Forward) -> Forward:
            def followed(*args: Any, **kwargs: Any) -> Any:
                call = Call(module, self._active[-1] if self._active else None, self._tick(), args, kwargs)
                self.calls.append(call)
                self._active.append(call)
                try:
                    call.output = forward(*args, **kwargs)
                finally:
                    self._active.pop()
                call.ended = self._tick()
                first = leading(call.output)
                call.version = None if first is None else first._version
                return call.output

            return followed

        return module, change

    def depending(self, tensors: Iterable[torch.Tensor]) -> set[int]:
        """Storages of which anything was computed from any of these tensors."""
        found = storages(list(tensors))
        for operation in self.operations:
            if operation.read & found:
                found |= operation.made
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        call = self._active[-1] if self._active else None
        made = storages((output, _written(func, args, kwargs or {})))
        self.operations.append(Operation(self._tick(), call, storages((args, kwargs)), made))
        self._alive.append(output)
        return output

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    if not func._schema.is_mutable:
        return []
    given = [args[i] if i < len(args) else kwargs.get(one.name) for i, one in enumerate(func._schema.arguments)]
    return [
        value for value, one in zip(given, func._schema.arguments, strict=True)
        if one.alias_info is not None and one.alias_info.is_write
    ]  # fmt: skip


def leading(output: Any) -> torch.Tensor | None:
    """What a module returns, or the first of several things; None where that is no tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, torch.Tensor) else None


def storages(tree: Any) -> set[int]:
    """Where the tensors in nested tuples, lists and dicts lie."""
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
