"""Choosing on validation documents and reporting on test documents: the split, the choice, runs and their tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lrbench.analysis.leaderboard import build
from lrbench.errors import InputError, SuiteError, TaskError
from lrbench.reports.render import renderer
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Score
from lrbench.run.selection.choice import Candidate, choose
from lrbench.run.selection.objective import Objective, objectives
from lrbench.run.selection.split import split
from lrbench.suite.load import load_suite
from tests.support.slow_cases import slow_cases
from tests.support.suites import MISBEHAVING, Heard, run, write_suite
from tests.support.synthetic_run import edit, row, simple_run

SELECTED = """\
name: selected
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts_rare, limit: 30}
  - {task: almanac_text, limit: 8}
reducers: [svd, cr]
sweep:
  - layers: [5]
    weights: [mlp.down, attn.o]
    rank: {keep: [0.5, 0.1]}
select: {validation: 0.4, seed: 1}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"), SELECTED)


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory):
    return run(suite, tmp_path_factory.mktemp("run") / "whole").directory


def facts(directory):
    return [
        (row.cell, row.status, row.scores, row.selection, directory.samples(row.cell))
        for row in directory.rows().values()
    ]


# The suite.


def test_true_stands_for_the_defaults_and_what_is_left_out_changes_no_hash(tmp_path):
    def of(text):
        return load_suite(write_suite(tmp_path, text))

    without = SELECTED.replace("select: {validation: 0.4, seed: 1}\n", "")
    assert of(without).select is None
    assert "select" not in of(without).resolved()
    assert of(without).hash == of(without + "select: false\n").hash == of(without + "select: null\n").hash
    defaults = of(without + "select: true\n")
    assert (defaults.select.validation, defaults.select.seed, defaults.select.on) == (0.2, 0, "task")
    assert defaults.hash == of(without + "select: {}\n").hash == of(without + "select: {on: task}\n").hash
    assert len({of(without).hash, defaults.hash, of(SELECTED).hash, of(without + "select: {on: mean}\n").hash}) == 4


@pytest.mark.parametrize(
    ("written", "column", "problem"),
    [
        ("select: yes", 9, "'select' takes a mapping"),
        ("select: [0.2]", 9, "'select' takes a mapping"),
        ("select: {validation: 0}", 22, "must be more than 0"),
        ("select: {validation: 1}", 22, "must be less than 1"),
        ("select: {validation: half}", 22, "takes a number"),
        ("select: {seed: -1}", 16, "must be at least 0"),
        ("select: {on: cell}", 14, "unknown on 'cell'; known: task, mean"),
        ("select: {validaton: 0.3}", 10, "did you mean 'validation'"),
    ],
)
def test_what_is_no_selection_is_refused_at_its_place(tmp_path, written, column, problem):
    text = SELECTED.replace("select: {validation: 0.4, seed: 1}", written)
    with pytest.raises(SuiteError, match=rf"suite\.yaml:11:{column}: .*{problem}"):
        load_suite(write_suite(tmp_path, text))


def test_too_few_documents_for_two_sides_are_an_error_at_the_suites_line_and_nothing_is_scored(tmp_path):
    path = write_suite(tmp_path, SELECTED.replace("limit: 8", "limit: 1"))
    with pytest.raises(SuiteError, match=r"suite\.yaml:11:\d+: task 'almanac_text': all of its 1 documents fall to"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


# The split.

QUESTION = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: ./{name}.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: gold
metadata: {{version: 1.0{group}}}
"""


def write_task(folder: Path, name: str, documents: list[dict], group: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(QUESTION.format(name=name, group=f", group: {group}" if group else ""))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))


def question(number: int, **fields) -> dict:
    return {"question": f"How many is {number}?", "choices": ["one", "two", "three"], "gold": number % 3, **fields}


def frozen(folder: Path, tasks: str):
    """The requests of a suite's tasks."""
    from lrbench.evaluation import make_engine
    from lrbench.models.load import load
    from lrbench.run.inputs import tasks_of

    path = folder / "suite.yaml"
    path.write_text(
        f"model: {{name: almanac, device: cpu}}\ntask_paths: [./tasks]\ntasks: {tasks}\nreducers: [svd]\n"
        "sweep: [{rank: {keep: 0.5}}]\n"
    )
    suite = load_suite(path)
    loaded = load(suite.models[0])
    return make_engine("frozen", loaded, tasks_of(suite), suite.models[0])


def test_paraphrases_of_one_fact_are_on_one_side_in_whichever_task_they_are(tmp_path):
    asked = [question(number, fact=f"fact {number // 3}") for number in range(90)]
    write_task(tmp_path / "tasks", "asked", asked, group="fact")
    write_task(tmp_path / "tasks", "reworded", asked[::-1], group="fact")
    write_task(tmp_path / "tasks", "plain", asked)
    engine = frozen(tmp_path, "[asked, reworded, plain]")
    found = split(engine.requests, 0.3, seed=0)

    def validated(task, documents):
        return {documents[index]["fact"] for index in found.validation[task]}

    assert validated("asked", asked) == validated("reworded", asked[::-1])
    assert not validated("asked", asked) & {asked[index]["fact"] for index in found.test["asked"]}
    assert len(found.validation["asked"]) % 3 == 0
    # without the key, documents of one fact are torn apart
    assert validated("plain", asked) & {asked[index]["fact"] for index in found.test["plain"]}
    for task in ("asked", "reworded", "plain"):
        assert sorted(found.validation[task] + found.test[task]) == list(range(90))


def test_a_documents_side_depends_on_nothing_but_itself_the_share_and_the_seed(tmp_path):
    documents = [question(number) for number in range(400)]
    write_task(tmp_path / "tasks", "asked", [*documents, *documents[:50]])
    all_of_it = frozen(tmp_path, "[asked]").requests
    whole = split(all_of_it, 0.2, seed=0)
    part = split(frozen(tmp_path, "[{task: asked, limit: 40}]").requests, 0.2, seed=0)
    assert part.validation["asked"] == [index for index in whole.validation["asked"] if index < 40]
    assert abs(len(whole.validation["asked"]) / 450 - 0.2) < 0.06
    twice = [index for index in whole.validation["asked"] if index >= 400]
    assert twice == [index + 400 for index in whole.validation["asked"] if index < 50]  # equal documents
    assert set(whole.validation["asked"]) < set(split(all_of_it, 0.5, seed=0).validation["asked"])
    assert whole.validation != split(all_of_it, 0.2, seed=1).validation


def test_samples_say_which_choice_is_right_and_what_belongs_together(tmp_path):
    documents = [question(number, fact=number // 2) for number in range(6)]
    documents[1]["gold"] = "three"  # lm-eval takes the choice itself, too
    write_task(tmp_path / "tasks", "asked", documents, group="fact")
    engine = frozen(tmp_path, "[asked]")
    for part in (engine, engine.restricted({"asked": [1, 4]})):
        from lrbench.evaluation.interface import Job
        from lrbench.models.edit import edited

        _, samples = part.measure(Job("x", None, lambda: edited({})))
        right = {sample["doc"]: sample["gold"] for sample in samples}
        assert right == {index: [0, 2, 2, 0, 1, 2][index] for index in right}
        assert {sample["doc"]: sample["group"] for sample in samples} == {index: index // 2 for index in right}
        for sample in samples:
            best = max(range(3), key=lambda choice: sample["loglikelihoods"][choice])
            assert sample["metrics"]["acc"] == float(best == sample["gold"])


def test_a_document_without_the_group_that_its_task_names_is_an_error(tmp_path):
    write_task(tmp_path / "tasks", "asked", [question(1, fact="a"), question(2, fact=None)], group="fact")
    with pytest.raises(TaskError, match=r"task 'asked', document 1: no field 'fact', the group field in its metadata"):
        frozen(tmp_path, "[asked]")


# The choice.

ACCURACY = Objective("t", {"t": ["t"]}, {"t": {"acc": True}})


def candidate(name: str) -> Candidate:
    class Cell:
        pass

    return Candidate(name, (Cell(),))


def chosen_of(*worth, objective=ACCURACY, metric="acc", status="ok"):
    """The number of the chosen one of candidates worth (value, log-loss, keep)."""
    among = [candidate("m") for _ in worth]
    rows, samples = {}, {}
    for number, (one, (value, loss, keep)) in enumerate(zip(among, worth, strict=True)):
        scores = {"t": {metric: Score(value=value, n=10)}} if value is not None else {}
        state = status if value is not None else "failed"
        rows[one.cells[0]] = row(str(number), status=state, scores=scores, keep_model=keep, reducer="m")
        samples[str(number)] = [{"task": "t", "doc": 0, "metrics": {}, "loglikelihoods": [-9.0, -loss], "gold": 1}]
    choice = choose(among, objective, rows, samples.__getitem__)
    return None if choice is None else among.index(choice.candidate)


def test_accuracy_decides_then_log_loss_then_size_then_the_order():
    assert chosen_of((0.5, 1, 0.9), (0.6, 9, 0.9), (0.4, 0, 0.1)) == 1
    assert chosen_of((0.6, 2, 0.9), (0.6, 1, 0.9), (0.6, 3, 0.1)) == 1
    assert chosen_of((0.6, 1, 0.9), (0.6, 1, 0.8), (0.6, 1, 0.8)) == 1
    assert chosen_of((0.6, 1, 0.8), (0.6, 1, 0.8)) == 0
    assert chosen_of((0.1 + 0.2, 2, 0.8), (0.3, 1, 0.8)) == 1  # a rounding is no difference


def test_what_failed_is_not_chosen_and_neither_is_what_has_no_finite_score():
    assert chosen_of((None, 0, 0.1), (0.1, 1, 0.9)) == 1
    assert chosen_of((math.nan, 0, 0.1), (0.1, 1, 0.9)) == 1
    assert chosen_of((None, 0, 0.1), (None, 1, 0.9)) is None
    perplexity = Objective("t", {"t": ["t"]}, {})
    assert chosen_of((math.inf, 0, 0.1), (7.0, 1, 0.9), objective=perplexity, metric="word_perplexity") == 1


def test_perplexities_are_better_lower_and_a_task_may_say_so_of_any_metric():
    perplexity = Objective("t", {"t": ["t"]}, {})
    assert chosen_of((9.0, 0, 1), (7.0, 0, 1), objective=perplexity, metric="word_perplexity") == 1
    said = Objective("t", {"t": ["t"]}, {"t": {"mine": False}})
    assert chosen_of((9.0, 0, 1), (7.0, 0, 1), objective=said, metric="mine") == 1
    assert chosen_of((9.0, 0, 1), (7.0, 0, 1), objective=perplexity, metric="mine") == 0


def test_seeds_are_one_candidate_with_their_mean_and_one_that_failed_fails_it():
    first, second = candidate("m"), candidate("m")
    both = Candidate("m", (*first.cells, *second.cells))
    other = candidate("m")
    values = {both.cells[0]: 0.9, both.cells[1]: 0.3, other.cells[0]: 0.7}
    rows = {
        cell: row(str(number), scores={"t": {"acc": Score(value=value, n=10)}}, reducer="m")
        for number, (cell, value) in enumerate(values.items())
    }
    assert choose([both, other], ACCURACY, rows, lambda cell: []).candidate is other
    rows[other.cells[0]] = rows[other.cells[0]].model_copy(update={"status": "failed"})
    assert choose([both, other], ACCURACY, rows, lambda cell: []).value == pytest.approx(0.6)
    rows[both.cells[1]] = rows[both.cells[1]].model_copy(update={"status": "failed"})
    assert choose([both, other], ACCURACY, rows, lambda cell: []) is None


def test_the_mean_is_the_leaderboards_score_of_accuracies_else_of_perplexities():
    def scores(**values):
        return {
            task: {("acc" if value < 1 else "word_perplexity"): Score(value=value, n=4)}
            for task, value in values.items()
        }

    mixed = Objective("mean", {"a": ["a"], "b": ["b"], "c": ["c"]}, {})
    assert mixed.value(row("x", scores=scores(a=0.5, b=0.7, c=20.0))) == pytest.approx(0.6)
    texts = Objective("mean", {"a": ["a"], "b": ["b"]}, {})
    assert texts.value(row("x", scores=scores(a=4.0, b=9.0))) == pytest.approx(-6.0)
    assert mixed.value(row("x", scores=scores(a=0.5, b=0.7))) == -math.inf  # a task is missing


def test_log_loss_is_of_the_right_choices_of_texts_whole_and_over_parts_their_mean():
    two = Objective("mean", {"a": ["a"], "b": ["b1", "b2"]}, {})
    samples = [
        {"task": "a", "doc": 0, "metrics": {}, "loglikelihoods": [-1.0, -2.0], "gold": 1},
        {"task": "a", "doc": 1, "metrics": {}, "loglikelihoods": [math.log(0.25), math.log(0.5), -9], "gold": [0, 1]},
        {"task": "b1", "doc": 0, "metrics": {}, "loglikelihoods": [-7.0]},
        {"task": "b2", "doc": 0, "metrics": {}, "loglikelihoods": [-9.0]},
        {"task": "b2", "doc": 1, "metrics": {}, "text": "written"},
        {"task": "elsewhere", "doc": 1, "metrics": {}, "loglikelihoods": [-99.0]},
    ]
    assert two.log_loss(samples) == pytest.approx(((2.0 - math.log(0.75)) / 2 + 8.0) / 2)
    assert two.log_loss(samples[4:]) == math.inf


# Runs.


def test_only_what_was_chosen_and_the_baseline_is_scored_on_test_and_it_was_best_on_validation(whole):
    rows = list(whole.rows().values())
    validated = [one for one in rows if one.selection.split == "validation"]
    tested = [one for one in rows if one.selection.split == "test"]
    assert len(validated) == 9
    assert [(one.label, one.selection.chosen_for) for one in tested] == [
        (None, None), ("svd", "almanac_facts_rare"), ("cr", "almanac_facts_rare"),
        ("svd", "almanac_text"), ("cr", "almanac_text"),
    ]  # fmt: skip
    for one in tested[1:]:
        task = one.selection.chosen_for
        metric, sign = ("acc", 1) if task == "almanac_facts_rare" else ("word_perplexity", -1)
        mine = [other for other in validated if other.label == one.label]
        assert one.selection.candidates == len(mine) == 4
        best = max(sign * other.scores[task][metric].value for other in mine)
        [cell] = one.selection.validation_cells
        [source] = [other for other in mine if other.cell == cell]
        assert sign * source.scores[task][metric].value == best
        assert [edit.weight for edit in source.edits] == [edit.weight for edit in one.edits]
        assert source.requested == one.requested
        assert list(one.scores) == [task]
        assert one.selection.documents == {task: one.scores[task][metric].n}
        assert one.selection.validated_on == {task: source.scores[task][metric].n}


def test_the_two_sides_share_no_document_and_have_all_of_them(whole):
    sides = {}
    for one in whole.rows().values():
        if one.reducer is None:
            sides[one.selection.split] = {(sample["task"], sample["doc"]) for sample in whole.samples(one.cell)}
    assert not sides["validation"] & sides["test"]
    assert len(sides["validation"] | sides["test"]) == 38
    for one in whole.rows().values():
        asked = {(sample["task"], sample["doc"]) for sample in whole.samples(one.cell)}
        assert asked <= sides[one.selection.split]


def test_the_engines_agree_on_what_is_chosen_and_on_its_scores(suite, whole, tmp_path):
    other = run(suite, tmp_path / "frozen", engine="frozen").directory
    assert list(other.rows()) == list(whole.rows())
    for mine, theirs in zip(whole.rows().values(), other.rows().values(), strict=True):
        assert mine.selection == theirs.selection
        for task, metrics in mine.scores.items():
            for metric, score in metrics.items():
                assert score.value == pytest.approx(theirs.scores[task][metric].value, rel=1e-4)


def test_a_second_run_computes_nothing_and_the_model_checks_itself_once(suite, whole):
    before = (whole.path / "rows.jsonl").read_bytes()
    again = run(suite, whole.path)
    assert (again.computed, again.reused) == (0, 14)
    assert (whole.path / "rows.jsonl").read_bytes() == before
    [model] = whole.manifest()["models"]
    assert model["cells"] == list(whole.rows())
    assert set(model["parts"]) == {"validation", "test", "test/almanac_facts_rare", "test/almanac_text"}
    checks = [
        model["engine"]["sweep"]["self_check"],
        *(p["engine"]["sweep"]["self_check"] for p in model["parts"].values()),
    ]
    assert all(check == checks[0] for check in checks)


@pytest.mark.parametrize("stop_after", [10, *slow_cases(1, 9, 12)])
def test_an_interrupted_selection_goes_on_to_the_same_rows(suite, whole, tmp_path, stop_after):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(suite, out, heard=Heard(stop_after))
    assert len(RunDirectory(out).rows()) == stop_after
    again = run(suite, out)
    assert (again.reused, again.computed) == (stop_after, 14 - stop_after)
    assert facts(again.directory) == facts(whole)
    assert again.directory.manifest()["cells"] == whole.manifest()["cells"]


def test_one_choice_for_the_mean_is_scored_on_the_test_documents_of_all_tasks(tmp_path):
    text = SELECTED.replace("seed: 1}", "seed: 1, on: mean}").replace("  - {task: almanac_text, limit: 8}\n", "")
    text = text.replace("limit: 30", "limit: 12").replace(
        "tasks:\n", "tasks:\n  - {task: almanac_agreement, limit: 12}\n"
    )
    directory = run(write_suite(tmp_path, text), tmp_path / "out").directory
    tested = [one for one in directory.rows().values() if one.selection.split == "test"]
    assert sorted((one.label or "", one.selection.chosen_for) for one in tested) == [
        ("", None),
        ("cr", "mean"),
        ("svd", "mean"),
    ]
    for one in tested:
        assert set(one.scores) == {"almanac_agreement", "almanac_facts_rare"}


def test_a_method_that_fails_everywhere_has_no_choice_and_one_that_is_mended_is_chosen_again(tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(MISBEHAVING)
    (tmp_path / "bad mood").touch()
    text = SELECTED.replace("[svd, cr]", "[svd, moody]").replace("  - {task: almanac_text, limit: 8}\n", "")
    text = text.replace("{keep: [0.5, 0.1]}", "{rank: [8, 3]}")
    path = write_suite(tmp_path, text.replace("limit: 30", "limit: 12"))
    heard = Heard()
    first = run(path, tmp_path / "out", plugin, heard=heard)
    assert first.failed == 4
    assert "moody: none of its 4 cells has a score on almanac_facts_rare: nothing chosen" in heard.notes
    board = build([first.directory])
    assert [entry.values["method"] for entry in board.entries] == ["baseline", "svd"]
    assert len(board.failures) == 4

    (tmp_path / "bad mood").unlink()
    again = run(path, tmp_path / "out", plugin, retry_failed=True)
    assert (again.failed, again.computed) == (0, 5)
    assert [entry.values["method"] for entry in build([again.directory]).entries] == ["baseline", "moody", "svd"]


def test_seeds_of_the_chosen_cell_are_all_reported(tmp_path):
    text = SELECTED.replace("[svd, cr]", "[random-columns]").replace(
        "  - {task: almanac_text, limit: 8}\n", "seeds: 2\n"
    )
    text = text.replace("seeds: 2\n", "", 1) + "seeds: 2\n"
    directory = run(write_suite(tmp_path, text.replace("limit: 30", "limit: 12")), tmp_path / "out").directory
    tested = [one for one in directory.rows().values() if one.selection.split == "test" and one.reducer]
    assert [one.seed for one in tested] == [0, 1]
    assert {one.selection.candidates for one in tested} == {4}
    assert len(tested[0].selection.validation_cells) == 2
    [_, line] = build([directory]).entries
    assert len(line.repeats) == 1


# Tables.


def test_the_leaderboard_says_what_was_chosen_for_what_among_how_many_and_on_how_many_documents(whole):
    board = build([whole])
    lines = [(entry.values["chosen_for"], entry.values["among"], entry.baseline) for entry in board.entries]
    assert lines[0] == ("", "", True)
    assert sorted(lines[1:]) == sorted(
        [("almanac_facts_rare", "4 cells", False)] * 2 + [("almanac_text", "4 cells", False)] * 2
    )
    assert not board.failures
    text = " ".join(renderer("terminal")(board).split())
    sizes = {task: n for one in whole.rows().values() for task, n in (one.selection.validated_on or {}).items()}
    assert "best on validation documents" in text
    assert f"almanac_facts_rare, 4 cells on {sizes['almanac_facts_rare']} documents" in text
    for name in ("markdown", "latex", "html", "csv", "json"):
        assert "chosen" in renderer(name)(board)


def test_scores_of_the_table_are_compared_with_the_baseline_on_the_same_side(whole):
    for validation in (False, True):
        for entry in build([whole], validation=validation).entries:
            for task, metrics in entry.metrics.items():
                for measured in metrics.values():
                    assert entry.baseline or measured.delta is not None, (task, validation)
                    assert entry.baseline or measured.difference is not None
    [baseline] = [one for one in whole.rows().values() if one.reducer is None and one.selection.split == "test"]
    acc = baseline.scores["almanac_facts_rare"]["acc"].value
    line = next(entry for entry in build([whole]).entries if entry.values["chosen_for"] == "almanac_facts_rare")
    measured = line.metrics["almanac_facts_rare"]["acc"]
    assert measured.delta == pytest.approx(measured.value - acc)


def test_the_validation_table_has_all_cells_and_says_what_it_is(whole):
    board = build([whole], validation=True)
    assert len(board.entries) == 9
    assert not board.selected
    assert "validation documents, on which cells are chosen" in renderer("terminal")(board)


def test_a_run_that_has_not_chosen_yet_says_so_and_how_to_go_on(suite, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "out", heard=Heard(3))
    for name in ("terminal", "markdown", "html"):
        assert "Nothing is chosen yet: the run has 3 rows" in renderer(name)(build([RunDirectory(tmp_path / "out")]))


def test_a_table_of_many_cells_on_the_same_documents_says_that_the_best_is_no_fair_pick(tmp_path):
    def cells(count, mode):
        yield row("base"), {"t": [1, 0, 1, 1]}
        for number in range(count):
            edits = [edit(number)]
            yield row(f"c{number}", reducer="svd", label="svd", mode=mode, edits=edits), {"t": [1, 0, 0, 1]}

    words = "`select` in the suite chooses"
    for count, mode, said in ((8, "each", True), (7, "each", False), (30, "together", False)):
        board = build([simple_run(tmp_path / f"{mode}{count}", list(cells(count, mode)))])
        assert (words in renderer("terminal")(board).replace("\n", " ")) is said


def test_a_chosen_cell_can_be_computed_again_from_its_run(whole):
    from lrbench.run.recompute import compute_again

    for one in whole.rows().values():
        if one.selection.split == "test" and one.reducer is not None:
            again = compute_again(whole, one.cell)
            assert again.row.cell == one.cell
            break
    else:
        pytest.fail("no chosen cell")


def test_an_interrupted_selection_merges_with_a_whole_one(suite, whole, tmp_path):
    from lrbench.results.merge import merge

    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "part", heard=Heard(4))
    for shards in ([tmp_path / "part", whole.path], [whole.path, tmp_path / "part"]):
        merged = merge(shards, tmp_path / shards[0].name / "merged")
        assert merged.missing == 0
        assert facts(merged.directory) == facts(whole)
        assert [entry.row.cell for entry in build([merged.directory]).entries] == [
            entry.row.cell for entry in build([whole]).entries
        ]


def test_check_says_what_is_chosen_and_predicts_the_validation_side(suite, tmp_path, monkeypatch, capsys):
    from lrbench.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["check", str(suite), "--probe"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "every cell on about 40% of each task's documents; each method's best cell for each task on the others" in said
    )
    assert "9 to score" in said
    assert "not in the time: the chosen cells on test documents" in said


def test_documents_of_objectives_are_those_of_the_suites_entries(tmp_path):
    engine = frozen(tmp_path_with_tasks(tmp_path), "[almanac_facts, asked]")
    named = {"almanac_facts": list(engine.requests.tasks)[:3], "asked": ["asked"]}
    aims = objectives(engine.requests, named, "task")
    assert [(aim.name, aim.tasks) for aim in aims] == [
        ("almanac_facts", ["almanac_facts_frequent", "almanac_facts_middle", "almanac_facts_rare"]),
        ("asked", ["asked"]),
    ]  # fmt: skip
    [mean] = objectives(engine.requests, named, "mean")
    assert list(mean.parts) == ["almanac_facts", "asked"]
    assert len(mean.tasks) == 4


def tmp_path_with_tasks(folder: Path) -> Path:
    write_task(folder / "tasks", "asked", [question(number) for number in range(9)])
    return folder


def test_race_needs_a_selection(tmp_path):
    text = SELECTED.replace("select: {validation: 0.4, seed: 1}", "race: {alpha: 0.05}")
    with pytest.raises(InputError, match=r"suite\.yaml:11:1: 'race' stops cells that cannot be chosen; it needs"):
        load_suite(write_suite(tmp_path, text))
