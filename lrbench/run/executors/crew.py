"""The workers of a run on a Ray cluster: starts them, reads their messages, and detects lost ones."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lrbench.run.executors.schedule import Group, room_for
from lrbench.run.executors.wire import unpack
from lrbench.run.executors.worker import WAITING, Worker
from lrbench.system.text import one_line

ROUND = 0.5  # seconds to wait for messages
RECOUNT = 5.0  # seconds between two counts of the cluster's resources


@dataclass(eq=False)
class Hand:
    """One worker.

    Attributes:
        actor: Ray's handle.
        placing, opening: Ray's references to pending answers of `Worker.where` and `Worker.open`.
        where: host, process and node; None until Ray has placed it.
        opened: the answer of `Worker.open`; None until it has loaded the model.
        chunk: the groups of cells that it works on; empty if it is idle.
        stream: Ray's generator of its messages while it works.
    """

    actor: Any
    placing: Any
    opening: Any
    where: dict[str, Any] | None = None
    opened: dict[str, Any] | None = None
    chunk: list[Group[Any]] = field(default_factory=list)
    stream: Any = None

    @property
    def name(self) -> str:
        """The worker's name in messages."""
        return f"worker {self.where['pid']} on {self.where['host']}" if self.where else "a worker without a place"

    def begin(self, chunk: list[Group[Any]], unit: str) -> None:
        """Starts the work on a chunk; `unit` is the message with its cells."""
        self.chunk = chunk
        self.stream = self.actor.work.options(
            num_returns="streaming", _generator_backpressure_num_objects=WAITING
        ).remote(unit)


@dataclass(frozen=True)
class Lost:
    """A lost worker.

    Attributes:
        died: whether its process died, and not the whole machine.
    """

    hand: Hand
    reason: str
    died: bool


class Crew:
    """All workers of one run.

    Args:
        workers: their number; None for as many as fit, on machines that join later as well.
        cpus, gpus: of each worker. `gpus` None: one if the cluster has any and `device` is not the CPU.

    Attributes:
        wary: whether new workers died repeatedly while they opened the model. None is then added as long as others
            have the model or are opening it.
    """

    def __init__(self, workers: int | None, cpus: int, gpus: float | None, device: str | None) -> None:
        import ray

        self._ray = ray
        self._workers, self._cpus = workers, cpus
        any_gpu = any(node["Resources"].get("GPU", 0) >= 1 for node in self._nodes())
        self.gpus = gpus if gpus is not None else float(any_gpu and device != "cpu")
        self.hands: list[Hand] = []
        self._order, self._at_most = "", 0
        self.wary = False
        self._without_since: float | None = None
        self._counted, self._room = 0.0, 0

    @property
    def needs(self) -> str:
        """A description of the resources that a worker needs."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self._cpus} CPU{gpus}"

    def room(self) -> int:
        """The number of workers that fit on the cluster now."""
        return room_for([node["Resources"] for node in self._nodes()], self._cpus, self.gpus)

    def open(self, order: str, at_most: int) -> None:
        """Lets all workers, present and future ones, open a model; at most `at_most` are needed."""
        self._order = order
        for hand in self.hands:
            hand.opened, hand.opening = None, hand.actor.open.remote(order)
        self._counted, self._at_most = 0.0, at_most
        self.staff()

    def staff(self, at_most: int | None = None) -> None:
        """Adds workers up to the number that fit and the number that is needed."""
        at_most = self._at_most if at_most is None else at_most
        if self.wary and any(hand.where for hand in self.hands):
            return
        if time.monotonic() - self._counted > RECOUNT:
            self._counted = time.monotonic()
            self._room = self._workers or self.room()
        Actor: Any = self._ray.remote(Worker)
        while len(self.hands) < min(self._room, at_most):
            actor = Actor.options(
                num_cpus=self._cpus, num_gpus=self.gpus, max_restarts=0, max_concurrency=2,
                scheduling_strategy="SPREAD",
            ).remote(self._cpus)  # fmt: skip
            self.hands.append(Hand(actor, actor.where.remote(), actor.open.remote(self._order)))

    def listen(self) -> Iterator[tuple[Hand, str | Lost]]:
        """Waits a little, and yields the workers' new messages: answers of `open`, messages of `work`, and losses.

        Lost workers are removed from `hands`; the next `staff` replaces them.
        """
        refs = {}
        for hand in self.hands:
            for ref in (hand.placing, hand.opening, hand.stream):
                if ref is not None:
                    refs[ref] = hand
        if not refs:
            time.sleep(ROUND / 10)
            return
        self._ray.wait(list(refs), num_returns=1, timeout=ROUND)
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)  # at most one message of each
        for ref in ready:
            hand = refs[ref]
            if hand not in self.hands:  # its loss was reported a moment ago
                continue
            try:
                message = self._message(hand, ref)
                if message is None and hand.chunk and hand.stream is None:  # its last message was lost
                    self._end(hand)
                    yield hand, Lost(hand, "it ended without a word", died=False)
                    continue
            except self._ray.exceptions.RayError as error:
                yield hand, self._lose(hand, error)
                continue
            if message is not None:
                yield hand, message

    def waited(self) -> float:
        """Seconds for which Ray has placed no worker."""
        if any(hand.where for hand in self.hands):
            self._without_since = None
            return 0.0
        if self._without_since is None:
            self._without_since = time.monotonic()
        return time.monotonic() - self._without_since

    def spoilt(self) -> Iterator[Hand | Lost]:
        """Workers whose weights are not bit-identical to the loaded ones, and workers that are lost meanwhile."""
        answers = [(hand, hand.actor.intact.remote()) for hand in self.hands if hand.opened]
        for hand, answer in answers:
            try:
                if not self._ray.get(answer):
                    yield hand
            except self._ray.exceptions.RayError as error:
                yield self._lose(hand, error)

    def stop(self) -> None:
        """Lets every worker finish its cell and start no other."""
        for hand in self.hands:
            if hand.chunk:
                hand.actor.stop.remote()

    def dismiss(self, only: Iterable[Hand] | None = None) -> None:
        """Kills workers; all of them by default."""
        for hand in list(self.hands if only is None else only):
            self._end(hand)

    def _message(self, hand: Hand, ref: Any) -> str | None:
        if ref is hand.stream:
            try:
                return self._ray.get(next(ref))
            except StopIteration:
                hand.stream = None
                return None
        answer = self._ray.get(ref)
        if ref is hand.placing:
            hand.placing, hand.where = None, unpack(answer)
            return None
        hand.opening = None
        return answer

    def _lose(self, hand: Hand, error: Exception) -> Lost:
        exceptions = self._ray.exceptions
        text = " ".join(str(error).split())
        because = re.search(r"because (its .*?)(\.|$)", text)
        reason = because.group(1) if because else one_line(error)[:300]
        if isinstance(error, exceptions.RayTaskError):  # an error of the task, not of the process
            reason = str(error).strip().splitlines()[-1]
        node = hand.where["node"] if hand.where else None
        gone = node is not None and node not in {alive["NodeID"] for alive in self._nodes()}
        unreachable = isinstance(error, exceptions.ActorUnavailableError | exceptions.ObjectLostError)
        self._end(hand)
        self._counted = 0.0
        return Lost(hand, reason, died=not (gone or unreachable or "its node has died" in text))

    def _end(self, hand: Hand) -> None:
        if hand in self.hands:
            self.hands.remove(hand)
        self._ray.kill(hand.actor, no_restart=True)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]
