"""What reducers compute from one weight alone, computed once for all of them, and charged to each that asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # torch is slow to import, and `lrbench --help` must not wait for it
    import torch

_T = TypeVar("_T")
_Key = tuple[Any, ...]


@dataclass
class Bill:
    """What one preparation, and one rank of it, owes to shared results.

    Attributes:
        charged: seconds that the results asked for took when they were made, each counted once.
        spent: seconds of the caller's own time that went into making some of them.
    """

    charged: float = 0.0
    spent: float = 0.0
    _asked: set[_Key] = field(default_factory=set)

    def copy(self) -> Bill:
        """The same bill, to be gone on with apart: what it has been charged for, it is not charged for again."""
        return Bill(self.charged, self.spent, set(self._asked))

    def add(self, key: _Key, seconds: float, made_now: bool) -> None:
        """A result was asked for, which took `seconds`, and was made during the call or before."""
        self.spent += seconds if made_now else 0.0
        if key not in self._asked:
            self._asked.add(key)
            self.charged += seconds


@dataclass(frozen=True)
class _Made:
    arguments: _Key  # kept, so that no id is used again
    result: Any
    seconds: float
    versions: tuple[tuple[torch.Tensor, int], ...]


class Shared:
    """What several reducers compute from one weight alone, such as its Gram matrix: computed once, for all of them."""

    def __init__(self) -> None:
        self._made: dict[_Key, _Made] = {}
        self._bill: Bill | None = None

    def once(self, make: Callable[..., _T], *arguments: Any) -> _T:
        """`make(*arguments)`, from memory where it was asked before with the very same objects.

        The time that a result took is part of every reducer's own that asks for it.

        Args:
            make: a function of a module, which draws nothing at random; its result is not to be written to.
            arguments: the weight, statistics, what `once` returned, plain values.
        """
        # By identity: comparing tensors costs as much as some results.
        plain = int | float | str | None
        key = (make, *((type(a), a) if isinstance(a, plain) else ("object", id(a)) for a in arguments))
        new = key not in self._made
        if new:
            self._made[key] = _make(make, arguments)
        made = self._made[key]
        if self._bill is not None:
            self._bill.add(key, made.seconds, new)
        result: _T = made.result
        return result

    @contextmanager
    def billed(self, bill: Bill) -> Iterator[None]:
        """What is asked for within is charged to `bill`."""
        before, self._bill = self._bill, bill
        try:
            yield
        finally:
            self._bill = before

    @property
    def nbytes(self) -> int:
        """Bytes that the results take."""
        stored = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for made in self._made.values()
            for tensor, _ in made.versions
        }
        return sum(stored.values())

    def written_to(self) -> str | None:
        """The name of a function whose result is no longer what it returned; None where all are as they were."""
        for (make, *_), made in self._made.items():
            if any(tensor._version != version for tensor, version in made.versions):
                return str(getattr(make, "__name__", make))
        return None


def _make(make: Callable[..., Any], arguments: _Key) -> _Made:
    import torch

    from lrbench.system.device import synchronize

    devices = {tensor.device for tensor in _tensors(arguments)}

    def synchronized() -> None:
        for device in devices:
            synchronize(device)

    synchronized()
    started = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():  # a tensor made in inference mode has no version to check
        result = make(*arguments)
    synchronized()
    seconds = time.perf_counter() - started
    return _Made(arguments, result, seconds, tuple((tensor, tensor._version) for tensor in _tensors(result)))


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in a result: of tuples, lists, mappings, and objects with attributes."""
    import torch

    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, tuple | list):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _tensors(part, seen)
