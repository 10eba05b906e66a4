"""What can change a number makes new cells; what cannot finds the rows that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lrbench.evaluation.sweep import SweepEngine
from lrbench.reducers import source_hash
from lrbench.reducers.registry import Registry
from lrbench.reduction.plan import methods
from lrbench.run.model_run import ModelSetup, open_model
from lrbench.run.runner import run_suite
from lrbench.suite.load import load_suite
from tests.support.faulty import quicken, write_parts
from tests.support.suites import Heard

SUITE = """\
name: identity
model: {pretrained: ./model, device: cpu}
task_paths: [./tasks]
plugins: [./mine.py]
tasks: [{task: which, limit: 4, num_fewshot: 1}]
reducers: [{rsvd: {oversample: 4}}, asvd, mine]
sweep:
  - {mode: each, layers: [1], weights: [mlp.down], rank: {rank: 9}}
calibration: {text: ./calibration.txt, samples: 4, length: 16}
"""
MINE = """\
import lrbench

class Mine(lrbench.Reducer):
    name = "mine"
    def reduce(self, weight, rank, context):
        return lrbench.LowRank(weight[:, :rank].clone(), weight[:rank].clone())

@lrbench.hookimpl
def lrbench_reducers():
    return [Mine]
"""
LABELS = {None, "rsvd", "asvd", "mine"}
EDITED = LABELS - {None}


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        quicken(patched)
        patched.setenv("LRBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    write_parts(folder)
    task = folder / "tasks" / "which.yaml"
    task.write_text(task.read_text() + "fewshot_split: test\n")
    (folder / "mine.py").write_text(MINE)
    (folder / "suite.yaml").write_text(SUITE)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may change. Tasks name their data by the absolute path, which is none of what defines it."""
    copied = tmp_path / "copy"
    shutil.copytree(original, copied)
    for task in (copied / "tasks").glob("*.yaml"):
        task.write_text(task.read_text().replace(str(original), str(copied)))
    return copied


def cells(folder: Path, *overrides: str, engine: str = "sweep", device: str | None = None, **making: Any):
    """Label -> hash of each cell, without scoring any."""
    suite = load_suite(folder / "suite.yaml", overrides=overrides)
    registry = Registry.load(suite.plugins)
    built = methods(suite, registry)
    share = open_model(ModelSetup(suite, suite.models[0], built, engine, device, False, lambda message: None))
    other = SweepEngine(share.loaded.model, share.loaded.tokenizer, share.tasks, **making) if making else None
    keys = share.keys(share.plan, other)
    return {cell.method and cell.method.label: keys[cell] for cell in share.plan.cells}


@pytest.fixture(scope="module")
def before(original):
    found = cells(original)
    assert set(found) == LABELS
    assert len(set(found.values())) == len(LABELS)
    return found


def changed(before, after):
    """Labels of the cells that are new."""
    return {label for label, cell in after.items() if before.get(label) != cell}


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_weight(folder):
    path = folder / "model" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["model.norm.weight"][0] += 1
    path.unlink()  # whoever has it open keeps it
    save_file(tensors, path, {"format": "pt"})


def a_document(folder):
    path = folder / "tasks" / "which.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"question": "w3 w4 w5"}), *others]) + "\n")


def replacing(file, old, new):
    def change(folder):
        path = folder / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    return change


def other_vocabulary(folder):
    """The same words with other numbers."""
    path = folder / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace('"w3": 3', '"w3": 4').replace('"w4": 4', '"w4": 3', 1))


#: what is done to the files -> labels of the cells that it makes anew
FILES = {
    "a weight": (one_weight, LABELS),
    "the model's configuration": (lambda f: edit_json(f / "model" / "config.json", rms_norm_eps=1e-3), LABELS),
    "the model's generation": (lambda f: edit_json(f / "model" / "generation_config.json", top_k=3), LABELS),
    "the tokenizer": (other_vocabulary, LABELS),
    "a document": (a_document, LABELS),
    "the prompt": (replacing("tasks/which.yaml", '"{{question}}"', '"w5 {{question}}"'), LABELS),
    "the task's version": (replacing("tasks/which.yaml", "version: 1", "version: 2"), LABELS),
    "a metric": (replacing("tasks/which.yaml", "aggregation: brier_score", "aggregation: mean"), LABELS),
    "a plugin's source": (replacing("mine.py", "weight[:rank].clone()", "weight[:rank].clone() * 2"), {"mine"}),
    "the calibration text": (replacing("calibration.txt", "w4 w4 w5\n\n", "w4 w5\n\n"), {"asvd"}),
    "nothing": (lambda folder: None, set()),
    "the suite's comments": (lambda f: (f / "suite.yaml").write_text("# hello\n" + SUITE + "\n"), set()),
    "the suite's folder": (lambda f: f.rename(f.parent / "elsewhere") and None, set()),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_define_a_result_make_its_cells_new(what, folder, before):
    change, new = FILES[what]
    change(folder)
    if not folder.exists():
        moved = folder.parent / "elsewhere"
        for task in (moved / "tasks").glob("*.yaml"):
            task.write_text(task.read_text().replace(str(folder), str(moved)))
        folder = moved
    assert changed(before, cells(folder)) == new


#: what a suite says -> labels of the cells that it makes anew
KEYS = {
    "model.dtype=bfloat16": LABELS,
    "model.label=other": LABELS,  # one model of two names is two rows
    "model.max_length=64": LABELS,
    "model.add_bos=true": LABELS,
    "model.attn_implementation=eager": LABELS,
    "seed=1": LABELS,
    "tasks.0.limit=3": LABELS,
    "tasks.0.num_fewshot=0": LABELS,
    "sweep.0.rank.rank=8": EDITED,
    "sweep.0.layers=0": EDITED,
    "sweep.0.weights=[mlp.up]": EDITED,
    "reducers=[{rsvd: {oversample: 3}}, asvd, mine]": {"rsvd"},
    "reducers=[{rsvd: {oversample: 4}}, {asvd: {alpha: 0.25}}, mine]": {"asvd"},
    "calibration.samples=3": {"asvd"},
    "calibration.length=8": {"asvd"},
    "calibration.seed=1": {"asvd"},
    "batch_size=1": set(),
    "frontier_memory=1.0e-6": set(),
    "model.device=cpu:0": set(),
    "measure=inference": set(),
    "name=other": set(),
    "calibration.damping=0.5": set(),  # of second moments, which none of these is given
    "reducers=[{rsvd: {oversample: 4}}, asvd, mine, svd]": {"svd"},
}


@pytest.mark.parametrize("override", KEYS)
def test_keys_that_define_a_result_make_its_cells_new(override, original, before):
    assert changed(before, cells(original, override)) == KEYS[override]


def test_factored_inference_makes_new_what_runs_as_factors(original, before):
    assert changed(before, cells(original, "inference=factored")) >= EDITED


def test_another_few_shot_seed_makes_new_cells_where_there_are_examples(original, before):
    assert cells(original, seed=1234) == before
    assert changed(before, cells(original, seed=1)) == LABELS


def test_how_cells_are_scored_makes_none_new(original, before):
    for engine in ("frozen", "harness"):
        assert cells(original, engine=engine) == before
    assert cells(original, device="cpu:0") == before
    assert cells(original, batch_size=2) == before


def test_two_revisions_are_told_apart_by_their_weights(original, folder, tmp_path, monkeypatch):
    """A branch that has moved on is another model; one that has not is the same by another name."""
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    one_weight(folder)
    for name, source, commit in (
        ("v1", original, "0" * 40), ("v1-again", original, "1" * 40), ("v2", folder, "2" * 40)
    ):  # fmt: skip
        shutil.copytree(source / "model", repository / "snapshots" / commit)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    v1, again, v2 = (
        cells(original, f"model={{pretrained: a/b, revision: {name}}}") for name in ("v1", "v1-again", "v2")
    )
    assert v1 == again
    assert changed(v1, v2) == LABELS


def test_what_cannot_change_a_number_scores_nothing_again(original, tmp_path):
    """The same in a run: budgets, the device's index and the engine find every row; another folder has none."""

    def run(out, *overrides, **options):
        suite = load_suite(original / "suite.yaml", overrides=overrides)
        return run_suite(suite, Registry.load(suite.plugins), tmp_path / out, progress=Heard(), **options)

    assert run("out").computed == 4
    for override in ("batch_size=2", "frontier_memory=1.0e-6"):
        assert (run("out", override).computed, run("out", override).reused) == (0, 4)
    assert run("out", device="cpu:0").computed == 0
    assert run("out", engine="frozen").computed == 0
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert run("moved").computed == 0


def test_rows_outlive_a_comment_in_a_plugin_and_not_an_operator(folder):
    """After comments and a docstring all rows are reused; after an operator its reducer's cell is scored again."""
    out, mine = folder / "out", folder / "mine.py"

    def run():
        suite = load_suite(folder / "suite.yaml")
        result = run_suite(suite, Registry.load(suite.plugins), out, progress=Heard())
        return result.computed, result.reused

    assert run() == (4, 0)
    mine.write_text(
        "# A comment.\n" + MINE.replace('"mine"\n', '"mine"\n\n    # Another.\n').replace(":\n", ":\n    'x'\n", 1)
    )
    assert run() == (0, 4)
    mine.write_text(MINE.replace("weight[:rank].clone()", "-weight[:rank]"))
    assert run() == (1, 3)


def test_rows_do_not_outlive_an_operator_where_ranks_are_shared_out(folder, monkeypatch):
    """In a package of lrbench that no list of files names: cells of all reducers are new, the baseline is not."""
    before = cells(folder)
    for package in ("linalg", "reducers", "reduction"):
        shutil.copytree(Path(source_hash.__file__).parent.parent / package, folder / "lrbench" / package)
    monkeypatch.setattr(source_hash, "_LRBENCH", folder / "lrbench")
    knapsack = folder / "lrbench" / "reduction" / "allocation" / "knapsack.py"
    knapsack.write_text("# A comment.\n" + knapsack.read_text())
    assert cells(folder) == before
    knapsack.write_text(knapsack.read_text().replace(" <= ", " < "))
    assert changed(before, cells(folder)) == EDITED
