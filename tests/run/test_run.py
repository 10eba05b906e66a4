"""Runs end to end on the bundled model: rows, restoring, resuming, and everything that can go wrong."""

import json
import math
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

from lrbench.errors import InputError, SuiteError
from lrbench.evaluation.interface import Job
from lrbench.evaluation.sweep import sizes as memory
from lrbench.models.load import bundled, load, weight_hash
from lrbench.reducers.registry import Registry
from lrbench.reduction.plan import make_plan, methods
from lrbench.results.directory import RunDirectory
from lrbench.run import model_run, runner
from lrbench.suite.load import ModelSpec, load_suite
from lrbench.system.environment import environment
from tests.support.slow_cases import slow_cases
from tests.support.suites import MISBEHAVING, SMALL, Heard, run, write_suite


def ok_rows(result):
    return [row for row in result.directory.rows().values() if row.status == "ok"]


def values(row):
    return {task: {metric: score.value for metric, score in scores.items()} for task, scores in row.scores.items()}


def test_every_cell_gets_a_row_with_all_that_a_row_says(tmp_path):
    heard = Heard()
    result = run(write_suite(tmp_path), tmp_path / "out", heard=heard)
    rows = ok_rows(result)
    assert (result.computed, result.failed, len(rows), heard.cells) == (5, 0, 5, 5)
    baseline, *edited = rows
    assert (baseline.reducer, baseline.edits, baseline.keep_model) == (None, [], 1.0)
    assert {(row.label, row.edits[0].layer) for row in edited} == {(m, n) for m in ("svd", "cr") for n in (2, 5)}
    for row in edited:
        [edit] = row.edits
        m, n = edit.shape
        stored = {"svd": edit.rank * (m + n), "cr": edit.rank * m}[row.label]
        assert edit.stored_numbers == stored
        assert stored <= 0.5 * m * n < stored + {"svd": m + n, "cr": m}[row.label]
        assert row.keep_targets == pytest.approx(stored / (m * n))
        numbers = 3_935_424
        assert row.keep_model == pytest.approx((numbers - m * n + stored) / numbers)
        assert row.compression_ratio == pytest.approx(1 / row.keep_model)
        assert edit.relative_error >= edit.optimal_error * (1 - 1e-6)
        assert row.label != "svd" or edit.relative_error == pytest.approx(edit.optimal_error, rel=1e-5)
        assert row.decompose_seconds > 0
        assert row.evaluate_seconds > 0
        assert set(row.scores) == {"almanac_facts_rare", "almanac_agreement", "almanac_text"}
        assert row.scores["almanac_facts_rare"]["acc"].n == 8
        assert row.scores["almanac_text"]["word_perplexity"].stderr > 0
        assert len(result.directory.samples(row.cell)) == 8 + 8 + 3
    manifest = result.directory.manifest()
    assert manifest["cells"] == [row.cell for row in rows]
    assert manifest["models"][0]["weight_hash"] == load(ModelSpec(name="almanac")).weight_hash
    assert result.directory.environments()[baseline.environment] == environment(
        torch.device("cpu"), engine="sweep", batch_size=32, frontier_memory="auto"
    )


def test_a_task_that_cannot_be_read_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(model_run, "load", lambda *rest, **options: pytest.fail("the weights were loaded"))
    text = SMALL.replace("almanac_facts_rare, limit: 8", "almanac_facts_rare, data: ./empty")
    with pytest.raises(SuiteError, match="empty is no data set saved by save_to_disk"):
        run(write_suite(tmp_path, text), tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_a_second_run_computes_nothing(tmp_path, monkeypatch):
    suite = write_suite(tmp_path)
    first = run(suite, tmp_path / "out")
    before = first.directory.rows_file.read_bytes()
    heard = Heard()
    passes = []
    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    second = run(suite, tmp_path / "out", heard=heard)
    assert (second.computed, second.reused, heard.rows) == (0, 5, [])
    assert passes == []
    assert first.directory.rows_file.read_bytes() == before
    assert "nothing to compute" in second.summary()


def test_an_interrupted_run_goes_on_where_it_stopped_and_scores_nothing_twice(tmp_path):
    suite = write_suite(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", heard=Heard(stop_after=2))
    directory = RunDirectory(tmp_path / "out")
    assert len(directory.rows()) == 2
    result = run(suite, tmp_path / "out")
    assert (result.reused, result.computed) == (2, 3)
    assert len(directory.rows_file.read_text().splitlines()) == 5
    whole = run(suite, tmp_path / "whole")
    assert [values(row) for row in ok_rows(result)] == [values(row) for row in ok_rows(whole)]


def test_force_scores_again_and_the_last_row_wins(tmp_path):
    suite = write_suite(tmp_path)
    run(suite, tmp_path / "out")
    forced = run(suite, tmp_path / "out", force=True)
    assert forced.computed == 5
    assert len(forced.directory.rows()) == 5
    assert len(forced.directory.rows_file.read_text().splitlines()) == 10


def test_the_model_is_bit_for_bit_what_it_was_after_a_run(tmp_path, monkeypatch):
    seen = []

    def remembering(*args, **kwargs):
        seen.append(load(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(model_run, "load", remembering)
    suite = write_suite(tmp_path, mode="together", weights="[all, head, embed]", layers="all", reducers="[id]")
    assert run(suite, tmp_path / "out").computed == 2
    assert weight_hash(seen[0].model) == seen[0].weight_hash


def test_every_engine_gives_the_same_rows(tmp_path):
    suite = write_suite(tmp_path, layers="[5]")
    swept = ok_rows(run(suite, tmp_path / "sweep"))
    frozen = ok_rows(run(suite, tmp_path / "frozen", engine="frozen"))
    harness = ok_rows(run(suite, tmp_path / "harness", engine="harness"))
    assert [row.cell for row in swept] == [row.cell for row in frozen] == [row.cell for row in harness]
    for a, b, c in zip(swept, frozen, harness, strict=True):
        assert b.scores == c.scores
        for task, metrics in a.scores.items():
            for metric, score in metrics.items():
                assert score.value == pytest.approx(b.scores[task][metric].value, rel=1e-5)


def test_an_engine_without_room_for_its_frontier_gives_the_same_rows(tmp_path, monkeypatch):
    suite = write_suite(tmp_path)
    monkeypatch.setitem(memory.TOKENS, "cpu", 128)
    roomy = ok_rows(run(suite, tmp_path / "roomy"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    tight = run(suite, tmp_path / "tight")

    assert tight.directory.manifest()["models"][0]["engine"]["sweep"]["parts"] > 1
    assert [(row.cell, row.scores) for row in ok_rows(tight)] == [(row.cell, row.scores) for row in roomy]


def test_a_full_rank_edit_that_changes_nothing_gives_the_baseline(tmp_path):
    suite = write_suite(tmp_path, rank="{fraction: 1.0}", reducers="[svd]")
    baseline, *edited = ok_rows(run(suite, tmp_path / "out"))
    for row in edited:
        assert row.edits[0].stored_as == "dense"
        assert row.keep_targets == 1.0
        assert row.edits[0].relative_error < 1e-6
        for task, scores in values(row).items():
            for metric, value in scores.items():
                assert value == pytest.approx(values(baseline)[task][metric], rel=1e-4)


def test_the_result_at_a_rank_does_not_depend_on_the_other_ranks(tmp_path):
    alone = run(write_suite(tmp_path, reducers="[rsvd]", rank="{rank: [20]}"), tmp_path / "alone")
    several = run(write_suite(tmp_path, reducers="[rsvd]", rank="{rank: [50, 20, 35]}"), tmp_path / "several")
    by_cell = {row.cell: row for row in ok_rows(several)}
    for row in ok_rows(alone):
        assert row.cell in by_cell
        if row.edits:
            assert by_cell[row.cell].edits[0].relative_error == pytest.approx(row.edits[0].relative_error, rel=1e-4)


def test_modes_make_the_cells_they_promise():
    registry = Registry.load()
    inventory = load(ModelSpec(name="almanac"), device="cpu").inventory

    def cells(mode, **sweep):
        overrides = [f"sweep.0.mode={mode}", *(f"sweep.0.{key}={value}" for key, value in sweep.items())]
        suite = load_suite("quickstart", overrides=[*overrides, "reducers=[svd, cr]", "sweep.0.rank={rank: [4, 8]}"])
        return make_plan(suite, inventory, methods(suite, registry)).cells[1:]

    each = cells("each", layers="[1, 3]")
    assert len(each) == 2 * 2 * 2 * 3
    assert all(len(cell.slots) == 1 for cell in each)
    layer = cells("layer", layers="[1, 3]")
    assert [cell.first_block for cell in layer] == [1] * 4 + [3] * 4
    assert all({slot.about.role for slot in cell.slots} == {"mlp.gate", "mlp.up", "mlp.down"} for cell in layer)
    together = cells("together", layers="last half")
    assert [len(cell.slots) for cell in together] == [12] * 4
    assert {cell.first_block for cell in together} == {4}
    assert cells("together", weights="[head]")[0].first_block == 8
    assert cells("together", weights="[embed, mlp]")[0].first_block == 0


def test_cells_are_ordered_by_the_first_block_and_ranks_stand_together():
    suite = load_suite("quickstart", overrides=["sweep.0.mode=each"])
    plan = make_plan(suite, load(ModelSpec(name="almanac"), device="cpu").inventory, methods(suite, Registry.load()))
    blocks = [cell.first_block for cell in plan.cells[1:]]
    assert blocks == sorted(blocks)
    assert {len(group) for group in plan.groups()} == {1, 3}


MISBEHAVIOUR = {
    "raises": "raises failed at rank 76: RuntimeError: no luck at all",
    "wrong-shape": "shape",
    "gives-nan": "NaN",
    "lies": "stored_numbers",
    "writes": "writes to the weight it is given",
    "returns-tensor": "return lrbench factors",
    "size-raises": "KeyError",
    "size-is-text": "stored_numbers",
    "factors-raise": "no dense today",
    "exits": "SystemExit: 3",
    "writes-data": "writes to the weight it is given",
    "size-lies": "state 1 stored parameters, but hold",
    "too-good": "where no matrix",
    "unsupportive": "supports() failed: KeyError",
}


@pytest.fixture(scope="module")
def misbehaved(tmp_path_factory):
    """A run of all reducers that misbehave, and one that does not: its rows, and how often each was computed."""
    folder = tmp_path_factory.mktemp("misbehaved")
    (folder / "bad.py").write_text(MISBEHAVING)
    suite = write_suite(folder, reducers=f"[{', '.join(MISBEHAVIOUR)}, svd]", layers="[5]", rank="{rank: 76}")
    results = [run(suite, folder / "out", folder / "bad.py") for _ in range(2)]
    return results, {row.label: row for row in results[0].directory.rows().values()}


@pytest.mark.parametrize(("name", "reason"), MISBEHAVIOUR.items())
def test_a_plugin_that_misbehaves_is_a_failed_row_that_names_it_and_the_weight(misbehaved, name, reason):
    failed = misbehaved[1][name]
    assert failed.status == "failed"
    assert reason in failed.reason
    assert name in failed.reason
    assert "model.layers.5.mlp.down_proj.weight" in failed.reason
    assert "\n" not in failed.reason


def test_plugins_that_misbehave_spoil_no_other_row_and_are_not_tried_again(misbehaved):
    (first, again), rows = misbehaved
    assert {label for label, row in rows.items() if row.status == "ok"} == {None, "svd"}
    assert first.failed == len(MISBEHAVIOUR)
    assert (again.computed, again.failed, again.reused) == (0, len(MISBEHAVIOUR), len(MISBEHAVIOUR) + 2)


def test_an_error_curve_that_lies_fails_the_cell(tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_suite(tmp_path, reducers="[boastful, svd]", layers="[5]", rank="{error: 0.5}")
    _, boastful, svd = run(suite, tmp_path / "out", plugin).directory.rows().values()
    assert (boastful.status, svd.status) == ("failed", "ok")
    assert "boastful has error 0.9" in boastful.reason
    assert svd.edits[0].relative_error <= 0.5


def test_failed_cells_are_tried_again_only_on_request(tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_suite(tmp_path, reducers="[svd, moody]", layers="[5]", rank="{rank: 8}")
    (tmp_path / "bad mood").touch()
    first = run(suite, tmp_path / "out", plugin)
    assert (first.computed, first.failed) == (3, 1)
    (tmp_path / "bad mood").unlink()
    reused = run(suite, tmp_path / "out", plugin)
    assert (reused.computed, reused.reused, reused.failed) == (0, 3, 1)
    heard = Heard()
    tried = run(suite, tmp_path / "out", plugin, heard=heard, retry_failed=True)
    assert (tried.computed, tried.reused, tried.failed) == (1, 2, 0)
    assert [(row.label, row.status) for row in heard.rows] == [("moody", "ok")]
    (tmp_path / "bad mood").touch()
    assert run(suite, tmp_path / "out", plugin, retry_failed=True).computed == 0


def test_a_no_op_edit_gives_the_baseline_bit_for_bit_and_claims_no_low_rank(tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_suite(tmp_path, reducers="[moody]", rank="{rank: 3}")
    baseline, *others = ok_rows(run(suite, tmp_path / "out", plugin))
    for row in others:
        assert row.scores == baseline.scores
        [edit] = row.edits
        assert (edit.rank, edit.stored_as, edit.relative_error) == (192, "dense", 0.0)
        assert edit.optimal_error <= 1e-7


def test_a_rank_is_timed_as_if_it_were_alone(tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    suite = write_suite(tmp_path, reducers="[slow-when-large]", layers="[5]", rank="{rank: [2, 100]}")
    _, small, large = ok_rows(run(suite, tmp_path / "out", plugin))
    assert (small.edits[0].rank, large.edits[0].rank) == (2, 100)
    assert small.decompose_seconds < 1 <= large.decompose_seconds


@pytest.mark.parametrize("change", ["rope_theta", *slow_cases("generation")])
def test_a_change_of_the_configuration_makes_other_cells(tmp_path, change):
    shutil.copytree(bundled()["almanac"], tmp_path / "copy")
    suite = write_suite(tmp_path, model="{pretrained: ./copy, device: cpu}", layers="[5]", reducers="[svd]")
    assert run(suite, tmp_path / "out").computed == 2
    name = "config.json" if change == "rope_theta" else "generation_config.json"
    config = json.loads((tmp_path / "copy" / name).read_text())
    if change == "rope_theta":
        config["rope_parameters"]["rope_theta"] = 50.0
    else:
        config["repetition_penalty"] = 2.0
    (tmp_path / "copy" / name).write_text(json.dumps(config))
    assert run(suite, tmp_path / "out").computed == 2


def test_a_change_of_a_groups_weighting_makes_other_cells(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "part.jsonl").write_text('{"q": "The", "c": ["dog is", "dog are"], "g": 0}\n' * 3)
    task = "task: part\ndataset_path: json\ndataset_kwargs: {data_files: {test: part.jsonl}}\ntest_split: test\n"
    task += "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: '{{g}}'\n"
    (folder / "part.yaml").write_text(task)
    group = "group: both\ntask: [part]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (folder / "both.yaml").write_text(group)
    suite = write_suite(tmp_path, reducers="[svd]", layers="[5]")
    overrides = [f"task_paths=[{folder}]", "tasks=[both]"]
    assert run(suite, tmp_path / "out", overrides=overrides).computed == 2
    assert run(suite, tmp_path / "out", overrides=overrides).computed == 0
    (folder / "both.yaml").write_text(group.replace("true", "false"))
    assert run(suite, tmp_path / "out", overrides=overrides).computed == 2


def test_smaller_batches_go_on_with_the_same_run(tmp_path):
    suite = write_suite(tmp_path, layers="[5]", reducers="[svd]")
    run(suite, tmp_path / "out")
    again = run(suite, tmp_path / "out", overrides=["batch_size=4"])
    assert (again.computed, again.reused) == (0, 2)


def test_a_mistake_in_the_last_model_is_said_before_the_first_is_scored(tmp_path):
    text = write_suite(tmp_path, layers="[5]", reducers="[svd]").read_text()
    suite = tmp_path / "two.yaml"
    suite.write_text(text.replace("model: {name: almanac, device: cpu}", "models: [{name: almanac}, {name: almanak}]"))
    with pytest.raises(InputError, match="almanak"):
        run(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_read_any_more_takes_nothing_from_the_manifest(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(bundled()["almanac"], tmp_path / name)
    text = write_suite(tmp_path, layers="[5]", reducers="[svd]").read_text()
    suite = tmp_path / "two.yaml"
    models = "models: [{pretrained: ./one}, {pretrained: ./two}]"
    suite.write_text(text.replace("model: {name: almanac, device: cpu}", models))
    result = run(suite, tmp_path / "out")
    before = result.directory.manifest()["cells"]
    (tmp_path / "two" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="two"):
        run(suite, tmp_path / "out")
    assert result.directory.manifest()["cells"] == before
    assert len(before) == 4


def test_a_slot_that_a_reducer_does_not_support_is_a_skipped_row(tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    result = run(write_suite(tmp_path, reducers="[picky]", rank="{rank: 8}"), tmp_path / "out", plugin)
    rows = {row.status: row for row in result.directory.rows().values() if row.label}
    assert set(rows) == {"ok", "skipped"}
    assert "picky does not support model.layers.5.mlp.down_proj.weight: odd layers" in rows["skipped"].reason
    assert (result.skipped, result.failed) == (1, 0)


def test_a_rank_above_the_maximum_is_a_failed_row_and_is_never_clamped(tmp_path):
    result = run(write_suite(tmp_path, rank="{rank: [193, 8]}", layers="[5]"), tmp_path / "out")
    rows = {(row.label, row.requested.get("rank")): row for row in result.directory.rows().values()}
    assert rows["svd", 193].status == "failed"
    assert "rank 193 is above 192" in rows["svd", 193].reason
    assert rows["cr", 193].status == "ok"  # 512 columns to choose from
    assert rows["svd", 8].edits[0].rank == 8


def test_a_nan_in_a_weight_is_a_failed_row_that_names_the_place(tmp_path):
    model = load(ModelSpec(name="almanac"), device="cpu")
    weight = model.model.model.layers[5].mlp.down_proj.weight
    weight.data[3, 7] = math.nan
    model.model.save_pretrained(tmp_path / "broken")
    model.tokenizer.save_pretrained(tmp_path / "broken")
    suite = write_suite(tmp_path, model="{pretrained: ./broken, device: cpu}")
    heard = Heard()
    rows = run(suite, tmp_path / "out", heard=heard).directory.rows().values()
    assert "./broken: model.layers.5.mlp.down_proj.weight holds nan at [3, 7]; repair the checkpoint" in heard.notes
    assert {row.status for row in rows} == {"failed"}
    reasons = {row.edits[0].layer if row.edits else (row.label, row.reason) for row in rows}
    assert (
        "svd",
        "model.layers.5.mlp.down_proj.weight: the weight holds nan at [3, 7]; repair the checkpoint",
    ) in reasons
    [baseline] = [row for row in rows if row.reducer is None]
    assert "log-likelihood is nan" in baseline.reason


@pytest.mark.parametrize(
    ("replaced", "place", "message"),
    [
        ({"layers": "[2, 8]"}, "10:", "layer 8"),
        ({"reducers": "[svd, crr]"}, "7:", "unknown reducer 'crr'"),
        ({"weights": "[mlp.dwon]"}, "11:", "did you mean 'mlp.down'"),
        ({"weights": '["*.nowhere"]'}, "11:", "selects no weight"),
        ({"reducers": "[{rsvd: {oversampl: 3}}]"}, "7:", "did you mean 'oversample'"),
    ],
)
def test_what_a_suite_gets_wrong_is_said_at_its_line(tmp_path, replaced, place, message):
    with pytest.raises(SuiteError) as error:
        run(write_suite(tmp_path, **replaced), tmp_path / "out")
    assert f"suite.yaml:{place}" in str(error.value)
    assert message in str(error.value)


def test_a_directory_with_another_run_or_with_other_files_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    suite = write_suite(tmp_path, layers="[5]", reducers="[svd]")
    with pytest.raises(InputError, match="not empty, and not a run"):
        run(suite, tmp_path / "full")
    run(suite, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be a run directory"):
        run(suite, tmp_path / "file")
    with pytest.raises(InputError, match="another suite's run, or one with other settings"):
        run(suite, tmp_path / "out", overrides=["seed=1"])


def test_two_processes_do_not_write_to_one_run(tmp_path):
    suite = write_suite(tmp_path)
    directory = RunDirectory(tmp_path / "out")
    with runner._exclusive(directory), pytest.raises(InputError, match="another lrbench"):
        run(suite, directory.path)


@pytest.mark.slow
def test_a_cell_is_known_by_what_defines_its_result(tmp_path):
    """Documents, prompts, seed, dtype, parameters, rank, labels: a change of each gives other cells."""

    def cells(*overrides, suite=None):
        name = str(len(list(tmp_path.iterdir())))
        result = run(
            suite or write_suite(tmp_path, layers="[5]", reducers="[rsvd]"), tmp_path / name, overrides=overrides
        )
        return [row.cell for row in result.directory.rows().values()]

    first = cells()
    assert cells() == first
    for change in ("seed=1", "tasks.0.limit=7", "tasks.0.num_fewshot=1", "model.dtype=bfloat16"):
        assert not set(cells(change)) & set(first), change
    for change in (
        "reducers=[{rsvd: {label: other}}]",
        "reducers=[{rsvd: {oversample: 2}}]",
        "sweep.0.rank.keep=[0.4]",
        "sweep.0.layers=4",
    ):
        other = cells(change)
        assert other[0] == first[0], change
        assert other[1] != first[1], change


def test_bfloat16_models_are_measured_after_rounding(tmp_path):
    suite = write_suite(tmp_path, reducers="[svd]", rank="{fraction: [1.0, 0.3]}", layers="[5]")
    rows = ok_rows(run(suite, tmp_path / "out", overrides=["model.dtype=bfloat16"]))
    full, low = (row.edits[0] for row in rows[1:])
    assert full.stored_as == "dense"
    assert full.relative_error < 1e-6  # the weights were bfloat16 to begin with
    assert low.stored_bytes == 2 * low.stored_numbers
    assert low.relative_error > low.optimal_error * (1 + 1e-6)


def test_a_tied_head_is_counted_on_top_of_the_embedding(tmp_path):
    suite = write_suite(tmp_path, weights="[head]", reducers="[svd]", rank="{rank: 8}", layers="all")
    _, row = ok_rows(run(suite, tmp_path / "out"))
    stored = 8 * (2048 + 192)
    assert row.keep_targets == pytest.approx(stored / (2048 * 192))
    assert row.keep_model == pytest.approx((3_935_424 + stored) / 3_935_424)


def test_both_sides_of_a_tied_pair_replace_the_matrix_they_share(tmp_path):
    sweep = {"mode": "together", "weights": "[head, embed]", "rank": "{rank: 8}", "layers": "all"}
    _, row = ok_rows(run(write_suite(tmp_path, reducers="[svd]", **sweep), tmp_path / "out"))
    stored = 2 * 8 * (2048 + 192)
    assert row.keep_model == pytest.approx((3_935_424 - 2048 * 192 + stored) / 3_935_424)


def test_rows_of_a_plugin_as_it_was_stay_on_file_but_leave_the_plan(tmp_path):
    plugin = tmp_path / "mine.py"
    source = MISBEHAVING.replace('raise RuntimeError("no luck\\nat all")', "return lrbench.Dense(weight.clone())")
    plugin.write_text(source)
    suite = write_suite(tmp_path, reducers="[raises]", layers="[5]", rank="{rank: 8}")
    run(suite, tmp_path / "out", plugin)
    plugin.write_text(source.replace("weight.clone()", "weight + 0"))
    heard = Heard()
    result = run(suite, tmp_path / "out", plugin, heard=heard)
    assert (result.computed, result.reused) == (1, 1)
    assert "raises: the code has changed since the rows were made; the cells are scored again" in heard.notes
    assert len(result.directory.rows()) == 3
    assert len(result.directory.manifest()["cells"]) == 2


def test_several_models_stand_in_one_run(tmp_path):
    shutil.copytree(bundled()["almanac"], tmp_path / "copy")
    text = write_suite(tmp_path, layers="[5]", reducers="[svd]").read_text()
    suite = tmp_path / "two.yaml"
    suite.write_text(
        text.replace("model: {name: almanac, device: cpu}", "models: [{name: almanac}, {pretrained: ./copy}]")
    )
    rows = ok_rows(run(suite, tmp_path / "out"))
    assert [(row.model, row.label) for row in rows] == [
        ("almanac", None), ("almanac", "svd"), ("./copy", None), ("./copy", "svd")
    ]  # fmt: skip
    assert values(rows[0]) == values(rows[2])
    assert values(rows[1]) == values(rows[3])
    heard = Heard()
    run(suite, tmp_path / "out", heard=heard)
    assert heard.rows == []


def test_engines_are_told_which_modules_a_cell_edits_in_its_first_block(tmp_path, monkeypatch):
    told = []

    def heard(*given, **named):
        job = Job(*given, **named)
        told.append((job.first_block, job.modules))
        return job

    monkeypatch.setattr(model_run, "Job", heard)
    run(write_suite(tmp_path), tmp_path / "out")

    down = [(layer, (f"model.layers.{layer}.mlp.down_proj",)) for layer in (2, 5)]
    assert told == [(None, ()), *(job for job in down for _ in ("svd", "cr"))]
