"""Conformance checks that a plugin author can run on a reducer: `check_reducer(MyReducer)`.

Each check is one sentence about the reducer. Checks of form (shapes, sizes, randomness, edge cases) apply to every
reducer; the others apply by its `promises` (`reducers.base.PROMISES`) and `needs`. Promises are checked in float64,
where rounding is negligible; exactness, optimality, own rows and columns, and least squares also in float32.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch

from lrbench.reducers.base import Reducer
from lrbench.reducers.testing.form import FORM, CheckFailedError, DoesNotApplyError, ReducerUnderTest
from lrbench.reducers.testing.promises import CALIBRATED, PROMISED
from lrbench.system.text import one_line


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        name: the sentence that is checked.
        passed: whether it holds; True for a skipped check.
        detail: the fault in one line; empty if passed.
        skipped: why the check does not apply; empty if it ran.
    """

    name: str
    passed: bool
    detail: str = ""
    skipped: str = ""


def check_reducer(reducer: type[Reducer] | Reducer, *, device: str = "cpu") -> list[CheckResult]:
    """Runs all checks that apply to a reducer, on small matrices; takes seconds.

    Args:
        reducer: a class, checked with default parameters, or an instance.
        device: the device of the weights.

    Returns:
        One result per check. An exception in the reducer fails the check in which it was raised.
    """
    if isinstance(reducer, type):
        try:
            reducer = reducer()
        except Exception as error:  # a plugin may raise anything
            return [CheckResult("can be made with its default parameters", False, one_line(error))]
    subject = ReducerUnderTest(reducer, torch.device(device))
    numpy_state, python_state = numpy.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            results = [_run(check, subject) for check in FORM[:2]]
            checks = list(FORM[2:])
            if results[0].passed:  # else `promises` and `needs` may be invalid
                checks += CALIBRATED if reducer.needs else ()
                checks += [check for promise, check in PROMISED.items() if promise in reducer.promises]
            first = next((result.name for result in results if not result.passed), None)
            if first is None:
                return results + [_run(check, subject) for check in checks]
            # The other checks would fail for the same reason.
            return results + [CheckResult(_sentence(check), True, skipped=f"{first!r} failed") for check in checks]
    finally:
        numpy.random.set_state(numpy_state)
        random.setstate(python_state)


def _sentence(check: Callable[[ReducerUnderTest], None]) -> str:
    return " ".join((check.__doc__ or check.__name__).split())


def _run(check: Callable[[ReducerUnderTest], None], subject: ReducerUnderTest) -> CheckResult:
    name = _sentence(check)
    try:
        check(subject)
    except DoesNotApplyError as reason:
        return CheckResult(name, True, skipped=str(reason))
    except CheckFailedError as failure:
        return CheckResult(name, False, str(failure))
    except Exception as error:  # a plugin may raise anything; the other checks still run
        return CheckResult(name, False, one_line(error))
    return CheckResult(name, True)
