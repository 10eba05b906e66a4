"""Checks of a reducer's output."""

from __future__ import annotations

from lrbench.errors import ReducerError
from lrbench.reducers.base import Reducer
from lrbench.reducers.factors import Dense, Factors


def validate_factors(factors: object, shape: tuple[int, int], rank: int, reducer: Reducer) -> Factors:
    """Returns `factors` if they are valid for a weight of `shape` at `rank`.

    Args:
        factors: the output of `reducer`.
        shape: (out, in) of the weight.
        rank: the requested rank.
        reducer: named in messages; its `stored_numbers` must agree with the size of the factors.

    Raises:
        ReducerError: one line that names the reducer, the fault and its remedy.
    """
    who, expected = f"reducer {reducer.name!r}", tuple(shape)
    if not isinstance(factors, Factors):
        kind = f"a {type(factors).__module__}.{type(factors).__name__}" if factors is not None else "None"
        raise ReducerError(f"{who} returned {kind}; return lrbench factors, such as lrbench.LowRank(left, right)")
    try:
        factors.check()
    except ValueError as error:
        raise ReducerError(f"{who} returned inconsistent factors: {error}") from error
    if factors.shape != expected:
        raise ReducerError(f"{who} returned shape {factors.shape} for a weight of shape {expected}; W is (out, in)")
    for name, tensor in factors.tensors().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ReducerError(f"{who} returned NaN or Inf in {name} at rank {rank}; guard its divisions and solves")
    of_weight = reducer.rank_of == "weight"
    # Dense has no stated rank, and all of its parameters count.
    if of_weight and factors.rank > rank and not isinstance(factors, Dense):
        raise ReducerError(f"{who} returned rank {factors.rank} where rank {rank} was requested; truncate it")
    stated = reducer.stored_numbers(expected, rank)
    if not (stated is None or isinstance(stated, int)):
        raise ReducerError(f"{who}: stored_numbers returned {stated!r}; return a whole number, or None")
    stored = factors.stored_numbers
    held = sum(tensor.numel() for tensor in factors.tensors().values() if tensor.is_floating_point())
    if stored != held:
        raise ReducerError(f"{who} returned factors that state {stored} stored parameters, but hold {held}")
    if stated is not None and (stored > stated or (of_weight and stored < stated and factors.rank == rank)):
        raise ReducerError(
            f"{who} stores {stored} parameters at rank {rank}, but its stored_numbers says {stated}; make them agree"
        )
    return factors
