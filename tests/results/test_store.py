"""A run's directory: what is written stays, what was torn is repaired, what is wrong is named."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory, open_run
from lrbench.results.rows import Score
from tests.support.synthetic_run import demo_run, edit, row


def test_rows_come_back_as_they_were_written(tmp_path):
    run = RunDirectory(tmp_path / "deep" / "run")
    written = row(
        "a", reducer="svd", requested={"keep": 0.5}, edits=[edit()], scores={"t": {"acc": Score(value=1 / 3, n=3)}}
    )
    run.append(written)
    assert run.rows() == {"a": written}


def test_a_setting_is_said_in_words():
    assert row("a", requested={"keep": 0.5}).setting == "keep 0.5"
    assert row("a", requested={"rank": 64}).setting == "rank 64"
    assert row("base").setting == ""


def test_a_row_uses_the_names_of_the_schema(tmp_path):
    run = RunDirectory(tmp_path)
    run.append(row("a"))
    line = json.loads(run.rows_file.read_text())
    assert line["schema"] == 1
    assert "schema_" not in line


def test_a_perplexity_beyond_all_bounds_comes_back(tmp_path):
    run = RunDirectory(tmp_path)
    run.append(row("a", scores={"t": {"word_perplexity": Score(value=math.inf, n=3)}}))
    assert run.rows()["a"].scores["t"]["word_perplexity"].value == math.inf


def test_the_last_row_of_a_cell_wins_and_keeps_its_place(tmp_path):
    run = RunDirectory(tmp_path)
    run.append(row("a", status="failed", reason="once"))
    run.append(row("b"))
    run.append(row("a"))
    assert [(cell, found.status) for cell, found in run.rows().items()] == [("a", "ok"), ("b", "ok")]


@pytest.mark.parametrize("torn", [b'{"schema": 1, "cell": "b", "sta', b'{"schema": 1, "cell": "\xc3', b"{"])
def test_a_torn_last_line_is_ignored_by_readers_and_cut_off_by_the_next_append(tmp_path, torn):
    run = RunDirectory(tmp_path)
    run.append(row("a"))
    with run.rows_file.open("ab") as file:
        file.write(torn)
    assert list(run.rows()) == ["a"]
    run.append(row("c"))
    assert list(run.rows()) == ["a", "c"]
    assert run.rows_file.read_bytes().count(b"\n") == 2


def test_a_file_that_is_one_torn_line_starts_afresh(tmp_path):
    run = RunDirectory(tmp_path)
    run.rows_file.write_bytes(b'{"schema"')
    assert run.rows() == {}
    run.append(row("a"))
    assert list(run.rows()) == ["a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "not a row"),
        ('{"schema": 1, "cell": "b"}', "status"),
        (row("b").model_dump_json(by_alias=True).replace('"seed"', '"sead"'), "sead"),
        (row("b").model_dump_json(by_alias=True).replace('"schema":1', '"schema":2'), "schema"),
    ],
)
def test_a_line_that_is_no_row_is_an_error_that_names_file_and_line(tmp_path, line, said):
    run = RunDirectory(tmp_path)
    run.append(row("a"))
    with run.rows_file.open("a") as file:
        file.write(line + "\n")
    run.append(row("c"))
    with pytest.raises(InputError) as caught:
        run.rows()
    assert str(caught.value).startswith(f"{run.rows_file}:2: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


documents = st.lists(
    st.fixed_dictionaries(
        {
            "task": st.text(max_size=8),
            "doc": st.integers(0, 10**6),
            "metrics": st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
        }
    ),
    max_size=5,
)


@settings(deadline=None)  # a busy disk may take long to write durably
@given(samples=documents)
def test_samples_come_back_as_they_were_written(tmp_path_factory, samples):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    run.write_samples("a", iter(samples))
    assert run.samples("a") == samples
    assert [path.name for path in (run.path / "samples").iterdir()] == ["a.jsonl"]


def test_samples_are_replaced_as_a_whole(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_samples("a", [{"doc": 0}, {"doc": 1}])
    run.write_samples("a", [{"doc": 2}])
    assert run.samples("a") == [{"doc": 2}]


def test_a_cell_that_was_not_scored_has_no_samples(tmp_path):
    assert RunDirectory(tmp_path).samples("a") == []


def test_an_environment_is_recorded_once(tmp_path):
    run = RunDirectory(tmp_path)
    for _ in range(2):
        run.add_environment({"hash": "e0", "machine": "Größe"})
        run.add_environment({"hash": "e1"})
    assert list(run.environments()) == ["e0", "e1"]
    assert run.environments()["e0"]["machine"] == "Größe"
    assert len((tmp_path / "environments.jsonl").read_text().splitlines()) == 2


def test_a_manifest_is_replaced_in_one_step(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_manifest({"suite": {"name": "one"}})
    run.write_manifest({"suite": {"name": "two"}})
    assert run.manifest() == {"suite": {"name": "two"}}
    assert [path.name for path in run.path.iterdir()] == ["manifest.json"]


def test_a_manifest_that_cannot_be_read_is_an_error_in_one_line(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(InputError, match="a run directory"):
        run.manifest()
    run.manifest_file.write_text("{")
    with pytest.raises(InputError) as caught:
        run.manifest()
    assert "\n" not in str(caught.value)


def test_only_a_folder_with_rows_is_a_run(tmp_path):
    with pytest.raises(InputError, match=r"rows\.jsonl is missing"):
        open_run(tmp_path)
    demo_run(tmp_path)
    assert open_run(tmp_path).path == tmp_path


def test_runs_are_merged_by_concatenation(tmp_path):
    one, two = RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "two")
    one.append(row("a"))
    two.append(row("b"))
    both = RunDirectory(tmp_path / "both")
    both.path.mkdir()
    both.rows_file.write_bytes(one.rows_file.read_bytes() + two.rows_file.read_bytes())
    assert list(both.rows()) == ["a", "b"]
