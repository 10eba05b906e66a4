"""Runs with calibrated methods, end to end on the bundled model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import lrbench
from lrbench.analysis.leaderboard import build
from lrbench.cli import main
from lrbench.errors import InputError, SuiteError
from lrbench.models.bundled_text import bundled_texts
from lrbench.models.load import bundled, load, weight_hash
from lrbench.reduction.calibration import statistics
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.run import model_run
from lrbench.run.recompute import compute_again
from lrbench.suite.load import ModelSpec
from tests.support.slow_cases import slow_cases
from tests.support.suites import Heard, run, write_suite

CALIBRATED = """\
name: calibrated
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 4}
  - {task: almanac_text, limit: 20}
reducers: [svd, svd-llm, asvd, fwsvd, nystrom, {id: {calibrated: true}}]
sweep:
  - mode: together
    layers: [6]
    weights: [mlp]
    rank: {keep: [0.5]}
calibration: {name: almanac, samples: 16, length: 128}
"""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows_by_label(result):
    return {row.label: row for row in result.directory.rows().values()}


def test_calibrated_methods_run_and_their_rows_say_what_they_lost_and_cost(tmp_path, own_cache, monkeypatch):
    seen = []
    monkeypatch.setattr(model_run, "load", lambda *a, **k: seen.append(load(*a, **k)) or seen[-1])
    heard = Heard()
    result = run(write_suite(tmp_path, CALIBRATED), tmp_path / "out", heard=heard)
    rows = rows_by_label(result)
    assert {row.status for row in rows.values()} == {"ok"}
    assert weight_hash(seen[0].model) == seen[0].weight_hash
    assert [note for note in heard.notes if note.startswith("calibrating")] == [
        "calibrating almanac: absmean, fisher, output_gradient_moment, second_moment of 3 weights on 16 samples of 128 "
        "tokens"
    ]
    for label in ("svd", None):
        assert rows[label].calibrate_seconds == 0
        assert all(edit.output_error is None for edit in rows[label].edits)
    assert all(rows[label].calibrate_seconds > 0 for label in ("svd-llm", "asvd", "fwsvd", "nystrom", "id"))
    assert rows["svd-llm"].calibrate_seconds == rows["nystrom"].calibrate_seconds
    for label in ("svd-llm", "nystrom", "id"):
        for edit in rows[label].edits:
            assert edit.output_error >= edit.optimal_output_error * (1 - 1e-4)
    assert all(
        edit.output_error == pytest.approx(edit.optimal_output_error, rel=2e-2) for edit in rows["svd-llm"].edits
    )
    [model] = result.directory.manifest()["models"]
    assert (model["calibration"]["samples"], model["calibration"]["length"]) == (16, 128)
    assert len(model["calibration"]["tokens_hash"]) == 64
    [column] = [column for column in build([result.directory]).columns if column.name == "calibrate"]
    assert not column.detail


@pytest.mark.slow
def test_a_model_loses_less_where_its_truncations_are_calibrated(tmp_path, own_cache):
    suite = write_suite(tmp_path, CALIBRATED, reducers="[svd, svd-llm]", layers="all",
                        calibration="{name: almanac, samples: 32, length: 128}")  # fmt: skip
    rows = rows_by_label(run(suite, tmp_path / "out"))
    perplexity = {label: row.scores["almanac_text"]["word_perplexity"].value for label, row in rows.items()}
    assert perplexity[None] < perplexity["svd-llm"] < perplexity["svd"]


def test_the_output_error_is_that_of_the_layer_on_the_calibration_windows(tmp_path, own_cache, monkeypatch):
    made, reduced = [], []
    prepare, reduce_group = statistics.prepare, CellReducer.reduce_group
    monkeypatch.setattr(model_run, "prepare", lambda *a, **k: made.append(prepare(*a, **k)) or made[-1])

    def remembering(self, cells):
        for cell, outcome in reduce_group(self, cells):
            reduced.append((cell, outcome))
            yield cell, outcome

    monkeypatch.setattr(CellReducer, "reduce_group", remembering)
    suite = write_suite(tmp_path, CALIBRATED, reducers="[svd-llm, nystrom]")
    run(suite, tmp_path / "out")
    model = load(ModelSpec(name="almanac"), device="cpu").model
    entering = []
    hook = model.model.layers[6].mlp.down_proj.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with torch.no_grad():
        for window in made[0]._samples.windows:
            model(input_ids=window[None], use_cache=False)
    hook.remove()
    x = torch.cat(entering, dim=1)[0].double()  # (tokens, in)
    W = model.model.layers[6].mlp.down_proj.weight.double()
    assert len(reduced) == 2
    for _, reductions in reduced:
        [down] = [one for one in reductions if one.edit.role == "mlp.down"]
        lost = (x @ (W - down.matrix().double()).T).norm() / (x @ W.T).norm()
        assert down.edit.output_error == pytest.approx(float(lost), rel=1e-5)


def test_statistics_are_collected_once_for_all_runs(tmp_path, own_cache, monkeypatch):
    first = run(write_suite(tmp_path, CALIBRATED), tmp_path / "one")
    monkeypatch.setattr(statistics, "Activations", lambda *a: pytest.fail("collected again"))
    monkeypatch.setattr(statistics, "fisher", lambda *a: pytest.fail("collected again"))
    second = run(write_suite(tmp_path, CALIBRATED), tmp_path / "two")
    one, two = rows_by_label(first), rows_by_label(second)
    for label, row in one.items():
        assert (row.cell, row.scores, row.edits) == (two[label].cell, two[label].scores, two[label].edits)
        assert row.calibrate_seconds == two[label].calibrate_seconds


@pytest.mark.parametrize(
    "change", ["calibration.seed=1", *slow_cases("calibration.samples=15", "calibration.damping=0.1")]
)
def test_another_calibration_makes_other_cells_of_calibrated_methods_only(tmp_path, own_cache, change):
    suite = write_suite(tmp_path, CALIBRATED, reducers="[svd, svd-llm, asvd]")
    one = rows_by_label(run(suite, tmp_path / "one"))
    two = rows_by_label(run(suite, tmp_path / "two", overrides=[change]))
    same = {label for label, row in one.items() if two[label].cell == row.cell}
    assert same == ({None, "svd", "asvd"} if "damping" in change else {None, "svd"})


def test_an_interrupted_run_with_calibration_goes_on_where_it_stopped(tmp_path, own_cache):
    suite = write_suite(tmp_path, CALIBRATED, reducers="[svd-llm, asvd]")
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", heard=Heard(stop_after=2))
    result = run(suite, tmp_path / "out")
    assert (result.reused, result.computed, result.failed) == (2, 1, 0)


def test_text_that_is_evaluated_is_refused_before_anything_is_scored(tmp_path, own_cache):
    folder = Path(lrbench.__file__).parent / "tasks" / "almanac"
    documents = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().splitlines()]
    (tmp_path / "mine.txt").write_text("\n\n".join(documents))
    suite = write_suite(tmp_path, CALIBRATED, calibration="{text: mine.txt, samples: 4}")
    with pytest.raises(SuiteError, match=r"12:21: the calibration text contains document \d+ of the evaluated task"):
        run(suite, tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_weights_that_cannot_be_calibrated_are_rows_that_say_why(tmp_path, own_cache):
    sweep = {"mode": "each", "weights": "[head, embed]", "layers": "all"}
    suite = write_suite(tmp_path, CALIBRATED, reducers="[svd-llm, fwsvd]", calibration="{name: almanac, samples: 2}",
                        **sweep)  # fmt: skip
    result = run(suite, tmp_path / "out")
    found = {
        (row.label, "embed" in (row.reason or "")): (row.status, row.reason)
        for row in result.directory.rows().values()
        if row.label
    }
    assert found["svd-llm", False][0] == "ok"
    reasons = [row.reason or "" for row in result.directory.rows().values() if row.status == "skipped"]
    assert any(
        "svd-llm cannot be calibrated on model.embed_tokens.weight: its inputs are single tokens" in r for r in reasons
    )
    assert any("fwsvd cannot be calibrated on lm_head.weight: its gradient includes that" in r for r in reasons)


WRITES = """
import lrbench


class Writes(lrbench.Reducer):
    name = "writes-statistics"
    needs = frozenset({"second_moment"})

    def reduce(self, weight, rank, context):
        context.statistics["second_moment"].diagonal().mul_(2)
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())


@lrbench.hookimpl
def lrbench_reducers():
    return [Writes]
"""


def test_a_plugin_that_writes_to_its_statistics_is_a_failed_row_and_spoils_no_other(tmp_path, own_cache):
    plugin = tmp_path / "writes.py"
    plugin.write_text(WRITES)
    alone = write_suite(tmp_path, CALIBRATED, reducers="[svd-llm]")
    expected = rows_by_label(run(alone, tmp_path / "alone"))["svd-llm"]
    suite = write_suite(tmp_path, CALIBRATED, reducers="[writes-statistics, svd-llm]")
    rows = rows_by_label(run(suite, tmp_path / "out", plugin))
    assert rows["writes-statistics"].status == "failed"
    assert "writes to the statistics it is given" in rows["writes-statistics"].reason
    assert rows["svd-llm"].edits == expected.edits


def test_check_reads_the_text_and_refuses_what_needs_calibration_without_it(tmp_path, capsys):
    suite = write_suite(tmp_path, CALIBRATED)
    assert main(["check", str(suite)]) == 0
    out = capsys.readouterr().out
    assert "16 samples" in out
    assert "svd-llm" in out
    suite.write_text(suite.read_text().replace("calibration:", "#"))
    assert main(["check", str(suite)]) == 2
    assert "suite.yaml:6:17: svd-llm needs calibration (second_moment)" in capsys.readouterr().err


def test_a_bfloat16_model_is_calibrated(tmp_path, own_cache):
    shutil.copytree(bundled()["almanac"], tmp_path / "copy")
    result = run(write_suite(tmp_path, CALIBRATED), tmp_path / "out", overrides=["model.dtype=bfloat16"])
    assert {row.status for row in result.directory.rows().values()} == {"ok"}


def test_a_calibrated_cell_can_be_computed_again_from_the_runs_directory(tmp_path, own_cache):
    (tmp_path / "text.txt").write_text("\n".join(bundled_texts()["almanac"]())[:400_000])
    suite = CALIBRATED.replace("{name: almanac, samples", "{text: text.txt, samples")
    suite = suite.replace("[svd, svd-llm, asvd, fwsvd, nystrom, {id: {calibrated: true}}]", "[svd-llm]")
    result = run(write_suite(tmp_path, suite), tmp_path / "out")
    [row] = [row for row in result.directory.rows().values() if row.label == "svd-llm"]
    again = compute_again(result.directory, row.cell[:8])
    assert [r.edit.relative_error for r in again.reductions] == [edit.relative_error for edit in row.edits]
    (tmp_path / "text.txt").write_text("another text. " * 40_000)
    with pytest.raises(InputError, match="earlier state"):
        compute_again(result.directory, row.cell[:8])
