"""From what a suite asks (`fraction`, `rank`, `keep`, `energy`, `error`) to the rank of one weight.

`keep_model` asks for the size of the whole model; `lrbench.reduction.allocation` makes ranks of it.

    fraction: rho   int(min(m, n) * rho), as LASER counts
    rank: k         k
    keep: beta      the largest rank whose stored numbers fit beta * m * n, for that reducer
    energy: e       the smallest k with sum_{j<=k} sigma_j^2 >= e * sum sigma^2
    error: e        the smallest k with |W - What_k|_F <= e * |W|_F, for that reducer

A rank is never clamped: a request that no rank fits is an error, so that two rows which say the same are the same.
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
#: How the numbers of `keep_model` are shared out among weights.
AllocationKind = Literal["uniform", "error", "output-error", "sensitivity"]
#: Of these, those that look at text.
CALIBRATED: frozenset[str] = frozenset({"output-error", "sensitivity"})
_T = TypeVar("_T")

# An exact reconstruction in float32 still differs by a few roundings; `error: 0` means this.
_ROUNDINGS = 64

# These count by the weight's own rank.
_OF_THE_WEIGHT = ("fraction", "energy")


@dataclass(frozen=True)
class RankRequest:
    """A rank as a suite asks for it; `whole`, which no suite asks, is for a weight that stays as it is."""

    kind: RankKind
    value: float | int

    @property
    def requested(self) -> dict[str, float | int]:
        """As a row records it: `{"keep": 0.5}`."""
        return {self.kind: self.value}


#: Of a weight that stays as it is.
WHOLE = RankRequest("whole", 1)


def closed_rank(
    request: RankRequest, reducer: Reducer, slot: Slot, singular_values: torch.Tensor | None = None
) -> int | None:
    """The rank as far as shape and singular values tell it; None where factors must be built to know it.

    Args:
        request: what the suite asks.
        reducer: whose factors are to be stored.
        slot: the weight; its shape (out, in) counts.
        singular_values: of the weight, descending, where they are known; only `energy` uses them.

    Raises:
        ReducerError: no rank fits the request, or the reducer fails on the shape. Names the slot, and what would fit.
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
    """The ranks that store less than the matrix itself, and what they store, as the reducer says.

    A rank that stores no less than a larger one is left out. Where the reducer does not say what it stores, every rank
    is there, with None.

    Raises:
        ReducerError: the reducer fails on the shape.
    """
    largest = _max_rank(reducer, slot)
    if _stored_numbers(reducer, slot, 1) is None:
        return [(rank, None) for rank in range(1, largest + 1)]
    found: list[tuple[int, int | None]] = []
    for rank in range(1, largest + 1):
        numbers = _stored_numbers(reducer, slot, rank)
        if numbers is None:
            raise ReducerError(f"{slot.name}: {reducer.name}.stored_numbers is None at rank {rank} but not at rank 1")
        while found and (found[-1][1] or 0) >= numbers:
            found.pop()
        if numbers < slot.shape[0] * slot.shape[1]:
            found.append((rank, numbers))
    return found


def inapplicable(request: RankRequest, reducer: Reducer) -> str | None:
    """Why a method cannot be asked for ranks of this kind, whatever the weight; None where it can."""
    if request.kind not in _OF_THE_WEIGHT or reducer.rank_of == "weight":
        return None
    return (
        f"{request.kind} asks for a rank of the weight, but the rank of {reducer.name} is that of "
        f"{reducer.rank_of}; use `keep`, `error` or `rank`"
    )


def ranks_to_prepare(
    requests: Sequence[RankRequest], reducer: Reducer, slot: Slot, singular_values: torch.Tensor | None = None
) -> list[int]:
    """The ranks to announce to `Reducer.prepare`: ascending, each once, the largest one where a rank is searched for.

    Requests that no rank fits are left out; `find_rank` says why. Never empty, since a plugin may take the maximum.
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
    """The rank that fits a request, building factors where there is no other way.

    Bisection assumes that storage grows and the error falls with the rank. Where the error of a method does not fall
    evenly, the rank found does meet the request, and a smaller one might too.

    Args:
        request: what the suite asks.
        reducer: whose factors are to be stored.
        slot: the weight's name and shape.
        singular_values: of the weight, descending; computed here where they are needed and None.
        weight: (out, in), as `prepared` was made from it.
        prepared: the reducer's preparation, which was told the ranks of `ranks_to_prepare`.

    Raises:
        ReducerError: no rank fits the request, or the reducer fails. Names the slot, and what would fit.
    """
    if request.kind == "energy" and singular_values is None:
        import torch

        singular_values = torch.linalg.svdvals(weight.double())
    rank = closed_rank(request, reducer, slot, singular_values)
    if rank is not None:
        return rank
    largest = _max_rank(reducer, slot)

    def build(rank: int) -> Factors:
        return _ask(reducer, slot, f"at_rank({rank})", lambda: prepared.at_rank(rank))

    if request.kind == "keep":
        return _largest_that_fits(request, slot, largest, lambda rank: build(rank).stored_numbers, reducer)
    return _smallest_within(request, reducer, slot, weight, prepared, largest, lambda rank: build(rank).dense())


def _largest_that_fits(
    request: RankRequest, slot: Slot, largest: int, stored: Callable[[int], int | None], reducer: Reducer
) -> int:
    m, n = slot.shape
    # 0.3 * 10 is 3.0000000000000004 and 0.7 * 10 is 7.000000000000001 or 6.999...: a budget of whole numbers
    budget = math.floor(request.value * m * n * (1 + 1e-12))

    def fits(rank: int) -> bool:
        numbers = stored(rank)
        if numbers is None:
            raise ReducerError(f"{slot.name}: {reducer.name}.stored_numbers is None at rank {rank} but not at rank 1")
        return numbers <= budget

    if not fits(1):
        smallest = stored(1) or 0
        if smallest > m * n:
            raise ReducerError(
                f"{slot.name}: {reducer.name} stores {smallest} numbers for {m} x {n} at rank 1, more than the "
                f"{m * n} of the weight itself: at no rank is it smaller; leave it out for weights of this shape"
            )
        raise ReducerError(
            f"{slot.name}: keep {request.value:g} is too small for rank 1 of {reducer.name}, "
            f"which stores {smallest} numbers for {m} x {n}; "
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
    known = _ask(reducer, slot, "errors()", lambda: prepared.errors([largest]))
    # An error that never grows is looked for by halving; a method that knows its errors may work for each of them.
    if known is not None and "monotone" not in reducer.promises:
        errors = _told(reducer, slot, prepared, ranks)
        found = next((rank for rank, error in zip(ranks, errors, strict=True) if error <= within), None)
        if found is not None:
            return found
        best = min(errors)
    else:

        def error_at(rank: int) -> float:
            if known is not None:
                return _told(reducer, slot, prepared, [rank])[0]
            return float(torch.linalg.vector_norm(exact - dense(rank)))

        best = error_at(largest)
        if best <= within:
            return _last_true(lambda rank: rank == 0 or error_at(rank) > within, largest - 1, first=0) + 1
    raise ReducerError(
        f"{slot.name}: {reducer.name} does not reach error {request.value:g}; "
        f"its error at the largest rank, {largest}, is {best / norm if norm else best:.4g}"
    )


def _told(reducer: Reducer, slot: Slot, prepared: Prepared, ranks: Sequence[int]) -> list[float]:
    """What `errors` says of some ranks, one number for each."""
    errors = _ask(reducer, slot, "errors()", lambda: prepared.errors(ranks))
    told = [] if errors is None else [float(error) for error in errors]
    if len(told) != len(ranks):
        raise ReducerError(f"{slot.name}: {reducer.name} gave {len(told)} errors for {len(ranks)} ranks")
    return told


def _energy_rank(share: float, singular_values: torch.Tensor) -> int:
    energy = singular_values.double().square().cumsum(0)
    if not float(energy[-1]):
        return 1  # of a zero matrix any rank has all the energy
    return int((energy < share * energy[-1]).sum()) + 1


def _checked(rank: int, request: RankRequest, reducer: Reducer, slot: Slot, largest: int) -> int:
    if rank <= largest:
        return rank
    asked = "" if request.kind == "rank" else f" ({request.kind} {request.value:g})"
    raise ReducerError(
        f"{slot.name}: rank {rank}{asked} is above {largest}, the largest rank of {reducer.name} "
        f"for {slot.shape[0]} x {slot.shape[1]}; ask for at most {largest}, or use "
        f"{'`fraction` or `keep`' if reducer.rank_of == 'weight' else '`keep` or `error`'}"
    )


def _last_true(holds: Callable[[int], bool], last: int, first: int = 1) -> int:
    """The last number from `first`, where `holds` is known to be true, to `last` for which it still is."""
    low, high = first, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _max_rank(reducer: Reducer, slot: Slot) -> int:
    largest = _ask(reducer, slot, "max_rank()", lambda: reducer.max_rank(slot.shape))
    if not isinstance(largest, int):
        raise ReducerError(f"{slot.name}: {reducer.name}: max_rank returned {largest!r}; return a whole number")
    if largest < 1:
        raise ReducerError(f"{slot.name}: {reducer.name} has no rank for {slot.shape[0]} x {slot.shape[1]}")
    return largest


def _stored_numbers(reducer: Reducer, slot: Slot, rank: int) -> int | None:
    numbers = _ask(reducer, slot, f"stored_numbers(rank {rank})", lambda: reducer.stored_numbers(slot.shape, rank))
    if not (numbers is None or isinstance(numbers, int)):
        raise ReducerError(f"{slot.name}: {reducer.name}: stored_numbers returned {numbers!r}; return a whole number")
    return numbers


def _ask(reducer: Reducer, slot: Slot, what: str, call: Callable[[], _T]) -> _T:
    """A reducer is foreign code: whatever it raises is a failure of that reducer on that slot."""
    from lrbench.system.isolation import process_state_kept  # with torch, which a suite is read without

    try:
        with process_state_kept():
            return call()
    except LrbenchError:
        raise
    except FOREIGN as error:
        raise ReducerError(f"{slot.name}: {reducer.name}: {what} failed: {one_line(error)}") from error


def rounded_up(value: float) -> str:
    """A bound that can be typed in as it is shown: four digits, never below `value`."""
    digits = 3 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{max(digits, 0)}f}".rstrip("0").rstrip(".")
