"""Whatever stops a run, wherever it stops: started again, it ends with the rows of one that never stopped."""

from __future__ import annotations

import pytest

from lrbench import environment as environments
from lrbench import faults
from lrbench.evaluate.sweep import memory
from lrbench.faults import POINTS
from lrbench.store import RunDirectory
from tests.faulty import (
    PARTS,
    PLAIN,
    RICH,
    TEXTS,
    Fault,
    Killed,
    Subject,
    facts,
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
}
WHERE = {point: kind for kind, points in ELSEWHERE.items() for point in points}
TORN = ("rows.appended", "environments.appended", "partial.appended", "samples.written", "manifest.written")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(environments, "_git_state", lambda: None)  # two processes a run
    monkeypatch.setitem(memory.TOKENS, "cpu", 32)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Tiny suites, what each leaves when nothing stops it, and how often it comes by each point."""
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(environments, "_git_state", lambda: None)
        patched.setitem(memory.TOKENS, "cpu", 32)
        for kind, text in (("plain", PLAIN), ("parts", PARTS), ("rich", RICH), ("texts", TEXTS)):
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
    assert fault.struck
    return True


def end(subject, out, whole):
    """Runs to the end, and holds what is there to what a run without faults leaves."""
    result = subject.run(out, retry_failed=True)
    directory = RunDirectory(out)
    assert facts(directory) == whole
    assert scored_lines(directory) == dict.fromkeys(whole, 1)
    assert directory.manifest()["cells"] == list(whole)
    assert not (out / "partial").exists()
    assert (result.failed, result.computed + result.reused) == (0, len(whole))
    return result


def test_there_are_more_than_fifty_points_and_runs_come_by_each(subjects):
    assert len(POINTS) >= 50
    for point in POINTS:
        assert subjects[WHERE.get(point, "plain")][2][point], point


@pytest.mark.parametrize("point", POINTS)
def test_an_exception_anywhere_costs_no_row(point, subjects, tmp_path, monkeypatch):
    subject, whole, _ = subjects[WHERE.get(point, "plain")]
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    fault = Fault(point)
    went_on = begin(subject, tmp_path / "out", fault, monkeypatch)
    failed = [row for row in RunDirectory(tmp_path / "out").rows().values() if row.status == "failed"]
    if failed:  # then the fault was that cell's own, and is said
        assert went_on
        assert all("BrokenError" in row.reason or "went by" in row.reason for row in failed), failed
    end(subject, tmp_path / "out", whole)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_anywhere_costs_no_row(point, subjects, tmp_path, monkeypatch):
    subject, whole, hits = subjects[WHERE.get(point, "plain")]
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    torn = tmp_path / "out" if point in TORN else None
    fault = Fault(point, min(2, hits[point]), Killed, torn)
    assert not begin(subject, tmp_path / "out", fault, monkeypatch)
    end(subject, tmp_path / "out", whole)
