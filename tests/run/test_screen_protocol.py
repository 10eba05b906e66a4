"""A suite that screens: which cells are scored, what stands of the others, and what a restart does."""

import math

import numpy as np
import pytest

from lrbench.analysis.leaderboard import build
from lrbench.analysis.screening_accuracy import screened_cells
from lrbench.errors import SuiteError
from lrbench.reports.publish import publish
from lrbench.reports.render.selection_notes import remarks
from lrbench.results.directory import RunDirectory
from lrbench.run.selection import screen
from lrbench.suite.load import load_suite
from tests.support.suites import Heard, run, write_suite

SUITE = """\
name: screened
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 24}
  - {task: almanac_text, limit: 12}
reducers: [svd, random-subspace, monarch]
seeds: 2
sweep:
  - mode: each
    layers: [6, 7]
    weights: [mlp.up]
    rank: {keep: [0.2, 0.5]}
select: {validation: 0.5}
screen: {documents: 8, top: 1}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screened")
    heard = Heard()
    run(write_suite(folder, SUITE), folder / "run", heard=heard)
    return folder, heard


def _validation(folder):
    rows = RunDirectory(folder / "run").rows().values()
    return [row for row in rows if row.selection.split == "validation" and row.reducer]


def test_only_the_most_promising_cells_of_each_method_are_scored_and_every_cell_has_its_row(done):
    folder, _ = done
    rows = _validation(folder)
    assert len(rows) == 4 * (1 + 2 + 1)  # weights and ranks, of svd, two seeds, monarch
    for label in ("svd", "random-subspace"):
        own = [row for row in rows if row.label == label]
        assert {row.status for row in own} == {"ok", "skipped"}
        for choice in ("almanac_facts_rare", "almanac_text"):
            best = min(row.selection.predicted[choice] for row in own)
            assert all(row.status == "ok" for row in own if row.selection.predicted[choice] == best)
        scored = {tuple(row.selection.predicted.values()) for row in own if row.status == "ok"}
        assert 1 <= len(scored) <= 2  # one for each choice at most
    for row in rows:
        if row.status == "skipped":
            assert row.reason.startswith("screened out: log-loss is predicted to change by almanac_facts_rare")


def test_cells_of_which_nothing_can_be_predicted_are_scored_and_that_is_said(done):
    folder, heard = done
    monarch = [row for row in _validation(folder) if row.label == "monarch"]
    assert {row.status for row in monarch} == {"ok"}
    assert {row.selection.predicted for row in monarch} == {None}
    assert any("no prediction for 4 cells" in note for note in heard.notes)


def test_both_seeds_of_a_cell_stay_or_go(done):
    folder, _ = done
    pairs = {}
    for row in _validation(folder):
        if row.label == "random-subspace":
            pairs.setdefault((row.edits[0].weight if row.edits else row.reason, row.status), []).append(row.seed)
    statuses = [row.status for row in _validation(folder) if row.label == "random-subspace"]
    assert statuses.count("ok") % 2 == 0


def test_the_prediction_is_the_change_of_the_log_loss_that_truncation_makes_nearly(done):
    folder, _ = done
    directory = RunDirectory(folder / "run")
    rows = [row for row in directory.rows().values() if row.selection.split == "validation" and row.status == "ok"]
    (baseline,) = [row for row in rows if row.reducer is None]

    def loss(row):
        texts = [sample for sample in directory.samples(row.cell) if sample["task"] == "almanac_text"]
        return -math.fsum(sum(sample["loglikelihoods"]) for sample in texts) / len(texts)

    changes = [
        (row.selection.predicted["almanac_text"], loss(row) - loss(baseline)) for row in rows if row.label == "svd"
    ]
    assert changes
    for predicted, measured in changes:
        assert abs(predicted) < 50 * abs(measured) + 1  # of one order: it is no more than a first order


def test_a_run_that_is_done_screens_nothing_again_and_one_that_was_killed_goes_on_alike(done, tmp_path, monkeypatch):
    folder, _ = done
    whole = RunDirectory(folder / "run").rows()

    def never(*_):
        raise AssertionError("the gradient was computed again")

    suite = write_suite(tmp_path, SUITE)
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "run", heard=Heard(stop_after=3))
    monkeypatch.setattr(screen, "sensitivities", never)
    result = run(suite, tmp_path / "run")
    again = RunDirectory(tmp_path / "run").rows()
    assert again.keys() == whole.keys()
    assert {key: row.scores for key, row in again.items()} == {key: row.scores for key, row in whole.items()}
    assert {key: row.selection for key, row in again.items()} == {key: row.selection for key, row in whole.items()}
    assert result.reused == 3
    assert run(write_suite(folder, SUITE), folder / "run").computed == 0


def test_screening_needs_documents_that_are_not_reported(tmp_path):
    text = "\n".join(line for line in SUITE.splitlines() if not line.startswith("select"))
    with pytest.raises(SuiteError, match=r"suite\.yaml:\d+:\d+: 'screen' uses validation documents"):
        load_suite(write_suite(tmp_path, text))


@pytest.mark.parametrize("value", ["hessian", "{top: 0}", "{documents: 1.5}", "{by: gradient, tops: 3}", "3"])
def test_what_screen_does_not_take_is_refused_at_its_line(tmp_path, value):
    with pytest.raises(SuiteError, match=r"suite\.yaml:14:\d+: "):
        load_suite(write_suite(tmp_path, SUITE, screen=value))


def test_a_word_and_true_stand_for_the_defaults(tmp_path):
    specs = [load_suite(write_suite(tmp_path, SUITE, screen=value)).screen for value in ("gradient", "true", "{}")]
    assert {(spec.by, spec.documents, spec.top) for spec in specs} == {("gradient", 100, 32)}


def test_what_was_predicted_stands_beside_what_was_measured(done):
    folder, _ = done
    directory = RunDirectory(folder / "run")
    points = screened_cells([directory])
    rows = [row for row in _validation(folder) if row.status == "ok" and row.selection.predicted]
    assert len(points) == 2 * len(rows)
    (baseline,) = [
        row for row in directory.rows().values() if row.reducer is None and row.selection.split == "validation"
    ]

    def loss(row):
        found = [sample for sample in directory.samples(row.cell) if sample["task"] == "almanac_facts_rare"]
        return -math.fsum(sample["loglikelihoods"][sample["gold"]] for sample in found) / len(found)

    by_hand = {
        (row.label, row.seed, row.edits[0].weight, row.edits[0].rank): (
            row.selection.predicted["almanac_facts_rare"],
            loss(row) - loss(baseline),
        )
        for row in rows
    }
    of_facts = [(point.predicted, point.measured) for point in points if point.choice == "almanac_facts_rare"]
    assert np.array(sorted(of_facts)) == pytest.approx(np.array(sorted(by_hand.values())))


def test_a_site_shows_cells_of_both_sides_and_the_predictions(done, tmp_path):
    pytest.importorskip("altair")
    folder, _ = done
    published = publish([RunDirectory(folder / "run")], tmp_path / "site")
    names = {path.name for path in (tmp_path / "site" / "downloads").rglob("*")}
    assert {"validation.csv", "leaderboard.csv"} <= names
    assert any(name.startswith("screening-") and name.endswith(".svg") for name in names)
    index = published.index.read_text(encoding="utf-8")
    assert "documents of the selection" in index
    assert "Screening: predicted against measured" in (tmp_path / "site" / "figures.html").read_text(encoding="utf-8")


def test_a_table_says_how_many_were_screened_out_and_lists_none_of_them(done):
    folder, _ = done
    skipped = [row for row in _validation(folder) if row.status == "skipped"]
    board = build([RunDirectory(folder / "run")])
    assert board.failures == []
    assert board.screened_out == len(skipped)
    assert any(f"{len(skipped)} cells were screened out" in sentence for sentence in remarks(board))
    assert all(row.reason.endswith("mlp.up_proj.weight)") for row in skipped)


def test_a_screening_does_not_go_with_updates(tmp_path):
    text = SUITE.replace("select:", "delta: {base: almanac}\nselect:")
    with pytest.raises(SuiteError, match="'screen' predicts the effect of dropping components"):
        load_suite(write_suite(tmp_path, text))
