"""Temporarily replaces the forwards of modules, and traces the calls and operations of a pass."""

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
#: A module, and a function from its current forward to its new one.
Patch = tuple[nn.Module, Callable[[Forward], Forward]]

_MISSING = object()


def returning(answer: Any) -> Forward:
    """A forward that ignores its arguments and returns `answer`."""
    return lambda *_, **__: answer


def replacing(module: nn.Module, forward: Forward) -> Patch:
    """The patch that replaces a module's forward."""
    return module, lambda _: forward


@contextmanager
def patched(patches: Iterable[Patch]) -> Iterator[None]:
    """Applies patches in turn; afterwards each instance has its previous `forward` again."""
    kept: list[tuple[nn.Module, Any]] = []
    try:
        for module, change in patches:
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
        parent: the enclosing call.
        begun, ended: times on the trace's clock; `ended` is None if the pass was cut short.
        version: torch's version counter of the first returned tensor at the end of the call. A higher one later shows
            that the tensor was modified in place.
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
        """This call and its enclosing calls, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent

    def within(self, other: Call) -> bool:
        """Whether this is `other` or was made, directly or indirectly, by it."""
        return any(call is other for call in self.upwards())


@dataclass(frozen=True)
class Operation:
    """A tensor operation: its time, its innermost call, the storages it read, and those it returned or wrote to."""

    when: int
    call: Call | None
    read: set[int]
    made: set[int]


class Trace(TorchDispatchMode):
    """Records the calls of some modules, and all tensor operations, of a pass.

    It keeps every returned tensor alive, so that no storage address is reused during the trace.

    Attributes:
        calls: in the order in which they began.
        operations: in the order of execution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self._active: list[Call] = []
        self._alive: list[Any] = []
        self._clock = 0

    def follow(self, module: nn.Module) -> Patch:
        """The patch that records a module's calls."""

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
        """The storages of these tensors and of everything computed from them."""
        dependent = storages(list(tensors))
        for operation in self.operations:
            if operation.read & dependent:
                dependent |= operation.made
        return dependent

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
    parameters = func._schema.arguments
    values = [args[i] if i < len(args) else kwargs.get(parameter.name) for i, parameter in enumerate(parameters)]
    return [
        value for value, parameter in zip(values, parameters, strict=True)
        if parameter.alias_info is not None and parameter.alias_info.is_write
    ]  # fmt: skip


def leading(output: Any) -> torch.Tensor | None:
    """The output, or its first element if it is a tuple; None if that is not a tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, torch.Tensor) else None


def storages(tree: Any) -> set[int]:
    """The storage addresses of all tensors in nested tuples, lists and dicts."""
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
