"""Computes cells on a Ray cluster: actors hold the model, and only this process assigns cells and writes rows.

Ray is an extra (`pip install lrbench[ray]`); nothing else in lrbench imports it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lrbench.errors import InputError, LrbenchError
from lrbench.models.load import load_structure
from lrbench.reduction.plan import make_plan
from lrbench.run.executors.crew import Crew, Hand, Lost
from lrbench.run.executors.remote import RemoteEngine, RemoteRun, differing_key, open_remote, order_of, unit_of
from lrbench.run.executors.schedule import Group, Queue, cost_of
from lrbench.run.executors.wire import pack, partials_from, scored_from, step_from, unpack
from lrbench.run.recorder import Interrupted
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.reduction.plan import Cell, Plan
    from lrbench.run.cell_scoring import Scored
    from lrbench.run.model_run import ModelRun, ModelSetup

PATIENCE = 600.0  # seconds to wait for a machine with room for a worker
_REFUSED = 3  # consecutive workers that may die while they open the model


@dataclass(frozen=True)
class RayOptions:
    """The cluster, and the resources to use.

    Attributes:
        address: `host:port` or `auto`; None for the cluster of `RAY_ADDRESS`, or else a new one on this machine.
        workers: their number; None for as many as fit.
        cpus: of each worker, which uses as many threads.
        gpus: of each worker: a whole number, or a fraction of one. None: one if the cluster has any.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.address.startswith("ray://"):
            raise InputError(
                f"--address {self.address}: Ray's client is not supported; run lrbench on the cluster itself, with "
                "--address auto"
            )
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--ray-workers {self.workers}: must be at least 1")
        if self.cpus < 1:
            raise InputError(f"--ray-cpus {self.cpus}: must be at least 1")
        whole = self.gpus is None or not math.isfinite(self.gpus) or self.gpus <= 1 or self.gpus == int(self.gpus)
        if self.gpus is not None and not (whole and 0 <= self.gpus < math.inf):
            raise InputError(f"--ray-gpus {self.gpus:g}: a whole number of GPUs, or a fraction of one, such as 0.5")


class RayExecutor:
    """Computes cells by workers on a Ray cluster. All of them have the same model open."""

    here = False

    def __init__(self, options: RayOptions = RayOptions()) -> None:
        self._options = options
        self._crew: Crew | None = None
        self._connected = self._stopping = False
        self._run: RemoteRun | None = None
        self._notify: Callable[[str], None] = lambda _: None
        self._notes: set[str] = set()
        self._refused = 0

    @property
    def hands(self) -> Sequence[Hand]:
        """The present workers."""
        return tuple(self._crew.hands) if self._crew is not None else ()

    def open(self, setup: ModelSetup) -> ModelRun:
        """See `Executor.open`. Workers load the model at the same time; the first one to finish describes it.

        Raises:
            InputError: as `Executor.open`; or there is no cluster, or no room on it for a worker.
        """
        suite, spec, notify = setup.suite, setup.spec, setup.notify
        for key in ("race", "screen"):
            if getattr(suite, key) is not None:
                raise suite.error_at(
                    f"{key!r} needs the model in the run's own process, and with Ray only the workers hold it; leave "
                    "it out, or run with --executor local",
                    key,
                )
        self._notify, self._run = notify, None
        self._notes.clear()
        crew = self._crew or self._hire(setup.device or spec.device)
        order = order_of(setup, crew.gpus)
        structure = load_structure(spec, trust_remote_code=setup.trust_remote_code)
        plan = make_plan(suite, structure, setup.methods)
        self._refused, crew.wary = 0, False  # the deaths may be due to the previous model
        crew.open(pack(order), at_most=sum(1 for _ in plan.groups()))
        several = f"{len(crew.hands)} workers" if len(crew.hands) > 1 else "one worker"
        notify(f"loading {spec.display_name} on {several}")
        opened = None
        while opened is None:
            if self._stopping:
                raise KeyboardInterrupt
            self._listen()
            crew.staff()
            opened = next((hand.opened for hand in crew.hands if hand.opened), None)
        for note in opened["notes"]:
            self._say(note)
        self._run = open_remote(replace(setup, notify=self._say), order, opened, self)
        for hand in crew.hands:
            if hand.opened:
                self._check(hand)
        return self._run

    def stop(self) -> None:
        """See `Executor.stop`. May be called from a signal handler, or another thread."""
        self._stopping = True

    def close(self) -> None:
        """Ends the workers, and leaves the cluster if this executor joined it."""
        if self._crew is not None:
            self._crew.dismiss()
            self._crew = None
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    def _hire(self, device: str | None) -> Crew:
        self._connect()
        options = self._options
        self._crew = crew = Crew(options.workers, options.cpus, options.gpus, device)
        if options.workers is None and not crew.room():
            raise InputError(
                f"--executor ray: no machine of the cluster has {crew.needs} for a worker; ask for less (--ray-cpus, "
                "--ray-gpus), or say with --ray-workers how many are to come"
            )
        return crew

    def _connect(self) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--executor ray needs Ray, which is not installed; pip install 'lrbench[ray]'") from None
        if ray.is_initialized():
            return
        address = self._options.address
        if address is not None:
            _refuse_silent(address)
        own: dict[str, Any] = {}
        if address is None and not os.environ.get("RAY_ADDRESS"):
            address = "local"  # else Ray joins any cluster that runs on this machine
            own = {"include_dashboard": False}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of its own sends no usage statistics
            os.environ.setdefault("RAY_worker_niceness", "0")  # and has this process's priority
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError (other versions), grpc's own
            where = f"--address {address}" if self._options.address else "--executor ray"
            raise InputError(f"{where}: no Ray cluster can be used: {one_line(error)}") from error
        finally:
            if main and handler is not None:
                signal.signal(signal.SIGTERM, handler)  # Ray replaces it
        self._connected = True

    def spoilt(self) -> Collection[str]:
        """See `Workers.spoilt`. Notifies of workers that are lost before they have verified their weights."""
        assert self._crew is not None
        names = []
        for spoilt in self._crew.spoilt():
            if isinstance(spoilt, Lost):
                self._notify(f"{spoilt.hand.name}: lost ({spoilt.reason}) before its weights were verified")
            else:
                names.append(spoilt.name)
        return names

    def compute(self, run: RemoteRun, plan: Plan, keys: Mapping[Cell, str], engine: RemoteEngine) -> Iterator[Scored]:
        """Assigns a plan's cells to workers, and yields their rows as they arrive.

        Raises:
            Interrupted: after the rows of the cells under way, if ^C was pressed during the call or `stop` was called.
            InputError: a worker's model, code or data is not the run's.
            LrbenchError: there was no worker for too long, or none can open the model.
        """
        assert self._crew is not None
        crew = self._crew
        progress = _Progress(run, plan, keys, engine, crew)
        try:
            try:
                while not (progress.done or self._stopping):
                    crew.staff(progress.open_groups)
                    self._assign(progress)
                    yield from self._received(progress)
            except KeyboardInterrupt:
                if self._stopping:  # the second one
                    raise
                self._stopping = True
            if not progress.done:
                self._notify("stopping: each worker finishes its cell; ^C again stops at once")
                crew.stop()
                while progress.under_way:
                    yield from self._received(progress)
                raise Interrupted
        finally:
            crew.dismiss(only=[hand for hand in crew.hands if hand.chunk])

    def _assign(self, progress: _Progress) -> None:
        assert self._crew is not None
        idle = [hand for hand in self._crew.hands if hand.opened and not hand.chunk]
        for hand in idle:
            chunk = progress.queue.take(len(self._crew.hands))
            if not chunk:
                return
            cells = [cell for group in chunk for cell in group.cells]
            assert hand.opened is not None
            environment = hand.opened["environment"]
            if progress.run.answers is not None:
                progress.run.answers.in_environment(environment)
            progress.run.environment = environment["hash"]
            unit = unit_of(progress.run, cells, progress.keys, progress.engine, environment)
            hand.begin(chunk, pack(unit))

    def _received(self, progress: _Progress) -> Iterator[Scored]:
        """The rows of one round of messages, and of the cells that are given up."""
        rows: list[Scored] = []

        def handle(hand: Hand, message: Mapping[str, Any]) -> None:
            rows.extend(self._rows(progress, hand, message))

        losses = self._listen(handle)
        yield from rows
        for loss in losses:
            hand = loss.hand
            left = sum(progress.is_open(cell) for group in hand.chunk for cell in group.cells)
            given_up = progress.queue.lost(hand.chunk, died=loss.died)
            hand.chunk = []
            if left:
                self._notify(f"{hand.name}: lost ({loss.reason}); its {left} cells go to others")
            deaths = "workers died" if loss.died else "workers were lost"
            for cell in given_up:
                reason = f"{deaths} on it again and again, last {hand.name}: {loss.reason}"
                yield progress.run.given_up(cell, progress.keys[cell], reason)

    def _rows(self, progress: _Progress, hand: Hand, message: Mapping[str, Any]) -> Iterator[Scored]:
        """Handles a worker's message; yields the row if it is a new one."""
        kind, answers = message["kind"], progress.run.answers
        assert hand.opened is not None
        if kind == "row":
            scored = scored_from(message)
            if progress.queue.delivered(progress.cells[scored.row.cell]):
                yield scored
        elif kind == "partial" and answers is not None:
            [partial] = partials_from([message["partial"]])
            answers.in_environment(hand.opened["environment"]).add(message["cell"], partial)
        elif kind == "step" and progress.run.report is not None:
            progress.run.report(step_from(message["step"]))
        elif kind == "note":
            self._say(message["text"])
        elif kind == "end":
            hand.chunk, hand.stream = [], None
            progress.engine.described = message.get("engine") or progress.engine.described
            _raise(hand, message)

    def _listen(self, handle: Callable[[Hand, Mapping[str, Any]], None] | None = None) -> list[Lost]:
        """One round of messages: passes those of working workers to `handle`, and returns the lost workers."""
        assert self._crew is not None
        crew = self._crew
        lost = []
        for hand, message in crew.listen():
            if isinstance(message, Lost):
                lost.append(message)
                if hand.opened is None and message.died:
                    self._refused += 1
                    if self._refused >= _REFUSED:
                        self._beware(message)
            elif hand.opened is None:
                if self._stopping:  # the model is no longer needed
                    continue
                opened = unpack(message)
                _raise(hand, opened)
                hand.opened, self._refused, crew.wary = opened, 0, False
                if self._run is not None:
                    self._check(hand)
            elif handle is not None:
                handle(hand, unpack(message))
        if crew.waited() > PATIENCE:
            raise LrbenchError(
                f"for {PATIENCE:.0f} s no machine of the cluster had {crew.needs} for a worker; the same command goes "
                "on where this stopped"
            )
        if crew.waited() > 30:
            self._say(f"waiting for a machine that has {crew.needs} for a worker")
        return lost

    def _beware(self, last: Lost) -> None:
        """Adds no more workers after several died while they opened the model.

        Raises:
            LrbenchError: no other worker has the model or opens it.
        """
        assert self._crew is not None
        problem = (
            f"{last.hand.name}: workers die while they open the model: {last.reason}; is there memory for it, and "
            "lrbench, on every machine? `ray logs` has more"
        )
        if not any(hand.where for hand in self._crew.hands):
            raise LrbenchError(problem)
        if not self._crew.wary:
            self._crew.wary = True
            self._say(f"{problem}. The run goes on with the other workers")

    def _check(self, hand: Hand) -> None:
        assert self._run is not None
        assert hand.opened is not None
        key = differing_key(hand.opened, self._run)
        if key:
            raise InputError(
                f"{hand.name}: its {key} is not the run's; are model, tasks and data the same on every machine?"
            )

    def _say(self, message: str) -> None:
        """Notifies once of messages that several workers send."""
        if message not in self._notes:
            self._notes.add(message)
            self._notify(message)


def _refuse_silent(address: str) -> None:
    """Refuses an address that does not answer, which Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, or another form that Ray checks itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"--address {address}: nothing answers there ({reason}); is that what `ray start --head` printed?"
        ) from None


class _Progress:
    """The cells of a plan, on workers and waiting for them."""

    def __init__(self, run: RemoteRun, plan: Plan, keys: Mapping[Cell, str], engine: RemoteEngine, crew: Crew) -> None:
        self.run, self.keys, self.engine, self._crew = run, keys, engine, crew
        self.cells = {keys[cell]: cell for cell in plan.cells}
        blocks = len(run.loaded.inventory.blocks)
        groups: list[Group[Cell]] = []
        for cells in plan.groups():
            cost = sum(cost_of(cell.first_block, blocks) for cell in cells if not cell.skip and not cell.failure)
            names = tuple(slot.name for slot in cells[0].slots)
            groups.append(Group(tuple(cells), cells[0].first_block or 0, cost, names))
        self.queue: Queue[Cell] = Queue(groups)
        self._groups = groups

    @property
    def under_way(self) -> bool:
        """Whether any worker computes."""
        return any(hand.chunk for hand in self._crew.hands)

    @property
    def done(self) -> bool:
        """Whether every cell has its row and no worker computes."""
        return self.queue.finished and not self.under_way

    @property
    def open_groups(self) -> int:
        """The number of groups with cells that have no row: at most so many workers are needed."""
        return sum(any(self.is_open(cell) for cell in group.cells) for group in self._groups)

    def is_open(self, cell: Cell) -> bool:
        """Whether a cell has no row yet."""
        return self.queue.is_open(cell)


def _raise(hand: Hand, answer: Mapping[str, Any]) -> None:
    """Raises the error in a worker's answer, if there is one."""
    if "bug" in answer:
        failure = RuntimeError(f"{hand.name}: {answer['bug']}")
        failure.add_note(answer["traceback"])
        raise failure
    if "error" in answer:
        raise (InputError if answer["input"] else LrbenchError)(f"{hand.name}: {answer['error']}")
