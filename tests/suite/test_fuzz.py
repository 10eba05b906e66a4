"""Whatever stands in a suite or in a run's files, no verb ends in a traceback, and none hangs."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrbench.cli import main
from lrbench.errors import SuiteError
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import load_suite
from tests.support.synthetic_run import edit, row, samples_of, scores_of

SUITE = """\
name: demo
model: {name: almanac, dtype: float32, label: m}
tasks:
  - almanac_facts
  - {task: almanac_text, limit: 3, num_fewshot: 0}
reducers:
  - svd
  - rsvd: {oversample: 8, label: other}
sweep:
  - mode: each
    layers: "4-7"
    weights: [mlp, "model.layers.*.weight"]
    rank: &r {keep: [0.75, 0.5]}
  - {layers: last 2, rank: *r, reducers: [other]}
calibration: {name: almanac, samples: 4}
seeds: [1, 2]
frontier_memory: auto
"""
SLIPS = [
    *("", ":", ": ", "- ", "{", "}", "[", "]", ",", "\t", "'", '"', "&a ", "*a", "!!int ", "? ", "|\n"),
    *("# ", "\n", "---\n", "<<: ", "null", "~", "1e3", "-1", "0x1", ".nan", ".inf", "true"),
    *("é", "\u202e", "\x00", "\x1b[31m", "9" * 400),
    *("name", "models", "sweep", "rank", "../..", "*", "%", "@", "`", "\\", "\r", "\u2028", "..."),
]  # fmt: skip
HOSTILE = [
    *(None, True, False, 0, -1, 1, 10**400, -(2**63), 0.5, 1e308, -1e308, "", "x", "../../x", "/etc/passwd"),
    *("\x1b[2J\x00", "\u202e", "[/bold]", "=1+1", "n" * 300, "<script>", [], [1], ["x"], [[]], {}, {"x": 1}, [{}]),
    *({"label": []}, [None]),
]  # fmt: skip

quick = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], database=None
)


def ends_well(arguments, capsys, codes=(0, 1, 2)):
    """Runs a verb in this process: an exit code of ours, errors in one line, and no exponential work."""
    capsys.readouterr()
    began = time.process_time()
    code = main(arguments)
    seconds = time.process_time() - began
    shown = capsys.readouterr()
    assert code in codes, shown.err
    assert "bug in lrbench" not in shown.err
    assert "Traceback" not in shown.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown.err)
    assert seconds < 60
    if code == 2:
        assert shown.err.count("\n") == 1
        assert shown.err.startswith("lrbench: ")
    return code, shown


# Suites


def slipped(draw, text, count):
    """The text with tokens taken out, put in, doubled or exchanged."""
    for _ in range(draw(st.integers(1, count))):
        pieces = re.findall(r"\w+|\s+|[^\w\s]", text)
        place = draw(st.integers(0, len(pieces) - 1)) if pieces else 0
        match draw(st.sampled_from(["delete", "insert", "double", "swap", "cut", "character"])):
            case "delete":
                del pieces[place : place + draw(st.integers(1, 4))]
            case "insert":
                pieces.insert(place, draw(st.sampled_from(SLIPS)))
            case "double":
                pieces[place:place] = pieces[place : place + draw(st.integers(1, 12))]
            case "swap" if pieces:
                other = draw(st.integers(0, len(pieces) - 1))
                pieces[place], pieces[other] = pieces[other], pieces[place]
            case "cut":
                pieces = pieces[:place]
            case "character":
                pieces.insert(place, draw(st.characters()))
        text = "".join(pieces)
    return text


@st.composite
def suites(draw, count=4):
    return slipped(draw, SUITE, count)


def check_suite(text, folder, capsys):
    path = folder / "suite.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    began = time.process_time()
    try:
        suite = load_suite(path)
        assert suite.hash
        assert json.loads(json.dumps(suite.resolved())) == suite.resolved()
        assert suite.local_paths() is not None
    except SuiteError as error:
        refused = error
    else:
        refused = None
    assert refused is None or (refused.line >= 1 and refused.column >= 1)
    assert time.process_time() - began < 60


@settings(quick, max_examples=300)
@given(suites())
def test_a_suite_with_slips_is_read_or_refused_at_a_place(tmp_path, capsys, text):
    check_suite(text, tmp_path, capsys)


@settings(quick, max_examples=150)
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_any_bytes_are_read_or_refused_at_a_place(tmp_path, capsys, content):
    check_suite(content, tmp_path, capsys)


@settings(quick, max_examples=25)
@given(suites(count=2))
def test_checking_a_suite_with_slips_ends_well(tmp_path, capsys, text):
    if re.search(r"task_paths|plugins|pretrained|adapter|tokenizer", text):
        return
    path = tmp_path / "suite.yaml"
    path.write_text(text.replace("*", "?"), encoding="utf-8", errors="surrogatepass")
    ends_well(["check", str(path), "--device", "cpu"], capsys)


# Runs


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two runs of one suite, as someone may send them: every kind of file, and little in each."""
    runs = []
    for name in ("one", "two"):
        run = RunDirectory(tmp_path_factory.mktemp("runs") / name)
        run.write_manifest(
            {
                "schema": 1,
                "suite": {"name": "demo", "models": [{"label": "almanac"}], "seed": 0},
                "suite_hash": "abc",
                "paths": {"plugins.0": "/x.py"},
                "tasks": [{"task": "g", "subtasks": ["a", "b"]}, {"task": "t", "subtasks": ["t"]}],
                "reducers": [{"label": "svd", "reducer": "svd", "params": {"k": 1}, "source": "x", "source_hash": "y"}],
                "models": [
                    {
                        "label": "almanac", "weight_hash": "w", "blocks": 8, "dtype": "float32", "numbers": 10,
                        "engine": {"name": "sweep", "tasks": {"a": {"higher_is_better": {"acc": True},
                                                                    "hashes": {"documents": "d", "prompts": "p"}}},
                                   "groups": {"g": ["a", "b"]}},
                        "cells": ["base", "c1", "c2"],
                    }
                ],
                "cells": ["base", "c1", "c2"],
            }
        )  # fmt: skip
        run.add_environment(
            {"hash": "e0", "lrbench": "0", "packages": {"torch": "2", "transformers": "5", "lm-eval": "0"}, "cores": 2,
             "processor": "p", "device": "cpu"}
        )  # fmt: skip
        for cell, correct in (("base", [1, 1, 1, 0, 1, 1]), ("c1", [1, 0, 1, 0, 0, 1]), ("c2", [0, 0, 1, 0, 0, 1])):
            of_tasks = {task: [float(x) for x in correct] for task in ("a", "b", "t")}
            scores = scores_of(of_tasks) | {"g": scores_of({"g": of_tasks["a"] * 2})["g"]}
            run.write_samples(cell, [{**sample, "loglikelihoods": [0.1, 0.2]} for sample in samples_of(of_tasks)])
            about = {} if cell == "base" else {
                "reducer": "svd", "label": "svd", "mode": "each", "requested": {"keep": 0.5 if cell == "c1" else 0.25},
                "edits": [edit(1), edit(2)], "keep_targets": 0.5, "keep_model": 0.9, "compression_ratio": 1.1,
                "params": {"oversample": 3},
            }  # fmt: skip
            run.append(row(cell, scores=scores, **about))
        run.append(row("c3", status="failed", reason="no", reducer="svd", label="svd", requested={"rank": 3}))
        runs.append(run.path)
    return runs


FILES = ["rows.jsonl", "manifest.json", "environments.jsonl", "samples/base.jsonl", "samples/c1.jsonl"]


def places(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def replaced(data, path, value):
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = replaced(data[path[0]], path[1:], value)
    return copy


def without(data, path):
    copy = dict(data) if isinstance(data, dict) else list(data)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(data[path[0]], path[1:])
    return copy


@st.composite
def damages(draw):
    """What is done to which file: a value replaced or taken out, or bytes exchanged."""
    return (
        draw(st.sampled_from(FILES)),
        draw(st.sampled_from(["replace", "replace", "replace", "delete", "bytes", "cut", "deep"])),
        draw(st.integers(0, 10**6)),
        draw(st.integers(0, 10**6)),
        draw(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5), st.integers(), st.floats())),
        draw(st.binary(max_size=6)),
    )


def damaged(run, damage):
    name, how, line, place, value, content = damage
    file = run / name
    raw = file.read_bytes()
    if how == "cut":
        raw = raw[: place % (len(raw) + 1)]
    elif how == "bytes":
        at = place % (len(raw) + 1)
        raw = raw[:at] + content + raw[at + line % 4 :]
    else:
        lines = [raw] if name.endswith(".json") else raw.splitlines() or [b""]
        number = line % len(lines)
        try:
            data = json.loads(lines[number])
        except (ValueError, RecursionError):  # what was done before
            return
        path = list(places(data))[place % len(list(places(data)))]
        if how == "deep":
            text = json.dumps(replaced(data, path, "@")).replace('"@"', "[" * 5000 + "]" * 5000)
        elif how == "delete" and path:
            text = json.dumps(without(data, path))
        else:
            text = json.dumps(replaced(data, path, value))
        lines[number] = text.encode()
        raw = b"\n".join(lines) + b"\n"
    file.write_bytes(raw)


def copies(small, folder):
    shutil.rmtree(folder, ignore_errors=True)
    return [Path(shutil.copytree(run, folder / run.name)) for run in small]


def try_verbs(small, folder, damages_of_one, capsys, thorough=True, publish=False):
    one, two = copies(small, folder / "runs")
    for damage in damages_of_one:
        damaged(one, damage)
    for name in ("terminal", "markdown", "latex", "html", "csv", "json") if thorough else ("terminal", "json"):
        ends_well(["leaderboard", str(one), "--format", name], capsys)
    for name in ("terminal", "markdown", "csv", "json") if thorough else ("terminal",):
        ends_well(["compare", str(one), str(two), "--format", name], capsys)
    ends_well(["merge", str(one), str(two), "--out", str(folder / "runs" / "merged")], capsys)
    if not thorough:
        return
    ends_well(["compare", str(one), "--rows", "c1", "c2"], capsys)
    ends_well(["export", str(one), "c1", str(folder / "runs" / "exported")], capsys, codes=(1, 2))
    if publish:
        ends_well(["publish", str(one), str(two), "--to", str(folder / "runs" / "site")], capsys)


@settings(quick, max_examples=30)
@given(st.lists(damages(), min_size=1, max_size=2))
def test_a_damaged_run_is_shown_or_refused_in_one_line(small, tmp_path, capsys, damages_of_one):
    try_verbs(small, tmp_path, damages_of_one, capsys, thorough=False)


@pytest.mark.slow
@settings(quick, max_examples=200)
@given(st.lists(damages(), min_size=1, max_size=3))
def test_a_damaged_run_is_shown_or_refused_in_one_line_many_times(small, tmp_path, capsys, damages_of_one):
    try_verbs(small, tmp_path, damages_of_one, capsys)


@pytest.mark.slow
@settings(quick, max_examples=40)
@given(st.lists(damages(), min_size=1, max_size=2))
def test_a_damaged_run_is_published_or_refused_in_one_line(small, tmp_path, capsys, damages_of_one):
    try_verbs(small, tmp_path, damages_of_one, capsys, publish=True)


@pytest.mark.slow
@settings(quick, max_examples=3000)
@given(suites(count=8))
def test_a_suite_with_many_slips_is_read_or_refused_at_a_place(tmp_path, capsys, text):
    check_suite(text, tmp_path, capsys)


def test_what_is_fuzzed_is_in_order(small, tmp_path, capsys):
    one, two = copies(small, tmp_path / "runs")
    for name in ("terminal", "json"):
        assert ends_well(["leaderboard", str(one), "--format", name], capsys)[0] == 0
    assert ends_well(["compare", str(one), str(two)], capsys)[0] == 0
    assert ends_well(["merge", str(one), str(two), "--out", str(tmp_path / "merged")], capsys)[0] == 0
    assert ends_well(["publish", str(one), "--to", str(tmp_path / "site")], capsys)[0] == 0
    (tmp_path / "suite.yaml").write_text(SUITE)
    assert ends_well(["check", str(tmp_path / "suite.yaml")], capsys)[0] == 0
