"""What the disk may do to a run, and what comes of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from lrbench.cli import main
from lrbench.errors import InputError, StorageError
from lrbench.results.directory import RunDirectory
from lrbench.run import model_run
from tests.support.faulty import PLAIN, Subject, facts, quicken, scored_lines, write_parts
from tests.support.synthetic_run import row


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A suite, and a run of it that nothing happened to."""
    folder = tmp_path_factory.mktemp("done")
    write_parts(folder)
    with pytest.MonkeyPatch.context() as patched:
        quicken(patched)
        subject = Subject(folder, PLAIN)
        subject.run(folder / "whole")
    return subject


@pytest.fixture
def out(done, tmp_path):
    """A copy of that run, to be damaged."""
    shutil.copytree(done.folder / "whole", tmp_path / "out")
    return tmp_path / "out"


def whole(done):
    return facts(RunDirectory(done.folder / "whole"))


def mended(done, out, computed):
    """Runs again, and holds everything to the run that nothing happened to."""
    result = done.run(out)
    assert (result.computed, result.reused, result.failed) == (computed, 3 - computed, 0)
    assert facts(result.directory) == whole(done)
    assert set(scored_lines(result.directory).values()) == {1}
    assert result.directory.manifest()["cells"] == list(whole(done))


def test_a_torn_last_row_is_scored_again(done, out):
    rows = out / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-40])
    assert len(RunDirectory(out).rows()) == 2
    mended(done, out, 1)


def test_a_half_written_sample_file_has_no_row_and_is_written_anew(done, out):
    """Samples get their name when they are whole, and the row comes after them."""
    rows = out / "rows.jsonl"
    *kept, last = rows.read_text().splitlines()
    rows.write_text("\n".join(kept) + "\n")
    samples = out / "samples" / f"{json.loads(last)['cell']}.jsonl"
    (out / "samples" / ".lrbench-0.tmp").write_bytes(samples.read_bytes()[:-30])
    samples.unlink()
    mended(done, out, 1)
    assert not list(out.rglob("*.tmp"))


def test_a_sample_file_that_was_damaged_later_is_named(done, out):
    cell = next(iter(RunDirectory(out).rows()))
    file = out / "samples" / f"{cell}.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"samples/.*\.jsonl:2: not a document's scores") as caught:
        RunDirectory(out).samples(cell)
    assert "\n" not in str(caught.value)


def test_a_torn_environment_is_written_again(done, out):
    file = out / "environments.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    (out / "rows.jsonl").write_text("")
    mended(done, out, 3)
    [entry] = RunDirectory(out).environments()
    assert {row.environment for row in RunDirectory(out).rows().values()} == {entry}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.rename(path.with_suffix(".old"))])
def test_a_deleted_manifest_is_written_anew_and_every_row_is_used(done, out, damage):
    damage(out / "manifest.json")
    mended(done, out, 0)


def test_a_manifest_deleted_before_the_first_row_is_written_anew(done, out):
    (out / "manifest.json").unlink()
    (out / "rows.jsonl").unlink()
    mended(done, out, 3)


def test_a_manifest_that_is_no_manifest_is_said_and_nothing_is_touched(done, out):
    (out / "manifest.json").write_text("{")
    before = (out / "rows.jsonl").read_bytes()
    with pytest.raises(InputError, match="delete it, and run the suite again: its rows are kept"):
        done.run(out)
    assert (out / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", range(1, 9))
def test_a_full_disk_ends_the_run_in_one_line_and_what_was_scored_stays(done, tmp_path, monkeypatch, capsys, number):
    """Whatever file it is that finds no room."""
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main(["run", str(done.folder / "suite.yaml"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    line = said.splitlines()[-1]
    assert line.startswith(f"lrbench: {tmp_path / 'out'}")
    assert "cannot be written: No space left on device; the rows so far are kept: make room" in line
    assert "Traceback" not in said
    assert "bug" not in said
    there = len(RunDirectory(tmp_path / "out").rows())
    mended(done, tmp_path / "out", 3 - there)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_without_room_is_said_with_the_file(tmp_path):
    run = RunDirectory(tmp_path)
    run.rows_file.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"rows\.jsonl: cannot be written: No space left on device"):
        run.append(row("a"))


def test_room_that_a_half_written_file_takes_is_given_back(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    run.write_samples("a", [{"doc": 0}])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        run.write_samples("a", [{"doc": 1}])
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["a.jsonl"]
    assert run.samples("a") == [{"doc": 0}]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOLCK])
def test_a_directory_that_cannot_be_written_to_is_refused_before_a_model_is_loaded(done, tmp_path, monkeypatch, code):
    """Root may write anywhere, so the system's answer is given by hand."""

    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("lrbench.system.files.FileLock.acquire", refused)
    monkeypatch.setattr(model_run, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=f"cannot be a run directory: {os.strerror(code)}; choose another --out"):
        done.run(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(done, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(InputError, match="cannot be a run directory: Permission denied; choose another --out"):
        done.run(tmp_path / "out")


def test_a_disk_that_becomes_read_only_on_the_way_ends_the_run_in_one_line(done, tmp_path, monkeypatch):
    opened = Path.open

    def refused(path, mode="r", *given, **named):
        if path.name == "rows.jsonl" and "a" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        with pytest.raises(StorageError, match="Read-only file system"):
            done.run(tmp_path / "out")
    mended(done, tmp_path / "out", 3)
