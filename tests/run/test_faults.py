"""Whatever stops a run while it writes: started again, it ends with the rows of one that never stopped."""

from __future__ import annotations

import itertools

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
    Fault,
    Killed,
    Subject,
    facts,
    quicken,
    scored_lines,
    write_parts,
)
from tests.support.slow_cases import slow_cases

SUITES = {"plain": PLAIN, "parts": PARTS, "rich": RICH, "choosing": CHOOSING}
WRITTEN, APPENDED = ("manifest", "samples", "cache"), ("rows", "environments", "partial")
#: every durable write: which suite comes by it, what kind of file it is, and the point
WRITES = [
    (suite, kind, point)
    for suite, kinds in {"plain": ("manifest", "samples", "rows", "environments"), "parts": ("partial",),
                         "rich": ("cache",), "choosing": ("partial", "rows")}.items()
    for kind in kinds
    for point in POINTS
    if point.startswith("write." if kind in WRITTEN else "append.")
]  # fmt: skip


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
        for kind, text in SUITES.items():
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
    assert not list(out.rglob("*.tmp"))
    assert (result.failed, result.computed + result.reused) == (0, len(whole))


def test_runs_come_by_every_point_and_write_no_other_kind_of_file(subjects):
    for suite, kind, point in WRITES:
        assert subjects[suite][2][kind, point], (suite, kind, point)
    come_by = set(itertools.chain.from_iterable(hits for _, _, hits in subjects.values()))
    assert come_by == {(kind, point) for _, kind, point in WRITES}
    assert {point for _, point in come_by} == set(POINTS)


@pytest.mark.parametrize(
    ("suite", "kind", "point"),
    [*WRITES[::3], *slow_cases(*(write for number, write in enumerate(WRITES) if number % 3))],
)
def test_an_exception_and_then_a_kill_at_any_write_cost_no_row(suite, kind, point, subjects, tmp_path, monkeypatch):
    subject, whole, hits = subjects[suite]
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    fault, torn = Fault((kind, point)), point.endswith(".written")
    went_on = begin(subject, out, fault, monkeypatch)
    assert fault.struck
    failed = [row for row in RunDirectory(out).rows().values() if row.status == "failed"]
    assert went_on or not failed
    assert all("BrokenError" in row.reason for row in failed), failed  # the cell's own fault, and said
    went_on = begin(subject, out, Fault((kind, point), 1, Killed, torn=torn), monkeypatch)
    end(subject, out, whole)
    if went_on:  # what was left to do does not come by this point
        out = tmp_path / "other"
        monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "other cache"))
        killing = Fault((kind, point), min(2, hits[kind, point]), Killed, torn=torn)
        assert not begin(subject, out, killing, monkeypatch)
        end(subject, out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(("suite", "kind", "point"), WRITES)
def test_a_kill_at_each_write_costs_no_row(suite, kind, point, number, subjects, tmp_path, monkeypatch):
    subject, whole, hits = subjects[suite]
    if number > hits[kind, point]:
        return
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    torn = point.endswith(".written")
    assert not begin(subject, tmp_path / "out", Fault((kind, point), number, Killed, torn=torn), monkeypatch)
    end(subject, tmp_path / "out", whole)
