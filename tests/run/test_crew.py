"""Workers that die, one after the other, before there is any cluster: what the executor makes of what its crew says."""

import sys
from types import SimpleNamespace

import pytest

from lrbench.errors import LrbenchError
from lrbench.run.executors.crew import Crew, Hand, Lost
from lrbench.run.executors.ray import RayExecutor
from lrbench.run.executors.wire import pack


def hand(pid, opened=None, placed=True):
    where = {"host": "here", "pid": pid, "node": "node"} if placed else None
    return Hand(actor=SimpleNamespace(), placing=None, opening=None, where=where, opened=opened)


class Script:
    """A crew that says what it is told to."""

    needs = "1 CPU"

    def __init__(self, *hands):
        self.hands, self.says, self.wary = list(hands), [], False

    def listen(self):
        for one, said in self.says:
            if isinstance(said, Lost):
                self.hands.remove(one)
            yield one, said

    def waited(self):
        return 0.0


def hears(crew, *says):
    """An executor that has listened once for each of these, and what it said."""
    executor, notes = RayExecutor(), []
    executor._crew, executor._notify = crew, notes.append
    for said in says:
        crew.says = [said]
        executor._listen()
    return notes


def dies(one, died=True):
    return one, Lost(one, "its process ended", died=died)


def test_after_three_deaths_no_worker_is_added_while_others_have_the_model():
    has, dying = hand(1, opened={}), [hand(pid) for pid in (2, 3, 4, 5)]
    crew = Script(has, *dying)
    assert hears(crew, *map(dies, dying[:2])) == []
    assert not crew.wary
    crew = Script(has, *dying)
    [note] = hears(crew, *map(dies, dying))  # said once
    assert crew.wary
    assert note.startswith(
        "worker 4 on here: workers die while they open the model: its process ended; is there memory"
    )
    assert note.endswith("The run goes on with the other workers")


def test_one_that_is_still_opening_the_model_is_waited_for():
    dying, opening = [hand(pid) for pid in (2, 3, 4)], hand(1)
    crew = Script(*dying, opening)
    hears(crew, *map(dies, dying))
    assert crew.wary
    hears(crew, (opening, pack({"weight_hash": "0"})))
    assert not crew.wary


def test_where_nobody_has_the_model_or_opens_it_the_run_ends():
    dying = [hand(pid) for pid in (2, 3, 4)]
    with pytest.raises(LrbenchError, match="worker 4 on here: workers die while they open the model"):
        hears(Script(*dying, hand(0, placed=False)), *map(dies, dying))


def test_lost_machines_are_no_deaths():
    lost = [hand(pid) for pid in (2, 3, 4)]
    crew = Script(*lost)
    assert hears(crew, *(dies(one, died=False) for one in lost)) == []
    assert not crew.wary


def test_deaths_count_in_a_row():
    dying, opens = [hand(pid) for pid in (2, 3, 4)], hand(1)
    crew = Script(*dying, opens)
    assert hears(crew, dies(dying[0]), dies(dying[1]), (opens, pack({})), dies(dying[2])) == []


class GoneError(Exception):
    pass


class InTaskError(GoneError):
    pass


class NoCluster:
    """As much of Ray as a crew takes: machines with room, actors that never answer."""

    exceptions = SimpleNamespace(
        RayError=GoneError, RayTaskError=InTaskError, ActorUnavailableError=InTaskError, ObjectLostError=InTaskError
    )

    def __init__(self):
        self.made = 0
        self.lost = []

    def nodes(self):
        return [{"Alive": True, "NodeID": "node", "Resources": {"CPU": 2}}]

    def remote(self, _):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._actor))

    def _actor(self, _threads):
        self.made += 1
        call = SimpleNamespace(remote=lambda *_: object())
        return SimpleNamespace(where=call, open=call)

    def wait(self, refs, *, num_returns, timeout):
        return [ref for ref in refs if ref in self.lost], []

    def get(self, ref):
        raise GoneError("The actor died because its process ended.")

    def kill(self, actor, *, no_restart):
        pass


@pytest.fixture
def ray(monkeypatch):
    stub = NoCluster()
    monkeypatch.setitem(sys.modules, "ray", stub)
    return stub


def test_a_wary_crew_adds_nobody_while_one_has_a_place(ray):
    crew = Crew(None, 1, None, None)
    crew.open("{}", at_most=8)
    assert ray.made == len(crew.hands) == 2
    crew.hands.pop()
    crew.hands[0].where, crew.wary = {"host": "here", "pid": 1, "node": "node"}, True
    crew.staff()
    assert ray.made == 2
    crew.hands[0].where = None
    crew.staff()
    assert ray.made == 3


def test_a_worker_is_lost_once_whatever_it_had_still_to_say(ray):
    crew = Crew(1, 1, None, None)
    crew.open("{}", at_most=8)
    [one] = crew.hands
    ray.lost = [one.placing, one.opening]
    assert [(said, lost.reason) for said, lost in crew.listen()] == [(one, "its process ended")]
    assert crew.hands == []
