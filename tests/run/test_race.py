"""Racing in a selection: what stops, when, what it promises, and what an interruption leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrbench.analysis.leaderboard import build
from lrbench.errors import SuiteError
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.reports.render import renderer
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Score
from lrbench.run.selection.document_order import DocumentOrder, document_order_of
from lrbench.run.selection.objective import Objective, objectives
from lrbench.suite.load import load_suite
from tests.run.test_select import frozen, question, write_task
from tests.support.slow_cases import slow_cases
from tests.support.suites import Heard, run, write_suite
from tests.support.synthetic_run import row

RACED = """\
name: raced
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 90}
reducers: [svd, cr]
sweep:
  - layers: [0]
    weights: [mlp.down, attn.o]
    rank: {keep: [0.6, 0.05]}
select: {validation: 0.7}
race: {alpha: 0.2, margin: 0.1, block: 10}
"""


class Stopping(Heard):
    """Is interrupted when the engine has scored so many cells on some documents."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.stop_at = steps

    def scoring(self, step):
        super().scoring(step)
        if len(self.steps) == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"), RACED)


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory):
    """A race without interruption; the times that the engine compared itself with the model; what was said."""
    checks = []
    with pytest.MonkeyPatch.context() as patched:
        first = Sweeper._first_that_passes
        patched.setattr(Sweeper, "_first_that_passes", lambda self, modes: checks.append(1) or first(self, modes))
        heard = Heard()
        result = run(suite, tmp_path_factory.mktemp("run") / "whole", heard=heard)
    return result.directory, checks, heard


@pytest.fixture(scope="module")
def unraced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unraced")
    return run(write_suite(folder, RACED.replace("race: {", "# {")), folder / "out").directory


def on(directory, split):
    return [one for one in directory.rows().values() if one.selection.split == split]


def facts(directory):
    return [
        (one.cell, one.status, one.scores, one.selection, one.edits, directory.samples(one.cell))
        for one in directory.rows().values()
    ]


def what(one):
    return one.label, one.setting, [edit.weight for edit in one.edits]


@pytest.mark.parametrize(
    ("written", "column", "problem"),
    [
        ("race: {alpha: 0}", 15, "must be more than 0"),
        ("race: {alpha: 1}", 15, "must be less than 1"),
        ("race: {margin: -0.1}", 16, "must be at least 0"),
        ("race: {margin: 1}", 16, "must be less than 1"),
        ("race: {block: 0}", 15, "must be at least 1"),
        ("race: {block: 1.5}", 15, "takes an integer"),
        ("race: {aplha: 0.1}", 8, "did you mean 'alpha'"),
        ("race: fast", 7, "'race' takes a mapping"),
    ],
)
def test_what_is_no_race_is_refused_at_its_place(tmp_path, written, column, problem):
    text = RACED.replace("race: {alpha: 0.2, margin: 0.1, block: 10}", written)
    with pytest.raises(SuiteError, match=rf"suite\.yaml:11:{column}: .*{problem}"):
        load_suite(write_suite(tmp_path, text))


def test_hopeless_cells_stop_and_say_after_how_many_documents(whole):
    directory, _, heard = whole
    rows = on(directory, "validation")
    [baseline] = [one for one in rows if one.reducer is None]
    full = baseline.selection.documents["almanac_facts_rare"]
    assert len(rows) == 9
    stopped = [one for one in rows if one.selection.stopped]
    assert 2 <= len(stopped) <= 6
    for one in rows:
        samples = directory.samples(one.cell)
        documents = one.selection.documents["almanac_facts_rare"]
        assert documents == len(samples) == one.scores["almanac_facts_rare"]["acc"].n
        assert one.scores["almanac_facts_rare"]["acc"].value == pytest.approx(
            math.fsum(sample["metrics"]["acc"] for sample in samples) / len(samples)
        )
        assert one.selection.stopped == ({"almanac_facts_rare": documents} if documents < full else None)
        assert {sample["doc"] for sample in samples} <= {s["doc"] for s in directory.samples(baseline.cell)}
        assert one.evaluate_seconds > 0
    assert any("race for almanac_facts_rare: 10 of" in note for note in heard.notes)


def test_cells_are_scored_on_documents_in_random_order_and_all_that_stop_at_once_on_the_same(whole):
    directory, _, _ = whole
    by_count = {}
    for one in on(directory, "validation"):
        if one.selection.stopped:
            documents = [sample["doc"] for sample in directory.samples(one.cell)]
            assert by_count.setdefault(len(documents), documents) == documents
    smallest = by_count[min(by_count)]
    assert smallest != sorted(range(90))[: len(smallest)]
    assert smallest == sorted(smallest)
    assert max(smallest) > 45


def test_the_race_chooses_as_well_as_scoring_everything_within_the_margin_and_scores_the_choice_in_full(whole, unraced):
    directory, _, _ = whole
    everything = {(*map(str, what(one)),): one for one in on(unraced, "validation")}
    for one in on(directory, "test"):
        if one.reducer is None:
            continue
        [cell] = one.selection.validation_cells
        source = directory.rows()[cell]
        assert source.selection.stopped is None
        assert what(source) == what(one)
        rivals = [other for other in everything.values() if other.label == one.label]
        best = max(other.scores["almanac_facts_rare"]["acc"].value for other in rivals)
        mine = everything[(*map(str, what(one)),)]
        assert mine.scores["almanac_facts_rare"]["acc"].value > best - 0.1
        assert source.scores["almanac_facts_rare"]["acc"].value == mine.scores["almanac_facts_rare"]["acc"].value
        assert one.selection.candidates == 4


def test_the_documents_scored_agree_with_an_unraced_run_document_by_document(whole, unraced):
    directory, _, _ = whole
    everything = {(*map(str, what(one)),): one for one in on(unraced, "validation")}
    for one in on(directory, "validation"):
        theirs = {s["doc"]: s for s in unraced.samples(everything[(*map(str, what(one)),)].cell)}
        for sample in directory.samples(one.cell):
            assert sample["metrics"] == theirs[sample["doc"]]["metrics"]
            assert sample["gold"] == theirs[sample["doc"]]["gold"]
            assert sample["loglikelihoods"] == pytest.approx(theirs[sample["doc"]]["loglikelihoods"], abs=1e-3)


def test_the_engine_checks_itself_once_for_all_blocks_and_nothing_is_left_behind(whole):
    directory, checks, _ = whole
    assert len(checks) == 1
    assert not (directory.path / "partial").exists()


def test_a_second_run_computes_nothing(suite, whole):
    directory, _, _ = whole
    before = (directory.path / "rows.jsonl").read_bytes()
    again = run(suite, directory.path)
    assert (again.computed, again.reused) == (0, 12)
    assert (directory.path / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize("share", [0.8, *slow_cases(0.3)])
def test_an_interrupted_race_does_not_score_again_what_it_had_scored_and_ends_alike(suite, whole, tmp_path, share):
    directory, _, heard = whole
    stop_at = int(share * len(heard.steps))
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", heard=Stopping(stop_at))
    assert list((tmp_path / "out" / "partial").glob("block-*.jsonl"))
    rest = Heard()
    again = run(suite, tmp_path / "out", heard=rest)
    assert len(rest.steps) == len(heard.steps) - (stop_at - 1)  # the last one was not on disk yet
    assert facts(again.directory) == facts(directory)
    assert not (tmp_path / "out" / "partial").exists()


@pytest.mark.parametrize("rows", [8, *slow_cases(3)])
def test_a_kill_while_the_rows_of_a_race_are_written_loses_nothing(suite, whole, tmp_path, rows):
    directory, _, _ = whole
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", heard=Heard(stop_after=rows))
    assert len(RunDirectory(tmp_path / "out").rows()) == rows
    rest = Heard()
    again = run(suite, tmp_path / "out", heard=rest)
    assert len(rest.steps) == 3  # what is reported: the race itself is known
    assert facts(again.directory) == facts(directory)


def test_answers_kept_by_another_environment_are_not_mixed_in(suite, whole, tmp_path, monkeypatch):
    directory, _, heard = whole
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", heard=Stopping(12))
    from lrbench.run import model_run

    here = model_run.environment
    monkeypatch.setattr(
        model_run, "environment", lambda *a, **k: {**here(*a, **k), "torch": "another", "hash": "elsewhere"}
    )
    rest = Heard()
    again = run(suite, tmp_path / "out", heard=rest)
    assert len(rest.steps) == len(heard.steps) - 1  # the baseline has its row
    assert {one.environment for one in again.directory.rows().values() if one.reducer} == {"elsewhere"}
    assert [one.scores for one in again.directory.rows().values()] == [one.scores for one in directory.rows().values()]


class Spoiling(Heard):
    """Puts a file where a reducer looks for it, once the race has taken so many documents."""

    def __init__(self, file) -> None:
        super().__init__()
        self.file = file

    def note(self, message):
        super().note(message)
        if "race for almanac_facts_rare: 10 of" in message:
            self.file.touch()


FAILING = """
from pathlib import Path

import lrbench


class First(lrbench.Reducer):
    name = "first"
    def reduce(self, weight, rank, context):
        if rank == 40 and (Path(__file__).parent / "bad mood").exists():
            raise RuntimeError("not today")
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone() * 0)


@lrbench.hookimpl
def lrbench_reducers():
    return [First]
"""


def test_a_cell_that_fails_on_the_way_is_out_and_when_it_is_tried_again_it_is_scored_in_full(tmp_path):
    plugin = tmp_path / "first.py"
    plugin.write_text(FAILING)
    text = RACED.replace("[svd, cr]", "[svd, first]").replace("{keep: [0.6, 0.05]}", "{rank: [40, 3]}")
    path = write_suite(tmp_path, text.replace("limit: 90", "limit: 40"))
    mood = tmp_path / "bad mood"
    first = run(path, tmp_path / "out", plugin, heard=Spoiling(mood))
    assert first.failed == 2
    failed = [one.cell for one in on(first.directory, "validation") if one.status == "failed"]
    assert {first.directory.rows()[cell].label for cell in failed} == {"first"}
    assert {one.label for one in on(first.directory, "test")} == {None, "svd", "first"}
    mood.unlink()
    heard = Heard()
    again = run(path, tmp_path / "out", plugin, heard=heard, retry_failed=True)
    assert again.failed == 0
    assert "2 cells are scored in full: their race is over, or cannot be held" in heard.notes
    rows = again.directory.rows()
    [baseline] = [one for one in on(again.directory, "validation") if one.reducer is None]
    for cell in failed:
        assert rows[cell].status == "ok"
        assert rows[cell].selection.documents == baseline.selection.documents
        assert rows[cell].selection.stopped is None


def test_the_table_of_the_race_says_how_many_documents_each_line_is_of_and_compares_only_whole_ones(whole):
    directory, _, _ = whole
    board = build([directory], validation=True)
    for entry in board.entries:
        stopped = entry.row.selection.stopped
        measured = entry.metrics["almanac_facts_rare"]["acc"]
        assert entry.values["documents"] == (str(measured.n) if stopped else "")
        if not entry.baseline:
            assert (measured.delta is None) is bool(stopped)
    text = " ".join(renderer("terminal")(board).split())
    stopped = sum(bool(entry.row.selection.stopped) for entry in board.entries)
    assert f"In the race {stopped} of 9 rows stopped before the last document" in text


# The order.


def samples_of(values):
    return [
        {"task": task, "doc": doc, "metrics": {"acc": value}}
        for task, of_task in values.items()
        for doc, value in enumerate(of_task)
    ]


def mean(values):
    return sum(values) / len(values)


def test_a_course_gives_the_score_of_tasks_of_groups_and_of_the_mean(tmp_path):
    write_task(tmp_path / "tasks", "asked", [question(number) for number in range(30)])
    engine = frozen(tmp_path, "[{task: almanac_facts, limit: 20}, {task: almanac_agreement, limit: 7}, asked]")
    requests = engine.requests
    dice = np.random.default_rng(0)
    values = {task: dice.integers(0, 2, of.documents).astype(float).tolist() for task, of in requests.tasks.items()}
    facts_of = [task for task in values if task.startswith("almanac_facts")]
    scores = {task: {"acc": Score(value=mean(of), n=len(of))} for task, of in values.items()}
    together = [value for task in facts_of for value in values[task]]
    scores["almanac_facts"] = {"acc": Score(value=mean(together), n=len(together))}
    baseline = row("baseline", scores=scores)
    named = {"almanac_facts": facts_of, "almanac_agreement": ["almanac_agreement"], "asked": ["asked"]}
    for on_what in ("task", "mean"):
        for aim in objectives(requests, named, on_what):
            order = document_order_of(aim, requests, baseline, samples_of(values), seed=0)
            assert isinstance(order, DocumentOrder)
            units = len(order.units)
            assert order.values(0, units, samples_of(values)).mean() == pytest.approx(aim.value(baseline))
            assert sorted(key for unit in order.units for key in unit) == sorted(
                (task, index) for task in aim.tasks for index in requests.tasks[task].indices
            )
            other = document_order_of(aim, requests, baseline, samples_of(values), seed=1)
            assert [*order.units] != [*other.units]
            assert order.units == document_order_of(aim, requests, baseline, samples_of(values), seed=0).units


def test_paraphrases_are_drawn_together(tmp_path):
    write_task(tmp_path / "tasks", "asked", [question(n, fact=min(n // 3, 5)) for n in range(40)], group="fact")
    requests = frozen(tmp_path, "[asked]").requests
    dice = np.random.default_rng(0)
    values = {"asked": dice.integers(0, 2, 40).astype(float).tolist()}
    baseline = row("baseline", scores={"asked": {"acc": Score(value=mean(values["asked"]), n=40)}})
    [aim] = objectives(requests, {"asked": ["asked"]}, "task")
    order = document_order_of(aim, requests, baseline, samples_of(values), seed=0)
    assert sorted(map(len, order.units)) == [3, 3, 3, 3, 3, 25]
    assert order.bound == pytest.approx(25 / 40 * 6)
    assert order.values(0, 6, samples_of(values)).mean() == pytest.approx(mean(values["asked"]))


def test_blocks_grow_by_half_of_what_was_drawn_and_end_with_the_last_unit():
    def ends(units, first):
        return DocumentOrder([[("t", n)] for n in range(units)], {}, {}).ends(first)

    assert ends(100, 16) == [16, 32, 48, 72, 100]
    assert ends(5, 16) == [5]
    assert ends(16, 16) == [16]
    assert ends(1000, 10)[-1] == 1000
    assert len(ends(100_000, 32)) < 25


def test_what_is_no_mean_of_values_between_zero_and_one_does_not_race_and_says_why(tmp_path):
    write_task(tmp_path / "tasks", "asked", [question(number) for number in range(8)])
    requests = frozen(tmp_path, "[asked, {task: almanac_text, limit: 2}]").requests
    values = {"asked": [1.0, 0.0] * 4}
    aim = Objective("asked", {"asked": ["asked"]}, {})

    def why(scores, values=values, aim=aim):
        return document_order_of(aim, requests, row("baseline", scores=scores), samples_of(values), seed=0)

    good = {"asked": {"acc": Score(value=0.5, n=8)}}
    assert isinstance(why(good), DocumentOrder)
    assert why({"asked": {"acc": Score(value=0.6, n=8)}}) == "the score on asked is no mean over documents"
    assert "between 0 and 1" in why({"asked": {"acc": Score(value=0.5, n=8)}}, {"asked": [2.0, -1.0] * 4})
    assert "no accuracy" in why({"asked": {"bleu": Score(value=0.5, n=8)}})
    assert "no accuracy" in why(
        {"almanac_text": {"word_perplexity": Score(value=5, n=2)}},
        aim=Objective("t", {"almanac_text": ["almanac_text"]}, {}),
    )
    assert "no score" in why({})


def test_perplexities_are_scored_in_full_and_one_choice_for_all_tasks_races_on_the_accuracies(tmp_path):
    text = RACED.replace("{validation: 0.7}", "{validation: 0.7, on: mean}").replace(
        "reducers: [svd, cr]", "reducers: [svd]"
    )
    text = text.replace("limit: 90}", "limit: 40}\n  - {task: almanac_text, limit: 6}")
    heard = Heard()
    directory = run(write_suite(tmp_path, text), tmp_path / "out", heard=heard).directory
    rows = on(directory, "validation")
    full = max(sum(one.selection.documents.values()) for one in rows)
    for one in rows:
        if one.selection.stopped is None:
            assert sum(one.selection.documents.values()) == full
            assert "word_perplexity" in one.scores["almanac_text"]
        else:
            assert "almanac_text" not in one.selection.documents
    assert any(one.selection.stopped for one in rows)
    [chosen] = [one for one in on(directory, "test") if one.reducer]
    assert chosen.selection.chosen_for == "mean"
    assert set(chosen.scores) == {"almanac_facts_rare", "almanac_text"}

    alone = RACED.replace("task: almanac_facts_rare, limit: 90", "task: almanac_text, limit: 8")
    (tmp_path / "texts").mkdir()
    heard = Heard()
    path = write_suite(tmp_path / "texts", alone.replace("{keep: [0.6, 0.05]}", "{keep: 0.6}"))
    directory = run(path, tmp_path / "texts" / "out", heard=heard).directory
    assert (
        "no race for almanac_text, every cell is scored in full: word_perplexity of almanac_text is no accuracy"
        in heard.notes
    )
    assert not any(one.selection.stopped for one in on(directory, "validation"))
