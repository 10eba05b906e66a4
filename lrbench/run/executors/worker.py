"""A worker: one process on a cluster that holds a model, and reduces and scores the cells it is given.

It writes no row. What it is given and what it answers is JSON; see `lrbench.run.executors.wire`.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench._version import __version__
from lrbench.errors import InputError, LrbenchError, PluginError
from lrbench.run.executors.wire import cell_from, pack, partial_data, partials_from, scored_data, step_data, unpack
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.evaluation.base_engine import BaseEngine
    from lrbench.evaluation.interface import Partial, Step
    from lrbench.reduction.plan import Method
    from lrbench.run.model_run import ModelRun
    from lrbench.suite.load import Suite

#: Messages that may wait to be fetched; then scoring waits, so that a kill loses little.
WAITING = 64


class _Stopped(BaseException):
    """No other cell is wanted. As ^C, it passes by whoever catches errors."""


class Worker:
    """Holds one model at a time.

    Args:
        threads: of torch and of the libraries under it.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._stopping = threading.Event()
        self._opening = threading.Lock()  # the next model may be asked for while this one is still being loaded
        self._order: dict[str, Any] = {}
        self._share: ModelRun | None = None
        self._environment: dict[str, Any] = {}
        self._part: tuple[str, BaseEngine] | None = None
        self._said: list[str] = []

    def where(self) -> str:
        """On which machine and in which process it is."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return pack({"host": socket.gethostname(), "pid": os.getpid(), "node": node})

    def open(self, order: str) -> str:
        """Opens a model, in place of the last one.

        Args:
            order: which suite's, and how; see `lrbench.run.executors.remote.order_of`.

        Returns:
            What the run's process has to know of it; or `error`, in one line, where it cannot be had here.
        """
        with self._opening:
            self._order = unpack(order)
            self._share = self._part = None  # before the next one takes its place in memory
            self._said = []
            try:
                self._use_threads()
                return pack(self._opened())
            except LrbenchError as error:
                return pack({"error": one_line(error), "input": isinstance(error, InputError)})

    def work(self, unit: str) -> Iterator[str]:
        """Reduces and scores cells, and says what becomes of them as it happens.

        A thread of its own computes, so that answers to parts of the requests are sent while a cell is under way.

        Args:
            unit: cells with their hashes, on which documents, and what unfinished ones were answered before.
        """
        messages: queue.Queue[dict[str, Any]] = queue.Queue(WAITING)
        thread = threading.Thread(target=self._compute, args=(unpack(unit), messages), daemon=True)
        thread.start()
        while True:
            message = messages.get()
            yield pack(message)
            if message["kind"] == "end":
                return

    def intact(self) -> bool:
        """Whether the model's weights are, to the last bit, those that were loaded; else calibration is thrown away."""
        return self._share is None or self._share.intact()

    def stop(self) -> None:
        """Has the cell under way finished and no other begun."""
        self._stopping.set()

    def _use_threads(self) -> None:
        """For this thread: OpenMP counts by thread."""
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(self._threads)
        threadpool_limits(self._threads)

    def _opened(self) -> dict[str, Any]:
        from lrbench.reducers.registry import Registry
        from lrbench.reduction.plan import methods, swept_slots
        from lrbench.run.model_run import ModelSetup, open_model
        from lrbench.suite.load import suite_again
        from lrbench.system.environment import environment

        order = self._order
        if order["lrbench"] != __version__:
            raise InputError(
                f"lrbench {__version__} is installed here, and the run's is {order['lrbench']}; install the same"
            )
        for file in order["plugins"]:
            if not Path(file).is_file():
                raise PluginError(f"{file}: no such plugin file here; put it where every machine sees it")
        suite: Suite = suite_again(order["suite"], Path(order["file"]), order["paths"])
        registry = Registry.load([*suite.plugins, *order["plugins"]])
        built = methods(suite, registry)
        _refuse_other_code(built, order["methods"])
        spec = suite.models[order["model"]]
        device = order["device"]
        if device is None and spec.device is None and spec.device_map is None and not order["gpus"]:
            device = "cpu"  # a GPU that is here was not asked for, and may be another's
        setup = ModelSetup(suite, spec, built, order["engine"], device, order["trust_remote_code"], self._notify)
        share = open_model(setup)
        self._share, engine = share, share.engine
        self._environment = environment(
            share.loaded.device, engine=engine.name, batch_size=engine.lm.batch_size,
            frontier_memory=suite.frontier_memory,
        )  # fmt: skip
        share.environment = self._environment["hash"]
        base = None
        if share.base is not None:
            slots = swept_slots(suite.sweep, share.loaded.inventory)
            changed = sorted(slot.name for slot in slots if share.base.differs(slot))
            base = {
                "label": share.base.label, "source": share.base.source, "weight_hash": share.base.weight_hash,
                "changed": changed, "same": sorted({slot.name for slot in slots} - set(changed)),
            }  # fmt: skip
        loaded = share.loaded
        return {
            "source": loaded.source,
            "weight_hash": loaded.weight_hash,
            "config_hash": loaded.config_hash,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "setting": share.setting(),
            "environment": self._environment,
            "base": base,
            "notes": self._said,
        }

    def _notify(self, message: str) -> None:
        self._said.append(message)

    def _compute(self, unit: Mapping[str, Any], messages: queue.Queue[dict[str, Any]]) -> None:
        end: dict[str, Any] = {"kind": "end"}
        try:
            self._use_threads()
            end["engine"] = self._score(unit, messages)
        except _Stopped:
            pass
        except LrbenchError as error:
            end |= {"error": one_line(error), "input": isinstance(error, InputError)}
        except BaseException as error:  # a thread's end is heard by nobody else
            end |= {"bug": one_line(error), "traceback": traceback.format_exc()}
        messages.put(end)

    def _score(self, unit: Mapping[str, Any], messages: queue.Queue[dict[str, Any]]) -> dict[str, Any]:
        from lrbench.reduction.plan import Plan

        share = self._share
        assert share is not None
        engine = self._engine(unit["documents"])
        methods = {method.label: method for method in share.setup.methods}
        slots = {slot.name: slot for slot in share.loaded.inventory.slots}
        plan = Plan(tuple(cell_from(data, methods, slots) for data in unit["cells"]))
        keys = share.keys(plan, engine)
        for cell, asked in zip(plan.cells, unit["keys"], strict=True):
            if keys[cell] != asked:
                raise InputError(self._what_differs(unit["setting"], engine))
        engine.partials = _Relayed(messages, unit["partials"], self._stopping)
        engine.report = lambda step: self._report(step, messages)
        if share.calibration is not None:
            share.calibration.expect(plan.cells)
        self._send_notes(messages)
        for scored in () if self._stopping.is_set() else share.rows(plan, keys, engine):
            self._send_notes(messages)
            messages.put({"kind": "row", **scored_data(scored)})
            if self._stopping.is_set():
                break
        return {} if self._stopping.is_set() else engine.describe()

    def _engine(self, documents: Sequence[Mapping[str, Sequence[int]]]) -> BaseEngine:
        """On all the requests, or on the documents that remain after each restriction; the last such one is kept."""
        assert self._share is not None
        if not documents:
            return self._share.engine
        asked = pack(documents)
        if self._part is None or self._part[0] != asked:
            self._part = None
            engine = self._share.engine
            for chosen in documents:
                engine = engine.restricted(chosen)
            self._part = asked, engine
        return self._part[1]

    def _what_differs(self, setting: Mapping[str, Any], engine: BaseEngine) -> str:
        assert self._share is not None
        own = unpack(pack(self._share.setting(engine)))
        what = next((key for key in own if own[key] != setting.get(key)), "calibration or base")
        return f"its {what} is not the run's; are model, tasks and data the same on every machine?"

    def _report(self, step: Step, messages: queue.Queue[dict[str, Any]]) -> None:
        messages.put({"kind": "step", "step": step_data(step)})

    def _send_notes(self, messages: queue.Queue[dict[str, Any]]) -> None:
        while self._said:
            messages.put({"kind": "note", "text": self._said.pop(0)})


class _Relayed:
    """Partial answers: earlier ones come with the cells, new ones are sent off to be written."""

    def __init__(
        self,
        messages: queue.Queue[dict[str, Any]],
        known: Mapping[str, Sequence[Mapping[str, Any]]],
        stopping: threading.Event,
    ) -> None:
        self._messages, self._known, self._stopping = messages, known, stopping

    def read(self, cell: str) -> list[Partial]:
        """What the run's directory has of a cell."""
        return partials_from(self._known.get(cell, ()))

    def add(self, cell: str, partial: Partial) -> None:
        """Sends more of a cell. Cells that are scored in parts all end at the end, so this is where to stop."""
        self._messages.put({"kind": "partial", "cell": cell, "partial": partial_data(partial)})
        if self._stopping.is_set():
            raise _Stopped


def _refuse_other_code(built: Sequence[Method], expected: Mapping[str, str]) -> None:
    for method in built:
        if expected.get(method.label) != method.source_hash:
            raise PluginError(
                f"reducer {method.label!r}: its code, or lrbench's, is not the run's; install the same here, and put "
                "plugin files where every machine sees them"
            )
