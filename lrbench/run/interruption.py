"""^C during a run: the first ends it after the cell under way, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lrbench.run.executors import Executor
from lrbench.run.recorder import Interrupted, Stop


@contextmanager
def stopped_by_signals(
    stop: Stop,
    executor: Executor,
    note: Callable[[str], None],
    numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """The first ^C requests a stop after the cell under way; the second one stops the run at once.

    SIGTERM, by which a scheduler ends a job, stops the run at once, because the remaining time is short and unknown. It
    raises KeyboardInterrupt as ^C does, so that the terminal is left in order and the message says how to continue. If
    workers compute, SIGTERM acts as the first ^C: many cells are under way, and the scheduler can be configured to send
    it in time.

    Python handles signals only in the main thread; in other threads nothing is changed.

    Args:
        numbers: the signals; their handlers are restored afterwards.
    """

    def interrupted(number: int, _frame: Any) -> None:
        at_once = number == signal.SIGTERM and executor.here
        if at_once or stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        if not stop.at_work:  # there is no cell to finish; the weights are still verified
            raise Interrupted
        executor.stop()
        with suppress(RuntimeError):  # the signal may have interrupted printing
            note("finishing the cell under way; ^C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, interrupted) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
