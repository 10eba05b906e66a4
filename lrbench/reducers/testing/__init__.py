"""Conformance checks that a plugin author can run on a reducer: `check_reducer(MyReducer)`.

Each check is one sentence about the reducer. Those on its form (shapes, sizes, randomness, odd matrices) hold for every
reducer; the others are chosen by what it declares: what it promises (`reducers.base.PROMISES`), and whether it needs
calibration. Promises are tried in float64, where rounding cannot be mistaken for a broken promise; those that rounding
could break and must not (exact, optimal, its own rows and columns, least squares) in float32 as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch

from lrbench.reducers.base import Reducer
from lrbench.reducers.testing.form import FORM, BrokenError, DoesNotApplyError, Subject
from lrbench.reducers.testing.promises import CALIBRATED, PROMISED
from lrbench.system.text import one_line


@dataclass(frozen=True)
class CheckResult:
    """How one check went.

    Attributes:
        name: the sentence that was checked.
        passed: whether it holds; True for a skipped check.
        detail: what went wrong, in one line.
        skipped: why the check does not apply; empty where it was made.
    """

    name: str
    passed: bool
    detail: str = ""
    skipped: str = ""


def check_reducer(reducer: type[Reducer] | Reducer, *, device: str = "cpu") -> list[CheckResult]:
    """Runs every check that applies to a reducer, on small matrices; takes seconds.

    Args:
        reducer: a class, tried with its default parameters, or an instance.
        device: where the weights are.

    Returns:
        One result a check. A reducer that raises fails the check it raised in; nothing is raised here.
    """
    if isinstance(reducer, type):
        try:
            reducer = reducer()
        except Exception as error:  # a plugin may raise anything
            return [CheckResult("can be made with its default parameters", False, one_line(error))]
    subject = Subject(reducer, torch.device(device))
    numpy_state, python_state = numpy.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            results = [_run(check, subject) for check in FORM[:2]]
            checks = list(FORM[2:])
            if results[0].passed:  # else `promises` and `needs` may be anything
                checks += CALIBRATED if reducer.needs else ()
                checks += [check for promise, check in PROMISED.items() if promise in reducer.promises]
            first = next((result.name for result in results if not result.passed), None)
            if first is None:
                return results + [_run(check, subject) for check in checks]
            # All the others would fail of the same cause.
            return results + [CheckResult(_sentence(check), True, skipped=f"{first!r} failed") for check in checks]
    finally:
        numpy.random.set_state(numpy_state)
        random.setstate(python_state)


def _sentence(check: Callable[[Subject], None]) -> str:
    return " ".join((check.__doc__ or check.__name__).split())


def _run(check: Callable[[Subject], None], subject: Subject) -> CheckResult:
    name = _sentence(check)
    try:
        check(subject)
    except DoesNotApplyError as reason:
        return CheckResult(name, True, skipped=str(reason))
    except BrokenError as failure:
        return CheckResult(name, False, str(failure))
    except Exception as error:  # a plugin may raise anything, and the other checks must still run
        return CheckResult(name, False, one_line(error))
    return CheckResult(name, True)
