"""lm-eval, pointed at a saved checkpoint, gives the numbers that lrbench's rows hold."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from lrbench.evaluation import ENGINES
from lrbench.models.edit import edited
from lrbench.models.load import bundled, load
from lrbench.reducers.registry import Registry
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import make_plan, methods
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import ModelSpec, load_suite
from lrbench.tasks.folders import BUNDLED
from tests.support.suites import run, write_suite

TASKS = """\
name: agreement
model: {name: almanac, device: cpu}
tasks:
  - {task: almanac_facts, limit: 12}
  - {task: almanac_agreement, limit: 12}
  - {task: almanac_arithmetic, limit: 12}
  - {task: almanac_text, limit: 12}
  - {task: almanac_recall, limit: 12}
reducers: [id]
sweep:
  - mode: together
    weights: [mlp]
    rank: {keep: [0.8]}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"), TASKS)


@pytest.fixture(scope="module")
def rows(suite, tmp_path_factory):
    result = run(suite, tmp_path_factory.mktemp("run"))
    assert isinstance(result.directory, RunDirectory)
    return list(result.directory.rows().values())


def load_tokenizer():
    return AutoTokenizer.from_pretrained(bundled()["almanac"])


def lm_eval_says(checkpoint, tasks):
    results = simple_evaluate(
        model="hf",
        model_args=f"pretrained={checkpoint}",
        device="cpu",
        batch_size=32,
        tasks=[*tasks],
        limit=12,
        task_manager=TaskManager(include_path=str(BUNDLED), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    named = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, name = key.partition(",")
            if name and not metric.endswith("_stderr"):
                named.setdefault(task, {})[metric if name == "none" else f"{metric},{name}"] = value
    return named


def same(row, said):
    ours = {task: {name: score.value for name, score in scores.items()} for task, scores in row.scores.items()}
    assert ours.keys() == said.keys()
    for task, scores in ours.items():
        assert scores == pytest.approx(said[task], rel=1e-5), task


EMPTY = """\
task: contexts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_empty_and_one_token_contexts_are_what_lm_eval_makes_of_them(tmp_path):
    """lm-eval puts its prefix token there, or takes the continuation's first one where that is the prefix token."""
    prefix = load_tokenizer().bos_token or load_tokenizer().eos_token
    choices = [" the sea", " a", f"{prefix} the sea"]
    documents = [{"context": context, "choices": choices, "gold": 0} for context in ("", "a", " the", prefix)]
    (tmp_path / "contexts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "contexts.yaml").write_text(EMPTY.format(file=tmp_path / "contexts.jsonl"))
    text = "name: contexts\nmodel: {name: almanac, device: cpu}\ntask_paths: [.]\ntasks: [contexts]\nreducers: [svd]\n"
    sweep = "sweep: [{mode: each, layers: [0, 6], weights: [mlp.down], rank: {keep: 0.5}}]\n"
    suite = write_suite(tmp_path, text + sweep)
    ours, theirs = (run(suite, tmp_path / engine, engine=engine).directory for engine in ("sweep", "harness"))
    assert len(ours.rows()) == 3
    for cell in ours.rows():
        for mine, other in zip(ours.samples(cell), theirs.samples(cell), strict=True):
            assert mine["loglikelihoods"] == pytest.approx(other["loglikelihoods"], rel=1e-4, abs=1e-3)
            assert mine["greedy"] == other["greedy"]


def test_tokens_split_differently_are_no_matter(tmp_path):
    """lm-eval's cache of logits would take one request's place of the continuation for the others."""
    texts = [" the sea is", " the sea", " the"]
    rest = [" blue and wide", " is blue and wide", " sea is blue and wide"]
    documents = [{"context": a, "choices": [b, " a"], "gold": 0} for a, b in zip(texts, rest, strict=True)]
    (tmp_path / "contexts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "contexts.yaml").write_text(EMPTY.format(file=tmp_path / "contexts.jsonl"))
    text = "name: contexts\nmodel: {name: almanac, device: cpu}\ntask_paths: [.]\ntasks: [contexts]\nreducers: [svd]\n"
    suite = write_suite(tmp_path, text + "sweep: [{mode: each, layers: [6], weights: [mlp.down], rank: {keep: 0.5}}]\n")
    ours, *theirs = (run(suite, tmp_path / engine, engine=engine).directory for engine in ENGINES)
    for cell in ours.rows():
        for directory in theirs:
            for mine, other in zip(ours.samples(cell), directory.samples(cell), strict=True):
                assert mine["loglikelihoods"] == pytest.approx(other["loglikelihoods"], rel=1e-4, abs=1e-3)


def test_where_a_suite_chooses_few_shot_examples_are_those_of_all_documents(tmp_path):
    text = (
        TASKS[: TASKS.index("tasks:")] + "tasks: [{task: almanac_facts, limit: 12, num_fewshot: 1}]\nreducers: [svd]\n"
    )
    sweep = (
        "sweep: [{mode: each, layers: [6], weights: [mlp.down], rank: {keep: [0.5, 0.3]}}]\nselect: {validation: 0.5}\n"
    )
    suite = write_suite(tmp_path, text + sweep)
    ours, *theirs = (run(suite, tmp_path / engine, engine=engine).directory for engine in ENGINES)
    assert len(ours.rows()) == 5
    for directory in theirs:
        assert directory.rows().keys() == ours.rows().keys()
        for cell in ours.rows():
            for mine, other in zip(ours.samples(cell), directory.samples(cell), strict=True):
                assert mine["loglikelihoods"] == pytest.approx(other["loglikelihoods"], rel=1e-4, abs=1e-3)


def test_on_the_bundled_checkpoint_lm_eval_gives_the_baseline_row(suite, rows):
    tasks = [task.task for task in load_suite(suite).tasks]
    same(rows[0], lm_eval_says(bundled()["almanac"], tasks))


def test_on_a_dense_edited_copy_lm_eval_gives_the_edited_row(suite, rows, tmp_path):
    loaded_suite = load_suite(suite)
    loaded = load(ModelSpec(name="almanac"), device="cpu")
    plan = make_plan(loaded_suite, loaded.inventory, methods(loaded_suite, Registry.load()))
    [(cell, reductions)] = CellReducer(seed=0).reduce_group(plan.cells[1:])
    with edited({slot: reduction.matrix() for slot, reduction in zip(cell.slots, reductions, strict=True)}):
        loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    said = lm_eval_says(tmp_path, [task.task for task in loaded_suite.tasks])
    same(rows[1], said)
    assert rows[1].scores["almanac_text"] != rows[0].scores["almanac_text"]
