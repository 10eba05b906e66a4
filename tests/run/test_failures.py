"""A cell that fails, or spoils the model, is a row that says why; it costs no other cell anything."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from lrbench.cli import main
from lrbench.errors import ModelError
from lrbench.evaluation.sweep import sizes as memory
from lrbench.results.directory import RunDirectory
from lrbench.run import model_run
from lrbench.run.recorder import Interrupted, Stop
from tests.support.faulty import PARTS, PLAIN, Subject, at, facts, quicken, scored_lines, write_parts
from tests.support.slow_cases import slow_cases
from tests.support.suites import Heard

FAILING = """
import torch
import lrbench
from tests.support.slow_cases import slow_cases


class Reducer(lrbench.Reducer):
    def reduce(self, weight, rank, context):
        return lrbench.Dense(self.made(weight))


class NoMemory(Reducer):
    name = "no-memory"
    def made(self, weight):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


class Allocates(Reducer):
    name = "allocates"
    def made(self, weight):
        return torch.empty(1 << 55)


class Overflows(Reducer):
    name = "overflows"
    def made(self, weight):
        return torch.full_like(weight, 3e38)


@lrbench.hookimpl
def lrbench_reducers():
    return [NoMemory, Allocates, Overflows]
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture
def made(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "failing.py").write_text(FAILING)

    def subject(text=PLAIN, **replaced):
        for old, new in replaced.items():
            [line] = [line for line in text.splitlines() if line.startswith(f"{old}:")]
            text = text.replace(line, f"{old}: {new}")
        return Subject(tmp_path, text)

    return subject


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """What the two suites say when nothing goes wrong."""
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        quicken(patched)
        for text in (PLAIN, PARTS):
            folder = tmp_path_factory.mktemp("whole")
            write_parts(folder)
            found[text] = facts(Subject(folder, text).run(folder / "out").directory)
    return found


def loaded():
    """The models in memory, those of other tests too."""
    gc.collect()
    return [
        candidate
        for candidate in gc.get_objects()
        if type(candidate) is LlamaForCausalLM and not candidate.lm_head.weight.is_meta
    ]


def spoiling(what):
    """Does something to the model of the run that begins now, in whatever function it is called."""
    others = weakref.WeakSet(loaded())

    def spoil():
        [model] = [model for model in loaded() if model not in others]
        with torch.no_grad():
            what(model)

    return spoil


def writes(model):
    model.model.layers[1].mlp.up_proj.weight.add_(1)


def writes_elsewhere(model):
    model.model.embed_tokens.weight[3] = 0


def writes_unseen(model):
    model.model.norm.weight.data.mul_(2)


def replaces_weight(model):
    old = model.model.layers[1].self_attn.o_proj
    old.weight = torch.nn.Parameter(old.weight * 2, requires_grad=False)


def replaces_layer(model):
    old = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(old.in_features, old.out_features, bias=False)


def adds_layer(model):
    model.model.layers[0].extra = torch.nn.Identity()


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        (PLAIN, "edit in place", writes),
        (PLAIN, "states advanced", writes_elsewhere),
        (PARTS, "weight prepared", replaces_weight),
        *slow_cases(
            (PLAIN, "edit in place", replaces_layer),
            (PLAIN, "weight prepared", replaces_weight),
            (PARTS, "edit in place", replaces_weight),
            (PARTS, "states advanced", adds_layer),
            (PARTS, "weight prepared", writes),
        ),
    ],
)
def test_a_cell_that_spoils_the_model_fails_and_the_weights_are_loaded_again(made, wholes, tmp_path, text, place, what):
    subject, heard = made(text), Heard()
    with at(place, spoiling(what), 2):
        result = subject.run(tmp_path / "out", heard)
    assert (result.computed, result.failed) == (3, 1)
    [failed] = [row for row in result.directory.rows().values() if row.status == "failed"]
    assert "written to" in failed.reason or "replaced" in failed.reason
    assert any("its weights are loaded again" in note for note in heard.notes)
    others = facts(result.directory)
    del others[failed.cell]
    assert others.items() <= wholes[text].items()
    again = subject.run(tmp_path / "out", retry_failed=True)
    assert (again.computed, again.reused, again.failed) == (1, 2, 0)
    assert facts(again.directory) == wholes[text]


def test_weights_that_were_changed_unseen_take_back_all_that_was_scored_since(made, wholes, tmp_path, monkeypatch):
    subject, heard = made(), Heard()
    first = subject.run(tmp_path / "out", heard, stop=Stop(requested=False))
    kept = first.directory.rows_file.read_text().splitlines()[:1]
    first.directory.rows_file.write_text(kept[0] + "\n")

    with at("row made", spoiling(writes_unseen)):
        result = subject.run(tmp_path / "out", heard)

    assert (result.computed, result.reused, result.failed) == (2, 1, 2)
    baseline, *others = result.directory.rows().values()
    assert baseline.status == "ok"  # scored by a run that ended well
    for row in others:
        assert (row.status, row.scores) == ("failed", {})
        assert "changed unseen" in row.reason
        assert "svd" in row.reason
    assert any("2 cells failed; --retry-failed" in note for note in heard.notes)
    again = subject.run(tmp_path / "out", retry_failed=True)
    assert (again.computed, again.failed) == (2, 0)
    assert facts(again.directory) == wholes[PLAIN]


def test_answers_to_parts_that_were_given_on_changed_weights_are_dropped(made, wholes, tmp_path, monkeypatch):
    """No row tells of them: they would be taken for right by the run that goes on."""
    stop, heard, spoil = Stop(), Heard(), spoiling(writes_unseen)

    def spoil_and_stop():
        spoil()
        stop.requested = True

    with at("answers kept", spoil_and_stop), pytest.raises(Interrupted):
        made(PARTS).run(tmp_path / "out", heard, stop=stop)
    assert any(
        "changed unseen, by a method or a task's code: no row was scored with them" in note for note in heard.notes
    )
    assert not RunDirectory(tmp_path / "out").has_partial()
    assert facts(made(PARTS).run(tmp_path / "out", retry_failed=True).directory) == wholes[PARTS]


def test_the_weights_are_looked_at_after_a_stop_too(made, tmp_path, monkeypatch):
    stop, spoil = Stop(), spoiling(writes_unseen)

    def spoil_and_stop():
        spoil()
        stop.requested = True

    with at("row made", spoil_and_stop), pytest.raises(Interrupted) as interrupted:
        made().run(tmp_path / "out", stop=stop)
    assert (interrupted.value.result.computed, interrupted.value.result.failed) == (1, 1)
    [row] = RunDirectory(tmp_path / "out").rows().values()
    assert row.status == "failed"


def test_nothing_is_hashed_where_nothing_was_scored(made, tmp_path, monkeypatch):
    subject = made()
    subject.run(tmp_path / "out")
    monkeypatch.setattr(model_run, "weight_hash", lambda model: pytest.fail("hashed"))
    assert subject.run(tmp_path / "out").computed == 0


def test_a_checkpoint_that_changed_meanwhile_cannot_replace_a_spoilt_model(made, tmp_path, monkeypatch):
    subject, load = made(), model_run.load

    def loaded(*given, **options):
        found = load(*given, **options)
        other = LlamaForCausalLM.from_pretrained(tmp_path / "model")
        other.lm_head.weight.data.mul_(2)
        other.save_pretrained(tmp_path / "other")
        os.replace(tmp_path / "other" / "model.safetensors", tmp_path / "model" / "model.safetensors")
        return found

    monkeypatch.setattr(model_run, "load", loaded)
    spoil = at("edit in place", spoiling(writes), 2)
    with spoil, pytest.raises(ModelError, match="have changed since the run began"):
        subject.run(tmp_path / "out")
    assert len(RunDirectory(tmp_path / "out").rows()) == 1  # what was scored before stays


def test_cells_that_fail_say_why_are_counted_and_make_exit_code_1(made, tmp_path, capsys, monkeypatch):
    subject = made(reducers="[no-memory, svd, allocates, overflows]", sweep="", name="f")
    suite = tmp_path / "failing.yaml"
    sweep = "sweep:\n  - {mode: each, layers: [1], weights: [attn.q], rank: {rank: 9}}\n"
    suite.write_text(subject.text.partition("sweep:")[0] + sweep)
    monkeypatch.chdir(tmp_path)
    command = ["run", str(suite), "--plugin", str(tmp_path / "failing.py"), "--out", "out"]
    assert main(command) == 1
    assert "5 cells done" in (out := capsys.readouterr().out)
    assert "3 failed (--retry-failed tries them again)" in out
    rows = {row.label: row for row in RunDirectory(tmp_path / "out").rows().values()}
    assert {label: row.status for label, row in rows.items()} == {
        None: "ok", "svd": "ok", "no-memory": "failed", "allocates": "failed", "overflows": "failed"
    }  # fmt: skip
    assert "out of memory" in rows["no-memory"].reason
    assert "allocate" in rows["allocates"].reason
    assert "the log-likelihood is nan" in rows["overflows"].reason
    assert all("model.layers.1.self_attn.q_proj" in rows[label].reason for label in ("no-memory", "allocates"))
    assert main(command) == 1
    assert "nothing to compute, 5 already there, 3 failed" in capsys.readouterr().out
    assert main([*command, "--retry-failed"]) == 1
    assert "3 cells done" in (out := capsys.readouterr().out)
    assert "2 already there, 3 failed" in out
    assert set(scored_lines(RunDirectory(tmp_path / "out")).values()) == {1}


def test_memory_that_runs_out_in_a_pass_fails_that_cell_alone(made, wholes, tmp_path, monkeypatch):
    def runs_out():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(memory.TOKENS, "cpu", memory.LEAST_TOKENS)  # no smaller batches to go on with
    with at("edit in place", runs_out, 2):
        result = made().run(tmp_path / "out")
    assert (result.computed, result.failed) == (3, 1)
    [failed] = [row for row in result.directory.rows().values() if row.status == "failed"]
    assert "out of memory" in failed.reason


@pytest.mark.parametrize(("text", "first"), [(PLAIN, 1), (PARTS, 0)], ids=["at once", "in parts"])
def test_a_run_that_is_asked_to_stop_finishes_the_cell_at_work_and_goes_on_later(
    made, wholes, tmp_path, monkeypatch, text, first
):
    subject, stop = made(text), Stop()

    def ask():
        assert stop.at_work
        stop.requested = True

    with at("requests answered", ask), pytest.raises(Interrupted) as interrupted:
        subject.run(tmp_path / "out", stop=stop)
    result = interrupted.value.result
    assert (result.computed, result.reused, result.seconds > 0) == (first, 0, True)
    directory = RunDirectory(tmp_path / "out")
    assert len(directory.rows()) == first
    assert len(list((tmp_path / "out").glob("partial/*.jsonl"))) == (not first)  # the part at work was kept
    assert not stop.at_work
    heard = Heard()
    subject.run(tmp_path / "out", heard)
    assert facts(directory) == wholes[text]
    assert set(scored_lines(directory).values()) == {1}


def test_speed_that_cannot_be_measured_fails_the_cell_alone(made, tmp_path, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model_run, "measure_inference", fails)
    result = made(PLAIN + "measure: inference\n").run(tmp_path / "out")
    assert result.failed == 3
    for row in result.directory.rows().values():
        assert "measuring its speed failed: OutOfMemoryError" in row.reason


def test_a_model_that_nobody_touched_is_not_loaded_twice(made, tmp_path, monkeypatch):
    loads, load = [], model_run.load
    monkeypatch.setattr(model_run, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    assert made().run(tmp_path / "out").failed == 0
    assert len(loads) == 1


def test_statistics_that_were_collected_in_a_run_whose_weights_changed_unseen_are_thrown_away(
    made, tmp_path, monkeypatch
):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    text = PLAIN + "calibration: {text: ./calibration.txt, samples: 4, length: 16}\n"
    subject = made(text, reducers="[asvd]")
    with at("row made", spoiling(writes_unseen)):
        assert subject.run(tmp_path / "out").failed == 3
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert subject.run(tmp_path / "out", retry_failed=True).failed == 0
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_so_are_those_of_a_run_in_which_every_cell_failed(made, tmp_path, monkeypatch):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    spoil = spoiling(writes_unseen)

    def spoil_and_fail():
        spoil()
        raise RuntimeError("no")

    text = PLAIN + "calibration: {text: ./calibration.txt, samples: 4, length: 16}\n"
    with at("requests answered", spoil_and_fail, None):
        assert made(text, reducers="[asvd]").run(tmp_path / "out").failed == 3
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


GOES_AWAY = """
import asyncio
import os

import lrbench


class GoesAway(lrbench.Reducer):
    name = "goes-away"

    def reduce(self, weight, rank, context):
        os.chdir("/")
        if context.slot.layer == 1:
            raise asyncio.CancelledError("enough")
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())


@lrbench.hookimpl
def lrbench_reducers():
    return [GoesAway]
"""


def test_a_reducer_that_goes_elsewhere_or_gives_up_takes_nothing_with_it(made, tmp_path, monkeypatch):
    (tmp_path / "goes_away.py").write_text(GOES_AWAY)
    text = PLAIN + f"plugins: [{tmp_path / 'goes_away.py'}]\n"
    subject = made(text, reducers="[goes-away]")
    monkeypatch.chdir(tmp_path)
    result = subject.run(Path("out"))
    assert (result.computed, result.failed) == (3, 1)
    [failed] = [row for row in result.directory.rows().values() if row.status == "failed"]
    assert "CancelledError: enough" in failed.reason
    assert (tmp_path / "out" / "rows.jsonl").is_file()
    assert Path.cwd() == tmp_path
