"""Whatever stops a run, wherever it stops: started again, it ends with the rows of one that never stopped."""

from __future__ import annotations

import pytest

from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.results.directory import RunDirectory
from lrbench.system import faults
from lrbench.system.faults import POINTS
from tests.support.faulty import (
    CHOOSING,
    PARTS,
    PLAIN,
    RICH,
    TEXTS,
    Fault,
    Killed,
    Subject,
    facts,
    quicken,
    scored_lines,
    write_parts,
)

#: points that need more than the plainest run
ELSEWHERE = {
    "parts": ("partial.opened", "partial.appended", "partial.synced", "scoring.chunk"),
    "rich": (
        *(
            name
            for name in POINTS
            if name.startswith(("calibration.", "cache.", "layers.")) and name != "calibration.drawn"
        ),
        "inference.measured",
    ),
    "texts": ("scoring.texts",),
    "choosing": tuple(name for name in POINTS if name.startswith(("screen.", "block.", "race.", "greedy.", "choice."))),
}
WHERE = {point: kind for kind, points in ELSEWHERE.items() for point in points}
TORN = ("rows.appended", "environments.appended", "partial.appended", "samples.written", "manifest.written")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quicken(monkeypatch)
    monkeypatch.setattr(Sweeper, "_check_remembering", lambda *_: None)  # a third of a run


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Tiny suites, what each leaves when nothing stops it, and how often it comes by each point."""
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        quicken(patched)
        patched.setattr(Sweeper, "_check_remembering", lambda *_: None)
        for kind, text in (
            ("plain", PLAIN),
            ("parts", PARTS),
            ("rich", RICH),
            ("texts", TEXTS),
            ("choosing", CHOOSING),
        ):
            folder = tmp_path_factory.mktemp(kind)
            write_parts(folder)
            patched.setenv("LRBENCH_CACHE", str(folder / "cache"))
            subject, counted = Subject(folder, text), Fault()
            patched.setattr(faults, "hook", counted)
            whole = subject.run(folder / "whole")
            assert whole.failed == 0
            found[kind] = subject, facts(whole.directory), counted.hits
    return found


def begin(subject, out, fault, monkeypatch):
    """Runs until the fault strikes, if that stops it."""
    with monkeypatch.context() as patched:
        patched.setattr(faults, "hook", fault)
        try:
            subject.run(out)
        except fault.kind:
            return False
    return True


def end(subject, out, whole):
    """Runs to the end, and holds what is there to what a run without faults leaves."""
    result = subject.run(out, retry_failed=True)
    directory = RunDirectory(out)
    assert facts(directory) == whole
    scored = [cell for cell, row in directory.rows().items() if row.status == "ok"]  # what is screened out is skipped
    assert scored_lines(directory) == dict.fromkeys(scored, 1)
    assert sorted(directory.manifest()["cells"]) == sorted(whole)
    assert not (out / "partial").exists()
    assert (result.failed, result.computed + result.reused) == (0, len(whole))
    return result


def test_there_are_more_than_fifty_points_and_runs_come_by_each(subjects):
    assert len(POINTS) >= 50
    for point in POINTS:
        assert subjects[WHERE.get(point, "plain")][2][point], point


@pytest.mark.parametrize("point", POINTS)
def test_an_exception_and_then_a_kill_at_any_point_cost_no_row(point, subjects, tmp_path, monkeypatch):
    subject, whole, hits = subjects[WHERE.get(point, "plain")]
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    fault = Fault(point)
    went_on = begin(subject, out, fault, monkeypatch)
    assert fault.struck
    failed = [row for row in RunDirectory(out).rows().values() if row.status == "failed"]
    assert went_on or not failed
    assert all("BrokenError" in row.reason for row in failed), failed  # the cell's own fault, and said
    killing = Fault(point, 1, Killed, out if point in TORN else None)
    went_on = begin(subject, out, killing, monkeypatch)
    end(subject, out, whole)
    if went_on:  # what was left to do does not come by this point
        out = tmp_path / "other"
        monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "other cache"))
        killing = Fault(point, min(2, hits[point]), Killed, out if point in TORN else None)
        assert not begin(subject, out, killing, monkeypatch)
        end(subject, out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_whenever_a_run_comes_by_a_point_costs_no_row(point, number, subjects, tmp_path, monkeypatch):
    subject, whole, hits = subjects[WHERE.get(point, "plain")]
    if number > hits[point]:
        return
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    assert not begin(subject, tmp_path / "out", Fault(point, number, Killed), monkeypatch)
    end(subject, tmp_path / "out", whole)
