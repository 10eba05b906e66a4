import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.evaluation.frozen import FrozenEngine
from lrbench.evaluation.interface import Job
from lrbench.models.almanac.corpus import Corpus
from lrbench.models.almanac.questions import sums, write
from lrbench.models.edit import edited
from lrbench.models.load import bundled
from lrbench.tasks.folders import BUNDLED
from lrbench.tasks.load import load_tasks

NAMES = ["almanac_facts", "almanac_agreement", "almanac_arithmetic", "almanac_text", "almanac_recall"]


def spec(task, limit=None, num_fewshot=None):
    return SimpleNamespace(task=task, limit=limit, num_fewshot=num_fewshot)


@pytest.fixture(scope="module")
def committed():
    return {path.stem: [json.loads(line) for line in path.open()] for path in BUNDLED.glob("*.jsonl")}


def test_the_seed_generates_the_committed_documents_byte_for_byte(tmp_path):
    write(tmp_path, Corpus())

    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in BUNDLED.glob("*.jsonl")}


def test_another_seed_makes_other_documents(committed):
    assert sums(Corpus(21)) != committed["arithmetic"]


def test_no_document_is_asked_twice_and_no_choice_stands_twice(committed):
    for rows in committed.values():
        asked = [row.get("question") or row.get("text") or tuple(sorted(row["choices"])) for row in rows]
        assert len(set(asked)) == len(asked)
        assert all(len(set(row.get("choices", []))) == len(row.get("choices", [])) for row in rows)


def test_the_right_answer_stands_anywhere(committed):
    for name in ("facts_frequent", "facts_middle", "facts_rare", "arithmetic", "agreement"):
        places = [row["gold"] for row in committed[name]]
        fair = len(places) / len(committed[name][0]["choices"])
        assert all(0.7 * fair < places.count(place) < 1.3 * fair for place in set(places))


def test_nothing_asked_was_trained_in_the_words_it_is_asked_in(committed):
    trained = {sentence for text, _ in Corpus().training() for sentence in text.removesuffix(".").split(". ")}
    for rows in committed.values():
        for row in rows:
            if "question" in row:
                asked = [f"{row['question']} {row['answer'] if 'answer' in row else row['choices'][row['gold']]}"]
            elif "text" in row:
                asked = row["text"].removesuffix(".").split(". ")
            else:
                asked = [row["choices"][row["gold"]].removesuffix(".")]
            assert not trained.intersection(asked)


def test_every_fact_was_trained_and_the_rarer_thirds_less_often(committed):
    counts = [[row["trained"] for row in committed[f"facts_{third}"]] for third in ("frequent", "middle", "rare")]

    assert all(min(third) > 0 for third in counts)
    assert mean(counts[0]) > 2 * mean(counts[1]) > 2 * mean(counts[2])


def test_a_few_shot_example_is_never_the_question_itself():
    tasks = load_tasks([spec("almanac_arithmetic", num_fewshot=150)])
    task = tasks.tasks["almanac_arithmetic"]
    task.set_fewshot_seed(0)
    task.build_all_requests(limit=20, rank=0, world_size=1)

    for instance in task.instances:
        *examples, question = instance.args[0].split(".\n")
        assert len(examples) == 150
        assert not any(example.startswith(question) for example in examples)


@pytest.mark.slow
def test_lm_eval_itself_gives_the_same_numbers_from_any_folder(tmp_path):
    checkpoint = bundled()["almanac"]
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={checkpoint}"),
        *("--tasks", ",".join(NAMES), "--include_path", str(BUNDLED), "--device", "cpu", "--batch_size", "32"),
        *("--limit", "10", "--num_fewshot", "1", "--output_path", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = Path(tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]

    few_shot = {"almanac_facts": 1, "almanac_arithmetic": 1, "almanac_recall": 1}  # the others say 0 themselves
    engine = FrozenEngine(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
        load_tasks([spec(name, 10, few_shot.get(name)) for name in NAMES]),
    )
    (outcome,) = engine.score([Job("baseline", None, lambda: edited({}))])
    for task, metrics in outcome.scores.items():
        for metric, score in metrics.items():
            assert score.value == pytest.approx(theirs[task][f"{metric},none"], rel=1e-5)
            if "per" not in metric:  # lm-eval has no closed form for perplexities
                assert score.stderr == pytest.approx(theirs[task][f"{metric}_stderr,none"], rel=1e-5)
