"""Results that several reducers need of a weight: computed once, and counted in the time of each reducer."""

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
class SharedCost:
    """The cost of the shared results that a preparation, or a rank of it, uses.

    Attributes:
        charged: seconds that computing the used results took, each counted once.
        spent: seconds of computation within the caller's measured time.
    """

    charged: float = 0.0
    spent: float = 0.0
    _counted: set[_Key] = field(default_factory=set)

    def copy(self) -> SharedCost:
        """An independent copy; results already counted are not counted again."""
        return SharedCost(self.charged, self.spent, set(self._counted))

    def add(self, key: _Key, seconds: float, computed: bool) -> None:
        """Counts a result that took `seconds`; `computed` if in this call, rather than earlier."""
        self.spent += seconds if computed else 0.0
        if key not in self._counted:
            self._counted.add(key)
            self.charged += seconds


@dataclass(frozen=True)
class _Entry:
    arguments: _Key  # keeps the objects alive, so that their ids stay unique
    result: Any
    seconds: float
    versions: tuple[tuple[torch.Tensor, int], ...]


class SharedResults:
    """Results computed from a weight, such as its Gram matrix, shared by several reducers."""

    def __init__(self) -> None:
        self._entries: dict[_Key, _Entry] = {}
        self._cost: SharedCost | None = None

    def once(self, make: Callable[..., _T], *arguments: Any) -> _T:
        """`make(*arguments)`, computed once for the same objects.

        The time of the computation counts for every reducer that uses the result.

        Args:
            make: a deterministic module-level function; its result must not be written to.
            arguments: the weight, statistics, results of `once`, plain values.
        """
        # Keyed by identity: comparing tensors would take as long as some computations.
        plain = int | float | str | None
        key = (make, *((type(a), a) if isinstance(a, plain) else ("object", id(a)) for a in arguments))
        new = key not in self._entries
        if new:
            self._entries[key] = _compute(make, arguments)
        entry = self._entries[key]
        if self._cost is not None:
            self._cost.add(key, entry.seconds, new)
        result: _T = entry.result
        return result

    @contextmanager
    def counted_in(self, cost: SharedCost) -> Iterator[None]:
        """Counts the results that are used inside the context in `cost`."""
        before, self._cost = self._cost, cost
        try:
            yield
        finally:
            self._cost = before

    @property
    def nbytes(self) -> int:
        """Bytes of all results; shared storage counts once."""
        stored = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for entry in self._entries.values()
            for tensor, _ in entry.versions
        }
        return sum(stored.values())

    def modified(self) -> str | None:
        """The name of a function whose result was written to; None if no result was."""
        for (make, *_), entry in self._entries.items():
            if any(tensor._version != version for tensor, version in entry.versions):
                return str(getattr(make, "__name__", make))
        return None


def _compute(make: Callable[..., Any], arguments: _Key) -> _Entry:
    import torch

    from lrbench.system.device import synchronize

    devices = {tensor.device for tensor in _tensors(arguments)}

    def synchronized() -> None:
        for device in devices:
            synchronize(device)

    synchronized()
    started = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():  # inference tensors have no version counter
        result = make(*arguments)
    synchronized()
    seconds = time.perf_counter() - started
    return _Entry(arguments, result, seconds, tuple((tensor, tensor._version) for tensor in _tensors(result)))


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in a result, also inside tuples, lists, mappings and objects with attributes."""
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
