"""A worker: one process on a cluster that holds a model, and reduces and scores cells of it.

It writes no rows. Its messages are JSON; see `lrbench.run.executors.wire`.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench._version import __version__
from lrbench.errors import InputError, LrbenchError, PluginError
from lrbench.run.executors.wire import cell_from, pack, partial_data, partials_from, scored_data, step_data, unpack
from lrbench.system.offline import without_network
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.evaluation.base_engine import BaseEngine
    from lrbench.evaluation.interface import Partial, Step
    from lrbench.reduction.plan import Method
    from lrbench.run.model_run import ModelRun
    from lrbench.suite.load import Suite

#: The maximum number of unread messages. Scoring waits for the reader, so that a killed worker loses little.
WAITING = 64


class _Stopped(BaseException):
    """Ends the scoring after a stop. A BaseException, so that no handler of errors catches it."""


class Worker:
    """Holds one model at a time.

    Args:
        threads: of torch and the libraries that it uses.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._stopping = threading.Event()
        self._opening = threading.Lock()  # the next model may be requested while this one is being loaded
        self._order: dict[str, Any] = {}
        self._offline = ExitStack()
        self._model_run: ModelRun | None = None
        self._environment: dict[str, Any] = {}
        self._part: tuple[str, BaseEngine] | None = None
        self._notes: list[str] = []

    def where(self) -> str:
        """The worker's host, process and node."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return pack({"host": socket.gethostname(), "pid": os.getpid(), "node": node})

    def open(self, order: str) -> str:
        """Opens a model and closes the last one.

        Args:
            order: the model and how to open it; see `lrbench.run.executors.remote.order_of`.

        Returns:
            A description of the opened model; or `error`, in one line, if it cannot be loaded on this machine.
        """
        with self._opening:
            self._order = unpack(order)
            self._model_run = self._part = None  # before the next one takes its place in memory
            self._notes = []
            try:
                self._use_threads()
                self._offline.close()
                self._offline.enter_context(without_network(self._order.get("offline")))
                return pack(self._opened())
            except LrbenchError as error:
                return pack({"error": one_line(error), "input": isinstance(error, InputError)})

    def work(self, unit: str) -> Iterator[str]:
        """Reduces and scores cells, and yields a message for each row, partial answer, step and note.

        A separate thread computes, so that partial answers are sent while a cell is under way.

        Args:
            unit: the cells, the documents and earlier partial answers; see `lrbench.run.executors.remote.unit_of`.
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
        """As `ModelRun.intact`."""
        return self._model_run is None or self._model_run.intact()

    def stop(self) -> None:
        """Lets the cell under way finish and starts no other."""
        self._stopping.set()

    def _use_threads(self) -> None:
        """Sets the number of threads for the calling thread: OpenMP has a setting for each."""
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(self._threads)
        threadpool_limits(self._threads)

    def _opened(self) -> dict[str, Any]:
        from lrbench.reducers.registry import Registry
        from lrbench.reduction.plan import methods, swept_slots
        from lrbench.run.model_run import ModelSetup, open_model
        from lrbench.suite.load import suite_again

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
            device = "cpu"  # a GPU of this machine was not reserved, and may be in use
        setup = ModelSetup(suite, spec, built, order["engine"], device, order["trust_remote_code"], self._notify)
        model_run = open_model(setup)
        self._model_run, engine = model_run, model_run.engine
        self._environment = model_run.environment_of(engine)
        model_run.environment = self._environment["hash"]
        loaded, base, described_base = model_run.loaded, model_run.base, None
        if base is not None:
            slots = swept_slots(suite.sweep, loaded.inventory)
            changed = sorted(slot.name for slot in slots if base.differs(slot))
            described_base = {
                "label": base.label, "source": base.source, "weight_hash": base.weight_hash,
                "changed": changed, "same": sorted({slot.name for slot in slots} - set(changed)),
            }  # fmt: skip
        return {
            "source": loaded.source,
            "weight_hash": loaded.weight_hash,
            "config_hash": loaded.config_hash,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "setting": model_run.setting(),
            "environment": self._environment,
            "base": described_base,
            "notes": self._notes,
        }

    def _notify(self, message: str) -> None:
        self._notes.append(message)

    def _compute(self, unit: Mapping[str, Any], messages: queue.Queue[dict[str, Any]]) -> None:
        end: dict[str, Any] = {"kind": "end"}
        try:
            self._use_threads()
            end["engine"] = self._score(unit, messages)
        except _Stopped:
            pass
        except LrbenchError as error:
            end |= {"error": one_line(error), "input": isinstance(error, InputError)}
        except BaseException as error:  # nothing else reports the errors of this thread
            end |= {"bug": one_line(error), "traceback": traceback.format_exc()}
        messages.put(end)

    def _score(self, unit: Mapping[str, Any], messages: queue.Queue[dict[str, Any]]) -> dict[str, Any]:
        from lrbench.reduction.plan import Plan

        model_run = self._model_run
        assert model_run is not None
        engine = self._engine(unit["documents"])
        methods = {method.label: method for method in model_run.setup.methods}
        slots = {slot.name: slot for slot in model_run.loaded.inventory.slots}
        plan = Plan(tuple(cell_from(data, methods, slots) for data in unit["cells"]))
        keys = model_run.keys(plan, engine)
        for cell, key in zip(plan.cells, unit["keys"], strict=True):
            if keys[cell] != key:
                raise InputError(self._difference(unit["setting"], engine))
        engine.partials = _Relayed(messages, unit["partials"], self._stopping)
        engine.report = lambda step: self._report(step, messages)
        if model_run.calibration is not None:
            model_run.calibration.expect(plan.cells)
        self._send_notes(messages)
        for scored in () if self._stopping.is_set() else model_run.rows(plan, keys, engine):
            self._send_notes(messages)
            messages.put({"kind": "row", **scored_data(scored)})
            if self._stopping.is_set():
                break
        return {} if self._stopping.is_set() else engine.describe()

    def _engine(self, documents: Sequence[Mapping[str, Sequence[int]]]) -> BaseEngine:
        """The engine on all requests, or restricted to some documents. Keeps the last restricted one."""
        assert self._model_run is not None
        if not documents:
            return self._model_run.engine
        key = pack(documents)
        if self._part is None or self._part[0] != key:
            self._part = None
            engine = self._model_run.engine
            for restriction in documents:
                engine = engine.restricted(restriction)
            self._part = key, engine
        return self._part[1]

    def _difference(self, setting: Mapping[str, Any], engine: BaseEngine) -> str:
        assert self._model_run is not None
        own = unpack(pack(self._model_run.setting(engine)))
        key = next((key for key in own if own[key] != setting.get(key)), "calibration or base")
        return f"its {key} is not the run's; are model, tasks and data the same on every machine?"

    def _report(self, step: Step, messages: queue.Queue[dict[str, Any]]) -> None:
        messages.put({"kind": "step", "step": step_data(step)})

    def _send_notes(self, messages: queue.Queue[dict[str, Any]]) -> None:
        while self._notes:
            messages.put({"kind": "note", "text": self._notes.pop(0)})


class _Relayed:
    """Partial answers: earlier ones arrive with the cells, new ones are sent to the run's process."""

    def __init__(
        self,
        messages: queue.Queue[dict[str, Any]],
        known: Mapping[str, Sequence[Mapping[str, Any]]],
        stopping: threading.Event,
    ) -> None:
        self._messages, self._known, self._stopping = messages, known, stopping

    def read(self, cell: str) -> list[Partial]:
        """The earlier partial answers of a cell."""
        return partials_from(self._known.get(cell, ()))

    def add(self, cell: str, partial: Partial) -> None:
        """Sends a partial answer. Raises _Stopped after a stop, because cells in parts all finish at the very end."""
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
