"""^C during a run: once ends it after the cell at work, twice at once."""

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
    """^C once asks a run to stop after what is at work, twice stops it at once.

    What ends a job on a cluster (SIGTERM) stops it at once, too: there the time left is short, and no one knows how
    short. It is treated as ^C all the same, so that the terminal is left in order and the way on is said. Where others
    compute, it is as ^C in that, too: many cells are under way, and the scheduler can be told to send it in time.

    Signals are handled in a process's main thread alone; elsewhere, nothing is changed.

    Args:
        numbers: of the signals; their handlers are put back afterwards.
    """

    def interrupted(number: int, _frame: Any) -> None:
        at_once = number == signal.SIGTERM and executor.here
        if at_once or stop.asked:
            raise KeyboardInterrupt
        if not stop.at_work:  # nothing to finish, though the weights are still held to their hash
            stop.asked = True
            raise Interrupted
        stop.asked = True
        executor.stop()
        with suppress(RuntimeError):  # the signal may have come in the middle of printing
            note("finishing what is at work; ^C again stops now")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, interrupted) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
