"""The workers of a run on a Ray cluster: how many there is room for, where they are, what they say, which are lost."""

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

ROUND = 0.5  # seconds to listen before something else is seen to
RECOUNT = 5.0  # seconds between looks at how much room there is


@dataclass(eq=False)
class Hand:
    """One worker, as far as it is known.

    Attributes:
        actor: Ray's handle.
        where: host, process and node; None until it has been given a place.
        opened: what it says of the model; None until it has it.
        share: what it is working on; empty where it is idle.
        stream: what it says while it works.
    """

    actor: Any
    placing: Any
    opening: Any
    where: dict[str, Any] | None = None
    opened: dict[str, Any] | None = None
    share: list[Group[Any]] = field(default_factory=list)
    stream: Any = None

    @property
    def name(self) -> str:
        """For messages."""
        return f"worker {self.where['pid']} on {self.where['host']}" if self.where else "a worker without a place"

    def begin(self, share: list[Group[Any]], unit: str) -> None:
        """Gives it something to do."""
        self.share = share
        self.stream = self.actor.work.options(
            num_returns="streaming", _generator_backpressure_num_objects=WAITING
        ).remote(unit)


@dataclass(frozen=True)
class Lost:
    """A worker that is gone.

    Attributes:
        died: its process did, and not the machine under it.
    """

    hand: Hand
    reason: str
    died: bool


class Crew:
    """All workers of one run.

    Args:
        workers: how many; None: as many as there is room for, machines that come later included.
        cpus, gpus: of each; no number of GPUs: one, where the cluster has any and `device` is not the CPU.

    Attributes:
        wary: new workers have failed to open the model again and again: none is added while others have it, or open it.
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
        """What a worker takes, in words."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self._cpus} CPU{gpus}"

    def room(self) -> int:
        """How many workers the machines there are now could hold."""
        return room_for([node["Resources"] for node in self._nodes()], self._cpus, self.gpus)

    def open(self, order: str, at_most: int) -> None:
        """Has a model opened by all workers, new ones and those that have another."""
        self._order = order
        for hand in self.hands:
            hand.opened, hand.opening = None, hand.actor.open.remote(order)
        self._counted, self._at_most = 0.0, at_most
        self.staff()

    def staff(self, at_most: int | None = None) -> None:
        """Adds workers where there are fewer than there is room for, and than there is to do."""
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
        """What workers have said by now, waiting a little: answers to `open`, messages, or that one is lost.

        A lost worker is no longer among `hands`; another takes its place at the next `staff`.
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
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)  # no one's turn comes before another's
        for ref in ready:
            hand = refs[ref]
            if hand not in self.hands:  # lost a moment ago, and said so
                continue
            try:
                said = self._said(hand, ref)
                if said is None and hand.share and hand.stream is None:  # its last word was lost on its way
                    self._end(hand)
                    yield hand, Lost(hand, "it ended without a word", died=False)
                    continue
            except self._ray.exceptions.RayError as error:
                yield hand, self._lose(hand, error)
                continue
            if said is not None:
                yield hand, said

    def waited(self) -> float:
        """Seconds for which no worker has had a place."""
        if any(hand.where for hand in self.hands):
            self._without_since = None
            return 0.0
        if self._without_since is None:
            self._without_since = time.monotonic()
        return time.monotonic() - self._without_since

    def spoilt(self) -> Iterator[Hand | Lost]:
        """Workers whose weights are not, to the last bit, what they loaded; and those that are lost as they look."""
        asked = [(hand, hand.actor.intact.remote()) for hand in self.hands if hand.opened]
        for hand, answer in asked:
            try:
                if not self._ray.get(answer):
                    yield hand
            except self._ray.exceptions.RayError as error:
                yield self._lose(hand, error)

    def stop(self) -> None:
        """Has every worker finish its cell and begin no other."""
        for hand in self.hands:
            if hand.share:
                hand.actor.stop.remote()

    def dismiss(self, only: Iterable[Hand] | None = None) -> None:
        """Ends workers at once."""
        for hand in list(self.hands if only is None else only):
            self._end(hand)

    def _said(self, hand: Hand, ref: Any) -> str | None:
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
        if isinstance(error, exceptions.RayTaskError):  # not the process, but what it was to run
            reason = str(error).strip().splitlines()[-1]
        node = hand.where["node"] if hand.where else None
        gone = node is not None and node not in {one["NodeID"] for one in self._nodes()}
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
