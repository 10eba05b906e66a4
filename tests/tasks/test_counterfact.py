import json
import math
from types import SimpleNamespace

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.errors import TaskError
from lrbench.evaluation.frozen import FrozenEngine
from lrbench.evaluation.interface import Job
from lrbench.evaluation.lm_eval_engine import HarnessEngine
from lrbench.evaluation.sweep import SweepEngine
from lrbench.models.edit import edited
from lrbench.models.load import bundled
from lrbench.tasks.counterfact import documents, from_hub
from lrbench.tasks.data import with_data
from lrbench.tasks.folders import BUNDLED
from lrbench.tasks.load import load_tasks


def spec(task, limit=None, num_fewshot=None, data=None):
    return SimpleNamespace(task=task, limit=limit, num_fewshot=num_fewshot, data=data)


def record(case, subject, prompt, paraphrases, answer, other):
    """As in ROME's counterfact.json, with all that is in it."""
    return {
        "case_id": case,
        "pararel_idx": 2796 + case,
        "requested_rewrite": {
            "prompt": prompt,
            "relation_id": "P103",
            "target_new": {"str": other, "id": "Q1860"},
            "target_true": {"str": answer, "id": "Q150"},
            "subject": subject,
        },
        "paraphrase_prompts": paraphrases,
        "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
        "attribute_prompts": [],
        "generation_prompts": [f"{subject}'s mother tongue is"],
    }


@pytest.fixture(scope="module")
def records():
    """Facts of almanac's world, in CounterFact's form and not in its order."""
    rows = [json.loads(line) for line in (BUNDLED / "recall.jsonl").open()][:12]
    made = []
    for case, row in enumerate(rows):
        subject = " ".join(row["question"].split()[:2])
        prompt = row["question"].replace(subject, "{}", 1)
        paraphrases = [f" In short: {row['question']} ", f"It is said. {row['question']}"]
        made.append(record(case, subject, prompt, paraphrases, row["answer"], rows[case - 1]["answer"]))
    return made[::-1]


@pytest.fixture
def file(tmp_path, records):
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def almanac():
    checkpoint = bundled()["almanac"]
    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)


def only_outcome(engine):
    (outcome,) = engine.score([Job("cell", None, lambda: edited({}))])
    assert outcome.error is None
    return outcome


def test_each_prompt_and_paraphrase_is_a_document_in_the_order_of_the_cases(file, records):
    task = load_tasks([spec("counterfact", data=file)]).tasks["counterfact"]

    asked = list(task.eval_docs)
    assert [document["case_id"] for document in asked] == [case for case in range(12) for _ in range(3)]
    assert [document["paraphrase"] for document in asked] == [0, 1, 2] * 12
    for document in asked:
        own = records[11 - document["case_id"]]
        rewrite = own["requested_rewrite"]
        prompts = [rewrite["prompt"].format(rewrite["subject"]), *own["paraphrase_prompts"]]
        assert document["question"] == prompts[document["paraphrase"]].strip()
        assert (document["answer"], document["other"]) == (rewrite["target_true"]["str"], rewrite["target_new"]["str"])


def test_accuracy_is_whether_the_answer_is_likeliest_and_perplexity_its_log_loss(almanac, file):
    model, tokenizer = almanac

    outcome = only_outcome(FrozenEngine(*almanac, load_tasks([spec("counterfact", data=file)])))

    losses, hits = [], []
    for document in load_tasks([spec("counterfact", data=file)]).tasks["counterfact"].eval_docs:
        context = tokenizer(document["question"]).input_ids
        whole = tokenizer(f"{document['question']} {document['answer']}").input_ids
        assert whole[: len(context)] == context
        with torch.no_grad():
            predicted = model(torch.tensor([whole])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        answer = torch.tensor(whole[len(context) :])
        losses.append(-float(predicted.gather(1, answer[:, None]).double().sum()))
        hits.append(bool((predicted.argmax(-1) == answer).all()))
    scores = outcome.scores["counterfact"]
    assert scores["acc"].value == sum(hits) / len(hits)
    assert 0 < scores["acc"].value < 1
    assert scores["perplexity"].value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert scores["perplexity"].stderr > 0
    assert scores["acc"].n == 36


def test_the_choice_is_between_the_true_answer_and_the_false_one(almanac, file):
    outcome = only_outcome(FrozenEngine(*almanac, load_tasks([spec("counterfact_choice", data=file)])))

    for sample in outcome.samples:
        true, false = sample["loglikelihoods"]
        assert sample["metrics"]["acc"] == (true > false)
    assert {len(sample["loglikelihoods"]) for sample in outcome.samples} == {2}


@pytest.mark.parametrize("kind", [FrozenEngine, HarnessEngine, SweepEngine])
def test_samples_of_one_fact_carry_the_same_group_in_every_engine(almanac, file, kind):
    outcome = only_outcome(kind(*almanac, load_tasks([spec("counterfact", data=file), spec("almanac_agreement", 3)])))

    groups = {sample["doc"]: sample["group"] for sample in outcome.samples if sample["task"] == "counterfact"}
    assert groups == {document: document // 3 for document in range(36)}
    assert all("group" not in sample for sample in outcome.samples if sample["task"] == "almanac_agreement")


def test_a_group_is_a_whole_unit_of_the_bootstrap(almanac, file):
    """As the table reads samples: twelve units, not thirty-six."""
    from lrbench.stats import paired_difference

    samples = only_outcome(FrozenEngine(*almanac, load_tasks([spec("counterfact", data=file)]))).samples
    values = {sample["doc"]: sample["metrics"]["acc"] for sample in samples}
    groups = {sample["doc"]: sample["group"] for sample in samples}

    difference = paired_difference(dict.fromkeys(values, 0.0), values, "acc", groups)

    assert difference.n == 36
    assert len(difference.steps) == 12


def test_the_hubs_splits_are_put_together(tmp_path, records):
    (tmp_path / "data").mkdir()
    for split, rows in (("train", records[:9]), ("test", records[9:])):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001-ab12.parquet")

    loaded = from_hub(path=str(tmp_path), version=1.0, group="case_id")

    assert list(loaded) == ["test"]
    assert len(loaded["test"]) == 12
    assert documents(loaded["test"])["case_id"] == [case for case in range(12) for _ in range(3)]


@pytest.mark.parametrize("dropped", ["case_id", "requested_rewrite", "paraphrase_prompts"])
def test_a_file_of_something_else_is_an_error_that_says_what_a_record_needs(tmp_path, records, dropped):
    rows = [{key: value for key, value in row.items() if key != dropped} for row in records]
    (tmp_path / "other.json").write_text(json.dumps(rows))

    with pytest.raises(TaskError, match=f"not CounterFact's records: each needs .*; they have no '{dropped}'"):
        load_tasks([spec("counterfact", data=tmp_path / "other.json")])


@pytest.mark.parametrize(
    "rewrite",
    [
        {"prompt": "{} is", "subject": "Kli", "target_true": {"str": "a"}},
        {"prompt": "{} is", "subject": "Kli", "target_true": {"id": "a"}, "target_new": {"str": "b"}},
        {"prompt": None, "subject": "Kli", "target_true": {"str": "a"}, "target_new": {"str": "b"}},
        "Kli is",
    ],
)
def test_a_record_that_lacks_something_is_an_error_with_its_case(tmp_path, records, rewrite):
    (tmp_path / "other.json").write_text(json.dumps([{**records[0], "case_id": 7, "requested_rewrite": rewrite}]))

    with pytest.raises(TaskError, match=r"not CounterFact's records: .*; case 7: "):
        load_tasks([spec("counterfact", data=tmp_path / "other.json")])


def test_few_shot_examples_come_from_the_file_and_are_never_the_prompt_itself(file):
    task = load_tasks([spec("counterfact", num_fewshot=2, data=file)]).tasks["counterfact"]
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)

    for instance in task.instances:
        *examples, question = instance.args[0].split("\n\n")
        assert len(examples) == 2
        assert not any(example.startswith(question) for example in examples)


def test_data_replaces_the_documents_of_any_task_of_one_yaml(tmp_path):
    rows = [{"question": f"Who is {n}", "choices": ["Kli", "Fan"], "gold": n % 2} for n in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    task = load_tasks([spec("almanac_facts_rare", data=tmp_path / "mine.jsonl")]).tasks["almanac_facts_rare"]

    assert list(task.eval_docs) == rows


def test_data_takes_the_place_of_every_split(tmp_path):
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    config = {
        "task": "hubs",
        "dataset_path": "org/name",
        "dataset_name": "main",
        "dataset_kwargs": {"revision": "abc"},
        "training_split": "train",
        "validation_split": "validation",
        "fewshot_split": "validation",
        "doc_to_text": "a",
    }

    changed = with_data(config, tmp_path / "mine.csv")

    assert changed == {
        **config,
        "custom_dataset": None,
        "dataset_path": "csv",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(tmp_path / "mine.csv")}},
        "training_split": None,
        "validation_split": None,
        "test_split": "validation",
        "fewshot_config": None,
    }
    with pytest.raises(TaskError, match="'hubs' has neither a test nor a validation split"):
        with_data({"task": "hubs", "training_split": "train"}, tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("counterfact", "nowhere.json", r"task 'counterfact': data file not found: .*nowhere\.json"),
        ("counterfact", "notes.md", r"task 'counterfact': data must be a file of \.arrow, \.csv, .*; not 'notes\.md'"),
        ("counterfact", "notes", "not 'notes'"),
        ("almanac_facts", "rows.jsonl", "with documents in files, but it has several tasks"),
        ("almanac_facts_*", "rows.jsonl", "tasks 'almanac_facts_\\*': 'data' is for a single task; name it"),
        ("counterfact", "rows.jsonl", "'counterfact'"),
    ],
)
def test_data_that_cannot_be_had_is_an_error_that_names_the_task(tmp_path, task, name, message):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "notes").write_text("x")
    (tmp_path / "rows.jsonl").write_text("{")

    with pytest.raises(TaskError, match=message) as raised:
        load_tasks([spec(task, data=tmp_path / name)])

    assert "\n" not in str(raised.value)
    assert raised.value.spec.task == task
