"""Shards of one suite become one run: `lrbench merge`."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from lrbench import cli
from lrbench.analysis.leaderboard import build
from lrbench.errors import InputError
from lrbench.results import merge as module
from lrbench.results.directory import RunDirectory
from lrbench.results.merge import merge
from tests.support.suites import run as run_suite_file
from tests.support.suites import write_suite
from tests.support.synthetic_run import edit, row, simple_run

CELLS = ["base", "a", "b", "c"]


def manifest(**changes):
    models = [{"label": "almanac", "weight_hash": "w", "cells": CELLS}]
    suite = {"name": "demo", "seed": 0, "models": [{"label": "almanac"}]}
    return {"suite": suite, "suite_hash": "s", "tasks": [{"task": "t", "subtasks": ["t"]}], "models": models,
            "reducers": [{"label": "svd", "source_hash": "1"}], "cells": CELLS} | changes  # fmt: skip


def cell(name, status="ok", environment="e0", **changes):
    method = {} if name == "base" else {"reducer": "svd", "label": "svd", "requested": {"keep": 0.5}, "edits": [edit()]}
    return row(name, status=status, environment=environment, **{**method, **changes})


def shard(path, rows, environment="e0", **changes):
    run = simple_run(path, [(given, correct) for given, correct in rows])
    run.write_manifest(manifest(**changes))
    run.add_environment({"hash": environment, "processor": environment})
    return run


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def two(tmp_path):
    one = shard(tmp_path / "one", [(cell("base"), {"t": [1, 0]}), (cell("b"), {"t": [0, 0]})])
    other = shard(
        tmp_path / "other",
        [(cell("base", environment="e1"), {"t": [1, 0]}), (cell("a", environment="e1"), {"t": [1, 1]})],
        "e1",
    )
    return [one.path, other.path]


def test_rows_samples_and_environments_of_all_shards_are_one_run(two, tmp_path):
    result = merge(two, tmp_path / "out")
    assert (result.rows, result.missing) == ({"ok": 3, "failed": 0, "skipped": 0}, 1)
    run = result.directory
    assert list(run.rows()) == ["base", "a", "b"]  # in the order of the plan, each once
    assert run.rows()["base"].environment == "e0"
    assert set(run.environments()) == {"e0", "e1"}
    assert [sample["metrics"]["acc"] for sample in run.samples("a")] == [1, 1]
    board = build([run])
    assert [entry.row.cell for entry in board.entries] == ["base", "a", "b"]
    assert board.entries[2].values["t"].delta == pytest.approx(-0.5)


def test_a_run_given_twice_is_an_error_also_by_another_path(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("one")
    for again in ("one", "./one/", "other/../one", "link"):
        assert cli.main(["merge", "one", "other", again, "--out", "out"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith("one: this run is given twice; give each shard once")
        assert not (tmp_path / "out").exists()


def test_merging_again_changes_nothing(two, tmp_path):
    out = tmp_path / "out"
    merge(two, out)
    before, time = everything(out), (out / "rows.jsonl").stat().st_mtime_ns
    for shards in (two, [out], [*two, out], [out, *reversed(two)]):
        merge(shards, out)
        assert everything(out) == before
    assert (out / "rows.jsonl").stat().st_mtime_ns == time
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other", "out"]


def test_what_is_there_already_stays_and_so_do_other_peoples_files(two, tmp_path):
    out = tmp_path / "out"
    merge(two[:1], out)
    (out / "notes.txt").write_text("mine")
    (out / "leaderboard.md").write_text("of fewer rows")
    merge(two[1:], out)
    assert list(RunDirectory(out).rows()) == ["base", "a", "b"]
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "leaderboard.md").exists()


def test_a_scored_row_counts_where_another_failed(tmp_path):
    failed = shard(tmp_path / "1", [])
    failed.append(cell("a", "failed", reason="out of memory"))
    failed.append(cell("b", "failed", reason="out of memory"))
    scored = shard(tmp_path / "2", [(cell("a"), {"t": [1]})])
    for order in ([failed.path, scored.path], [scored.path, failed.path]):
        rows = merge(order, tmp_path / f"out{order[0].name}").directory.rows()
        assert {name: found.status for name, found in rows.items()} == {"a": "ok", "b": "failed"}


@pytest.mark.parametrize("environment", ["e0", "e1"])
def test_two_scores_of_one_cell_are_an_error_that_shows_both(tmp_path, environment, capsys):
    one = shard(tmp_path / "1", [(cell("base"), {"t": [1, 1]}), (cell("a"), {"t": [1, 0, 1]})])
    other = shard(tmp_path / "2", [(cell("a", environment=environment), {"t": [0, 0, 1]})], environment)
    assert cli.main(["merge", str(one.path), str(other.path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{one.path}/rows.jsonl:2 and {other.path}/rows.jsonl:1" in line
    assert "cell a, with t acc 0.6666666666666666 and 0.3333333333333333" in line
    assert ("different environments" in line) == (environment == "e1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_rounding_is_a_conflict_too_and_times_are_none(tmp_path):
    one = shard(tmp_path / "1", [(cell("a", evaluate_seconds=1.0), {"t": [1, 0]})])
    same = shard(tmp_path / "2", [(cell("a", evaluate_seconds=2.0), {"t": [1, 0]})])
    assert merge([one.path, same.path], tmp_path / "out").directory.rows()["a"].evaluate_seconds == 1.0
    near = shard(tmp_path / "3", [])
    found = same.rows()["a"]
    found.scores["t"]["acc"].value = 0.5000000000000001
    near.append(found)
    with pytest.raises(InputError, match=r"0\.5 and 0\.5000000000000001"):
        merge([one.path, near.path], tmp_path / "out2")


def test_the_shard_with_samples_gives_the_row(tmp_path):
    one = shard(tmp_path / "1", [(cell("a"), {"t": [1, 0]})])
    shutil.rmtree(one.path / "samples")
    other = shard(tmp_path / "2", [(cell("a"), {"t": [1, 0]})])
    assert len(merge([one.path, other.path], tmp_path / "out").directory.samples("a")) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"suite_hash": "x", "suite": {"name": "demo", "seed": 1, "models": [{"label": "almanac"}]}},
            r"seed \(0 and 1\)",
        ),
        ({"models": [{"label": "almanac", "weight_hash": "v", "cells": CELLS}]}, r'weight_hash \("w" and "v"\)'),
        ({"models": [{"label": "almanac", "weight_hash": "w", "cells": ["z"]}]}, "differs from that of .* in cells"),
        ({"reducers": [{"label": "svd", "source_hash": "2"}]}, r'svd.source_hash \("1" and "2"\)'),
    ],
)
def test_shards_of_other_suites_weights_or_methods_are_refused_with_what_differs(two, tmp_path, changes, words):
    stranger = shard(tmp_path / "stranger", [(cell("c"), {"t": [1, 0]})], **changes)
    with pytest.raises(InputError, match=words):
        merge([*two, stranger.path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_not_written_to(two, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(InputError, match="not empty, and not a run"):
        merge(two, tmp_path / "photos")
    with pytest.raises(InputError, match="is a file"):
        merge(two, tmp_path / "photos" / "cat.jpg")
    with pytest.raises(InputError, match="no run here"):
        merge([tmp_path / "photos"], tmp_path / "out")
    assert everything(tmp_path / "photos") == {"cat.jpg": b"meow"}


def test_a_full_disk_leaves_what_was_there(two, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    merge(two[:1], out)
    before = everything(out)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    assert cli.main(["merge", *map(str, two), "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert everything(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other", "out"]


def test_where_the_last_step_fails_the_old_run_is_back(two, tmp_path, monkeypatch):
    out = tmp_path / "out"
    merge(two[:1], out)
    before, rename = everything(out), os.rename

    def broken(source, target):
        if os.path.basename(source) == "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(InputError, match="Input/output error"):
        merge(two, out)
    assert {name: text for name, text in everything(out).items() if name != ".lock"} == before


def test_a_run_that_is_being_written_is_not_replaced(two, tmp_path):
    out = tmp_path / "out"
    merge(two[:1], out)
    with RunDirectory(out).locked(), pytest.raises(InputError, match="wait for it"):
        merge(two, out)


def test_a_torn_last_line_is_not_a_row(two, tmp_path):
    with (two[1] / "rows.jsonl").open("a") as file:
        file.write('{"schema": 1, "cell": "c", "stat')
    assert list(merge(two, tmp_path / "out").directory.rows()) == ["base", "a", "b"]


def test_shards_of_a_real_suite_are_gone_on_with_and_nothing_is_scored_twice(tmp_path):
    suite = write_suite(tmp_path)
    whole = run_suite_file(suite, tmp_path / "whole").directory
    for place in (0, 1):
        part = tmp_path / f"shard{place}"
        shutil.copytree(whole.path, part)
        lines = (part / "rows.jsonl").read_text().splitlines(keepends=True)
        (part / "rows.jsonl").write_text("".join(lines[place::2]))
    merged = merge([tmp_path / "shard0", tmp_path / "shard1"], tmp_path / "merged").directory
    again = run_suite_file(suite, merged.path)
    assert (again.computed, again.reused) == (0, len(whole.rows()))
    assert merged.rows() == whole.rows()
    text = re.sub(r"\s", "", json.dumps(merged.manifest()["cells"]))
    assert text == re.sub(r"\s", "", json.dumps(whole.manifest()["cells"]))
