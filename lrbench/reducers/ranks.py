"""From a suite's rank request (`fraction`, `rank`, `keep`, `energy`, `error`) to the rank of a weight.

`keep_model` requests a size of the whole model; `lrbench.reduction.allocation` converts it to ranks.

    fraction: rho   int(min(m, n) * rho), as in LASER
    rank: k         k
    keep: beta      the largest rank whose stored parameters fit in beta * m * n, for that reducer
    energy: e       the smallest k with sum_{j<=k} sigma_j^2 >= e * sum sigma^2
    error: e        the smallest k with |W - What_k|_F <= e * |W|_F, for that reducer

A rank is never clamped: a request that no rank meets is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from lrbench.errors import FOREIGN, LrbenchError, ReducerError
from lrbench.reducers.base import Prepared, Reducer, Slot
from lrbench.system.text import one_line

if TYPE_CHECKING:
    import torch

    from lrbench.reducers.factors import Factors

RankKind = Literal["fraction", "rank", "keep", "energy", "error", "keep_model", "whole"]
#: How `keep_model` distributes parameters among weights.
AllocationKind = Literal["uniform", "error", "output-error", "sensitivity", "loss"]
#: The allocations that use calibration text.
CALIBRATED: frozenset[str] = frozenset({"output-error", "sensitivity", "loss"})
_T = TypeVar("_T")

# Rounding units that `error: 0` tolerates: an exact reconstruction in float32 differs from W by a few.
_ROUNDINGS = 64

# Requests that refer to the rank of the weight.
_OF_THE_WEIGHT = ("fraction", "energy")


@dataclass(frozen=True)
class RankRequest:
    """A suite's rank request. `whole`, which no suite can request, keeps a weight unchanged."""

    kind: RankKind
    value: float | int

    @property
    def requested(self) -> dict[str, float | int]:
        """The request as recorded in rows: `{"keep": 0.5}`."""
        return {self.kind: self.value}


#: Keeps a weight unchanged.
WHOLE = RankRequest("whole", 1)


def closed_rank(
    request: RankRequest, reducer: Reducer, slot: Slot, singular_values: torch.Tensor | None = None
) -> int | None:
    """The rank that meets a request, from the shape and singular values; None if only built factors determine it.

    Args:
        request: the suite's request.
        reducer: the reducer whose factors are stored.
        slot: the weight's name and shape (out, in).
        singular_values: (min(out, in),) of the weight, descending, if known; only `energy` uses them.

    Raises:
        ReducerError: no rank meets the request, or the reducer fails on the shape. Names the slot and a valid request.
    """
    m, n = slot.shape
    if request.kind == "whole":
        return min(m, n)
    if reason := inapplicable(request, reducer):
        raise ReducerError(f"{slot.name}: {reason}")
    largest = _max_rank(reducer, slot)
    if request.kind == "rank":
        return _checked(int(request.value), request, reducer, slot, largest)
    if request.kind == "fraction":
        rank = int(min(m, n) * request.value)
        if rank < 1:
            raise ReducerError(
                f"{slot.name}: fraction {request.value:g} of min{(m, n)} is rank 0; "
                f"the smallest possible fraction is {rounded_up(1 / min(m, n))}"
            )
        return _checked(rank, request, reducer, slot, largest)
    if request.kind == "keep" and _stored_numbers(reducer, slot, 1) is not None:
        return _largest_that_fits(request, slot, largest, lambda rank: _stored_numbers(reducer, slot, rank), reducer)
    if request.kind == "energy" and singular_values is not None:
        return _checked(_energy_rank(float(request.value), singular_values), request, reducer, slot, largest)
    return None


def worthwhile_ranks(reducer: Reducer, slot: Slot) -> list[tuple[int, int | None]]:
    """The ranks with fewer stored parameters than the dense matrix, and the number of these parameters.

    A rank that stores at least as much as a larger one is left out. For a reducer without `stored_numbers`, all ranks
    with None.

    Raises:
        ReducerError: the reducer fails on the shape.
    """
    largest = _max_rank(reducer, slot)
    if _stored_numbers(reducer, slot, 1) is None:
        return [(rank, None) for rank in range(1, largest + 1)]
    ranks: list[tuple[int, int | None]] = []
    for rank in range(1, largest + 1):
        parameters = _stored_numbers(reducer, slot, rank)
        if parameters is None:
            raise ReducerError(f"{slot.name}: {reducer.name}.stored_numbers is None at rank {rank} but not at rank 1")
        while ranks and (ranks[-1][1] or 0) >= parameters:
            ranks.pop()
        if parameters < slot.shape[0] * slot.shape[1]:
            ranks.append((rank, parameters))
    return ranks


def inapplicable(request: RankRequest, reducer: Reducer) -> str | None:
    """Why a reducer does not support this kind of request for any weight; None if it does."""
    if request.kind not in _OF_THE_WEIGHT or reducer.rank_of == "weight":
        return None
    return (
        f"{request.kind} asks for a rank of the weight, but the rank of {reducer.name} is that of "
        f"{reducer.rank_of}; use `keep`, `error` or `rank`"
    )


def ranks_to_prepare(
    requests: Sequence[RankRequest], reducer: Reducer, slot: Slot, singular_values: torch.Tensor | None = None
) -> list[int]:
    """The ranks to pass to `Reducer.prepare`: ascending and distinct; the largest rank for requests that are searched.

    Requests that no rank meets are left out; `find_rank` gives the reason. Never empty.
    """
    ranks = set()
    for request in requests:
        try:
            rank = closed_rank(request, reducer, slot, singular_values)
        except ReducerError:
            continue
        ranks.add(_max_rank(reducer, slot) if rank is None else rank)
    return sorted(ranks) or [1]


def find_rank(
    request: RankRequest,
    reducer: Reducer,
    slot: Slot,
    singular_values: torch.Tensor | None,
    weight: torch.Tensor,
    prepared: Prepared,
) -> int:
    """The rank that meets a request; builds factors only if nothing else determines it.

    Bisection assumes that size grows and error falls with the rank. If the error does not fall monotonically, the
    result meets the request, but a smaller rank might too.

    Args:
        request: the suite's request.
        reducer: the reducer whose factors are stored.
        slot: the weight's name and shape (out, in).
        singular_values: (min(out, in),) of the weight, descending; if None, computed when needed.
        weight: (out, in), the matrix that `prepared` was computed from.
        prepared: the reducer's preparation for the ranks of `ranks_to_prepare`.

    Raises:
        ReducerError: no rank meets the request, or the reducer fails. Names the slot and a valid request.
    """
    if request.kind == "energy" and singular_values is None:
        import torch

        singular_values = torch.linalg.svdvals(weight.double())
    rank = closed_rank(request, reducer, slot, singular_values)
    if rank is not None:
        return rank
    largest = _max_rank(reducer, slot)

    def build(rank: int) -> Factors:
        return _call(reducer, slot, f"at_rank({rank})", lambda: prepared.at_rank(rank))

    if request.kind == "keep":
        return _largest_that_fits(request, slot, largest, lambda rank: build(rank).stored_numbers, reducer)
    return _smallest_within(request, reducer, slot, weight, prepared, largest, lambda rank: build(rank).dense())


def _largest_that_fits(
    request: RankRequest, slot: Slot, largest: int, stored: Callable[[int], int | None], reducer: Reducer
) -> int:
    m, n = slot.shape
    # the factor absorbs rounding, as in 0.29 * 100 = 28.999999999999996
    budget = math.floor(request.value * m * n * (1 + 1e-12))

    def fits(rank: int) -> bool:
        parameters = stored(rank)
        if parameters is None:
            raise ReducerError(f"{slot.name}: {reducer.name}.stored_numbers is None at rank {rank} but not at rank 1")
        return parameters <= budget

    if not fits(1):
        smallest = stored(1) or 0
        if smallest > m * n:
            raise ReducerError(
                f"{slot.name}: {reducer.name} stores {smallest} parameters for {m} x {n} at rank 1, more than the "
                f"{m * n} of the weight itself: at no rank is it smaller; leave it out for weights of this shape"
            )
        raise ReducerError(
            f"{slot.name}: keep {request.value:g} is too small for rank 1 of {reducer.name}, "
            f"which stores {smallest} parameters for {m} x {n}; "
            f"the smallest possible keep is {rounded_up(smallest / (m * n))}"
        )
    return _last_true(fits, largest)


def _smallest_within(
    request: RankRequest,
    reducer: Reducer,
    slot: Slot,
    weight: torch.Tensor,
    prepared: Prepared,
    largest: int,
    dense: Callable[[int], torch.Tensor],
) -> int:
    import torch

    exact = weight.double()
    norm = float(torch.linalg.vector_norm(exact))
    within = (request.value + _ROUNDINGS * torch.finfo(weight.dtype).eps) * norm
    ranks = range(1, largest + 1)
    known = _call(reducer, slot, "errors()", lambda: prepared.errors([largest]))
    # Monotone errors are searched by bisection, since a method may need time for each error; others are all computed.
    if known is not None and "monotone" not in reducer.promises:
        errors = _errors_at(reducer, slot, prepared, ranks)
        smallest = next((rank for rank, error in zip(ranks, errors, strict=True) if error <= within), None)
        if smallest is not None:
            return smallest
        best = min(errors)
    else:

        def error_at(rank: int) -> float:
            if known is not None:
                return _errors_at(reducer, slot, prepared, [rank])[0]
            return float(torch.linalg.vector_norm(exact - dense(rank)))

        best = error_at(largest)
        if best <= within:
            return _last_true(lambda rank: rank == 0 or error_at(rank) > within, largest - 1, first=0) + 1
    raise ReducerError(
        f"{slot.name}: {reducer.name} does not reach error {request.value:g}; "
        f"its error at the largest rank, {largest}, is {best / norm if norm else best:.4g}"
    )


def _errors_at(reducer: Reducer, slot: Slot, prepared: Prepared, ranks: Sequence[int]) -> list[float]:
    """`prepared.errors(ranks)` as floats, one per rank."""
    errors = _call(reducer, slot, "errors()", lambda: prepared.errors(ranks))
    values = [] if errors is None else [float(error) for error in errors]
    if len(values) != len(ranks):
        raise ReducerError(f"{slot.name}: {reducer.name} returned {len(values)} errors for {len(ranks)} ranks")
    return values


def _energy_rank(fraction: float, singular_values: torch.Tensor) -> int:
    energy = singular_values.double().square().cumsum(0)
    if not float(energy[-1]):
        return 1  # every rank has all the energy of a zero matrix
    return int((energy < fraction * energy[-1]).sum()) + 1


def _checked(rank: int, request: RankRequest, reducer: Reducer, slot: Slot, largest: int) -> int:
    if rank <= largest:
        return rank
    origin = "" if request.kind == "rank" else f" ({request.kind} {request.value:g})"
    raise ReducerError(
        f"{slot.name}: rank {rank}{origin} is above {largest}, the largest rank of {reducer.name} "
        f"for {slot.shape[0]} x {slot.shape[1]}; request at most {largest}, or use "
        f"{'`fraction` or `keep`' if reducer.rank_of == 'weight' else '`keep` or `error`'}"
    )


def _last_true(holds: Callable[[int], bool], last: int, first: int = 1) -> int:
    """The largest number from `first` to `last` for which `holds` is true, by bisection; true at `first`."""
    low, high = first, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _max_rank(reducer: Reducer, slot: Slot) -> int:
    largest = _call(reducer, slot, "max_rank()", lambda: reducer.max_rank(slot.shape))
    if not isinstance(largest, int):
        raise ReducerError(f"{slot.name}: {reducer.name}: max_rank returned {largest!r}; return a whole number")
    if largest < 1:
        raise ReducerError(f"{slot.name}: {reducer.name} has no rank for {slot.shape[0]} x {slot.shape[1]}")
    return largest


def _stored_numbers(reducer: Reducer, slot: Slot, rank: int) -> int | None:
    count = _call(reducer, slot, f"stored_numbers(rank {rank})", lambda: reducer.stored_numbers(slot.shape, rank))
    if not (count is None or isinstance(count, int)):
        raise ReducerError(f"{slot.name}: {reducer.name}: stored_numbers returned {count!r}; return a whole number")
    return count


def _call(reducer: Reducer, slot: Slot, method: str, call: Callable[[], _T]) -> _T:
    """Calls a reducer's method; any exception becomes a ReducerError that names reducer, slot and method."""
    from lrbench.system.isolation import process_state_kept  # imports torch, which reading a suite does not need

    try:
        with process_state_kept():
            return call()
    except LrbenchError:
        raise
    except FOREIGN as error:
        raise ReducerError(f"{slot.name}: {reducer.name}: {method} failed: {one_line(error)}") from error


def rounded_up(value: float) -> str:
    """`value` rounded up to four digits, so that a bound can be typed as shown."""
    digits = 3 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{max(digits, 0)}f}".rstrip("0").rstrip(".")
