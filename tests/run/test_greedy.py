"""Compositions: what is decided at each block, what becomes of it, and what a restart does."""

import hashlib

import pytest
import torch

from lrbench.errors import InputError, SuiteError
from lrbench.models.load import load
from lrbench.results.directory import RunDirectory
from lrbench.run import model_run
from lrbench.run.recompute import compute_again
from lrbench.suite.load import load_suite
from tests.support.suites import Heard, run, write_suite

SUITE = """\
name: composed
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 30}
  - {task: almanac_text, limit: 12}
reducers: [svd, random-subspace]
sweep:
  - mode: greedy
    layers: [5, 6, 7]
    weights: [mlp.up, attn.q]
    rank: {fraction: [0.1, 0.6]}
select: {validation: 0.5}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    run(write_suite(folder, SUITE), folder / "run")
    return RunDirectory(folder / "run")


def _merit(directory, row, aim):
    """Larger is better: the main metric, then minus the log-loss; of the rows alone."""
    samples = [sample for sample in directory.samples(row.cell) if sample["task"] == aim]
    if aim == "almanac_text":
        loss = -sum(sum(sample["loglikelihoods"]) for sample in samples) / len(samples)
        return -row.scores[aim]["word_perplexity"].value, -loss
    loss = -sum(sample["loglikelihoods"][sample["gold"]] for sample in samples) / len(samples)
    return row.scores[aim]["acc"].value, -loss


def test_every_block_keeps_its_best_edit_where_that_is_better_and_stays_as_it_is_where_not(done):
    rows = done.rows()
    composed = [row for row in rows.values() if row.selection.decisions is not None]
    assert {(row.label, row.selection.chosen_for) for row in composed} == {
        (label, aim) for label in ("svd", "random-subspace") for aim in ("almanac_facts_rare", "almanac_text")
    }
    (baseline,) = [row for row in rows.values() if row.reducer is None and row.selection.split == "validation"]
    for row in composed:
        aim, decisions = row.selection.chosen_for, row.selection.decisions
        assert [rows[one.cell].edits[-1].layer for one in decisions] == [7, 6, 5]
        standing, accepted = _merit(done, baseline, aim), []
        for one in decisions:
            best = rows[one.cell]
            assert [edit.weight for edit in best.edits] == [*accepted, one.weight]
            rivals = [
                other
                for other in rows.values()
                if (other.label, other.selection.split) == (row.label, "validation")
                and len(other.edits) > len(accepted)
                and [edit.weight for edit in other.edits][:-1] == accepted
                and [edit.rank for edit in other.edits][:-1] == [edit.rank for edit in best.edits][:-1]
                and other.edits[-1].layer == best.edits[-1].layer
            ]  # fmt: skip
            assert len(rivals) == 4
            assert max(_merit(done, other, aim) for other in rivals) == _merit(done, best, aim)
            assert one.accepted == (_merit(done, best, aim) > standing)
            if one.accepted:
                standing, accepted = _merit(done, best, aim), [edit.weight for edit in best.edits]
        assert [edit.weight for edit in row.edits] == accepted
        assert row.selection.candidates == 12
        assert row.setting == "composed"


def test_what_is_reported_is_of_test_documents(done):
    rows = done.rows().values()
    (baseline,) = [row for row in rows if row.reducer is None and row.selection.split == "test"]
    for row in rows:
        if row.selection.decisions is not None:
            aim = row.selection.chosen_for
            asked = {sample["doc"] for sample in done.samples(row.cell) if sample["task"] == aim}
            seen = {
                sample["doc"]
                for one in row.selection.decisions
                for sample in done.samples(one.cell)
                if sample["task"] == aim
            }
            assert asked
            assert not asked & seen
            assert asked == {sample["doc"] for sample in done.samples(baseline.cell) if sample["task"] == aim}


def test_where_nothing_is_accepted_the_row_is_the_baseline(tmp_path):
    reducers = "[random-columns]"
    run(write_suite(tmp_path, SUITE, reducers=reducers, layers="[0]", rank="{fraction: 0.01}"), tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    rows = directory.rows().values()
    composed = [row for row in rows if row.selection.decisions is not None and not row.edits]
    assert composed
    (baseline,) = [row for row in rows if row.reducer is None and row.selection.split == "test"]
    for row in composed:
        aim = row.selection.chosen_for
        assert [one.accepted for one in row.selection.decisions] == [False]
        scores, theirs = row.scores[aim], baseline.scores[aim]  # which was scored beside other tasks: in other batches
        assert {name: score.value for name, score in scores.items()} == pytest.approx(
            {name: score.value for name, score in theirs.items()}, rel=1e-5
        )
        assert (row.keep_targets, row.keep_model) == (1.0, 1.0)


def test_an_interrupted_composition_goes_on_from_its_last_decision(done, tmp_path):
    suite = write_suite(tmp_path, SUITE)
    for stop_after in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            run(suite, tmp_path / "run", heard=Heard(stop_after=stop_after))
    result = run(suite, tmp_path / "run")
    whole, again = done.rows(), RunDirectory(tmp_path / "run").rows()
    assert result.computed == len(whole) - 12
    assert again.keys() == whole.keys()
    for key, row in whole.items():
        assert (again[key].scores, again[key].selection) == (row.scores, row.selection)
        assert [edit.rank for edit in again[key].edits] == [edit.rank for edit in row.edits]


def test_after_all_decisions_the_model_is_the_original(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(model_run, "load", lambda *a, **k: seen.append(load(*a, **k)) or seen[-1])
    run(write_suite(tmp_path, SUITE, reducers="[svd]"), tmp_path / "run")

    def digest(model):
        found = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    (loaded,) = seen
    assert digest(loaded.model) == digest(load(load_suite(write_suite(tmp_path, SUITE)).models[0]).model)


def test_a_composition_needs_documents_to_decide_on(tmp_path):
    text = "\n".join(line for line in SUITE.splitlines() if not line.startswith("select"))
    with pytest.raises(SuiteError, match=r"suite\.yaml:8:11: 'mode: greedy' chooses edits on validation documents"):
        load_suite(write_suite(tmp_path, text))


def test_a_method_is_composed_by_one_sweep_of_a_suite(tmp_path):
    twice = SUITE.replace("select:", "  - {mode: greedy, layers: [7], weights: [mlp.up], rank: {keep: 0.5}}\nselect:")
    with pytest.raises(SuiteError, match=r"suite\.yaml:\d+:\d+: 'svd' is already composed by another sweep"):
        load_suite(write_suite(tmp_path, twice))


def test_a_composition_can_be_made_again_for_an_export_and_its_steps_cannot(done):
    rows = done.rows()
    composed = next(row for row in rows.values() if row.selection.decisions and row.edits)
    again = compute_again(done, composed.cell[:12])
    assert [reduction.edit.weight for reduction in again.reductions] == [edit.weight for edit in composed.edits]
    assert [reduction.edit.rank for reduction in again.reductions] == [edit.rank for edit in composed.edits]
    step = composed.selection.decisions[0].cell
    with pytest.raises(InputError, match="a step of a composition"):
        compute_again(done, step[:12])
