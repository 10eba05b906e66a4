"""lm-eval, pointed at a saved checkpoint, gives the numbers that lrbench's rows hold."""

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lrbench.models.edit import edited
from lrbench.models.load import bundled, load
from lrbench.plan import make_plan, methods
from lrbench.reductions import Reductions
from lrbench.registry import Registry
from lrbench.store import RunDirectory
from lrbench.suite import ModelSpec, load_suite
from lrbench.tasks.folders import BUNDLED
from tests.suites import run, write_suite

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


def test_on_the_bundled_checkpoint_lm_eval_gives_the_baseline_row(suite, rows):
    tasks = [task.task for task in load_suite(suite).tasks]
    same(rows[0], lm_eval_says(bundled()["almanac"], tasks))


def test_on_a_dense_edited_copy_lm_eval_gives_the_edited_row(suite, rows, tmp_path):
    loaded_suite = load_suite(suite)
    loaded = load(ModelSpec(name="almanac"), device="cpu")
    plan = make_plan(loaded_suite, loaded.inventory, methods(loaded_suite, Registry.load()))
    [(cell, reductions)] = Reductions(seed=0).of_group(plan.cells[1:])
    with edited({slot: reduction.matrix() for slot, reduction in zip(cell.slots, reductions, strict=True)}):
        loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    said = lm_eval_says(tmp_path, [task.task for task in loaded_suite.tasks])
    same(rows[1], said)
    assert rows[1].scores["almanac_text"] != rows[0].scores["almanac_text"]
