"""Cells on a Ray cluster: actors hold the model, this process hands out cells and alone writes what comes back.

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
from lrbench.run.executors.remote import RemoteEngine, RemoteRun, check_same, open_remote, order_of, unit_of
from lrbench.run.executors.schedule import Group, Queue, cost_of
from lrbench.run.executors.wire import pack, partials_from, scored_from, step_from, unpack
from lrbench.run.recorder import Interrupted
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.reduction.plan import Cell, Plan
    from lrbench.run.cell_scoring import Scored
    from lrbench.run.model_run import ModelRun, ModelSetup

PATIENCE = 600.0  # seconds without any machine that has room for a worker
_REFUSED = 3  # workers that die one after the other while they open the model


@dataclass(frozen=True)
class RayOptions:
    """Which cluster, and what of it.

    Attributes:
        address: `host:port`, or `auto`; None: the one this process belongs to (`RAY_ADDRESS`), else one of its own.
        workers: how many; None: as many as there is room for.
        cpus: of each worker, and its number of threads.
        gpus: of each worker: a whole number, or a fraction of one. None: one where the cluster has any.
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
    """Workers on a Ray cluster. One model at a time is open on all of them."""

    here = False

    def __init__(self, options: RayOptions = RayOptions()) -> None:
        self._options = options
        self._crew: Crew | None = None
        self._connected = self._stopping = False
        self._run: RemoteRun | None = None
        self._notify: Callable[[str], None] = lambda _: None
        self._said: set[str] = set()
        self._refused = 0

    @property
    def hands(self) -> Sequence[Hand]:
        """The workers there are now."""
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
                    f"{key!r} is decided where the model is, and a Ray run's own process holds none; leave it out, or "
                    "run with --executor local",
                    key,
                )
        self._notify, self._run = notify, None
        self._said.clear()
        crew = self._crew or self._hire(setup.device or spec.device)
        order = order_of(setup, crew.gpus)
        structure = load_structure(spec, trust_remote_code=setup.trust_remote_code)
        plan = make_plan(suite, structure, setup.methods)
        self._refused, crew.wary = 0, False  # it may be another model's fault
        crew.open(pack(order), at_most=sum(1 for _ in plan.groups()))
        several = f"{len(crew.hands)} workers" if len(crew.hands) > 1 else "one worker"
        notify(f"loading {spec.display_name} on {several}")
        opened = None
        while opened is None:
            if self._stopping:
                raise KeyboardInterrupt
            self._hear()
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
        """Ends the workers, and leaves the cluster if this executor went to it."""
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
            address = "local"  # else Ray goes to whatever cluster somebody has started on this machine
            own = {"include_dashboard": False}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
            os.environ.setdefault("RAY_worker_niceness", "0")  # and works as this process does, not at 15
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError (other versions), grpc's own
            where = f"--address {address}" if self._options.address else "--executor ray"
            raise InputError(f"{where}: no Ray cluster can be used: {one_line(error)}") from error
        finally:
            if main and handler is not None:
                signal.signal(signal.SIGTERM, handler)  # Ray takes it for itself
        self._connected = True

    def spoilt(self) -> Collection[str]:
        """See `Workers.spoilt`. Of workers that were lost nobody knows; of one that is lost meanwhile, it is said."""
        assert self._crew is not None
        found = []
        for one in self._crew.spoilt():
            if isinstance(one, Lost):
                self._notify(f"{one.hand.name}: lost ({one.reason}) before its weights were looked at")
            else:
                found.append(one.name)
        return found

    def compute(self, run: RemoteRun, plan: Plan, keys: Mapping[Cell, str], engine: RemoteEngine) -> Iterator[Scored]:
        """Hands out a plan's cells, and yields their rows as they come.

        Raises:
            Interrupted: after the rows of the cells under way, where ^C was pressed in here or `stop` was called.
            InputError: a worker has not the run's model, code or data.
            LrbenchError: there have been no workers for long, or none can open the model.
        """
        assert self._crew is not None
        crew = self._crew
        work = _Work(run, plan, keys, engine, crew)
        try:
            try:
                while not (work.done or self._stopping):
                    crew.staff(work.open_groups)
                    self._hand_out(work)
                    yield from self._heard(work)
            except KeyboardInterrupt:
                if self._stopping:  # the second one
                    raise
                self._stopping = True
            if not work.done:
                self._notify("stopping: each worker finishes its cell; ^C again stops now")
                crew.stop()
                while work.under_way:
                    yield from self._heard(work)
                raise Interrupted
        finally:
            crew.dismiss(only=[hand for hand in crew.hands if hand.share])

    def _hand_out(self, work: _Work) -> None:
        assert self._crew is not None
        ready = [hand for hand in self._crew.hands if hand.opened and not hand.share]
        for hand in ready:
            share = work.queue.take(len(self._crew.hands))
            if not share:
                return
            cells = [cell for group in share for cell in group.cells]
            assert hand.opened is not None
            here = hand.opened["environment"]
            if work.run.answers is not None:
                work.run.answers.in_environment(here)
            work.run.environment = here["hash"]
            hand.begin(share, pack(unit_of(work.run, cells, work.keys, work.engine, here)))

    def _heard(self, work: _Work) -> Iterator[Scored]:
        """The rows of one round of listening; those of cells that are given up, too."""
        rows: list[Scored] = []

        def take(hand: Hand, message: Mapping[str, Any]) -> None:
            rows.extend(self._taken(work, hand, message))

        lost = self._hear(take)
        yield from rows
        for one in lost:
            hand = one.hand
            left = sum(work.is_open(cell) for group in hand.share for cell in group.cells)
            given_up = work.queue.lost(hand.share, died=one.died)
            hand.share = []
            if left:
                self._notify(f"{hand.name}: lost ({one.reason}); its {left} cells go to others")
            what = "workers died" if one.died else "workers were lost"
            for cell in given_up:
                reason = f"{what} on it again and again, last {hand.name}: {one.reason}"
                yield work.run.given_up(cell, work.keys[cell], reason)

    def _taken(self, work: _Work, hand: Hand, message: Mapping[str, Any]) -> Iterator[Scored]:
        """What a worker's message comes to."""
        kind, answers = message["kind"], work.run.answers
        assert hand.opened is not None
        if kind == "row":
            scored = scored_from(message)
            if work.queue.delivered(work.cells[scored.row.cell]):
                yield scored
        elif kind == "partial" and answers is not None:
            [partial] = partials_from([message["partial"]])
            answers.in_environment(hand.opened["environment"]).add(message["cell"], partial)
        elif kind == "step" and work.run.report is not None:
            work.run.report(step_from(message["step"]))
        elif kind == "note":
            self._say(message["text"])
        elif kind == "end":
            hand.share, hand.stream = [], None
            work.engine.described = message.get("engine") or work.engine.described
            _raise(hand, message)

    def _hear(self, take: Callable[[Hand, Mapping[str, Any]], None] | None = None) -> list[Lost]:
        """One round: gives on what workers at work say, and returns those that were lost, with their shares."""
        assert self._crew is not None
        crew = self._crew
        lost = []
        for hand, said in crew.listen():
            if isinstance(said, Lost):
                lost.append(said)
                if hand.opened is None and said.died:
                    self._refused += 1
                    if self._refused >= _REFUSED:
                        self._beware(said)
            elif hand.opened is None:
                if self._stopping:  # it comes too late, whatever it is
                    continue
                opened = unpack(said)
                _raise(hand, opened)
                hand.opened, self._refused, crew.wary = opened, 0, False
                if self._run is not None:
                    self._check(hand)
            elif take is not None:
                take(hand, unpack(said))
        if crew.waited() > PATIENCE:
            raise LrbenchError(
                f"for {PATIENCE:.0f} s no machine of the cluster had {crew.needs} for a worker; the same command goes "
                "on where this stopped"
            )
        if crew.waited() > 30:
            self._say(f"waiting for a machine that has {crew.needs} for a worker")
        return lost

    def _beware(self, last: Lost) -> None:
        """After deaths of workers that opened the model; raises LrbenchError where nobody else has or opens it."""
        assert self._crew is not None
        words = (
            f"{last.hand.name}: workers die while they open the model: {last.reason}; is there memory for it, and "
            "lrbench, on every machine? `ray logs` has more"
        )
        if not any(hand.where for hand in self._crew.hands):
            raise LrbenchError(words)
        if not self._crew.wary:
            self._crew.wary = True
            self._say(f"{words}. The run goes on with the other workers")

    def _check(self, hand: Hand) -> None:
        assert self._run is not None
        assert hand.opened is not None
        what = check_same(hand.opened, self._run)
        if what:
            raise InputError(
                f"{hand.name}: its {what} is not the run's; are model, tasks and data the same on every machine?"
            )

    def _say(self, message: str) -> None:
        """What several workers say is said once."""
        if message not in self._said:
            self._said.add(message)
            self._notify(message)


def _refuse_silent(address: str) -> None:
    """Ray itself tries an address for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, or something that Ray knows better
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"--address {address}: nothing answers there ({reason}); is that what `ray start --head` printed?"
        ) from None


class _Work:
    """A plan's cells at work."""

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
        """Whether any worker is at work."""
        return any(hand.share for hand in self._crew.hands)

    @property
    def done(self) -> bool:
        """Whether every cell has its row, and no worker has anything left to say."""
        return self.queue.finished and not self.under_way

    @property
    def open_groups(self) -> int:
        """How many workers could have something to do."""
        return sum(any(self.is_open(cell) for cell in group.cells) for group in self._groups)

    def is_open(self, cell: Cell) -> bool:
        """Whether a cell has no row yet."""
        return self.queue.is_open(cell)


def _raise(hand: Hand, answer: Mapping[str, Any]) -> None:
    """The error that a worker answered, as this process's own."""
    if "bug" in answer:
        failure = RuntimeError(f"{hand.name}: {answer['bug']}")
        failure.add_note(answer["traceback"])
        raise failure
    if "error" in answer:
        raise (InputError if answer["input"] else LrbenchError)(f"{hand.name}: {answer['error']}")
