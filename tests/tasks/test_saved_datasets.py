"""Data sets in folders: `data: FOLDER` and `datasets: ROOT`."""

import json
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset, DatasetDict

from lrbench.cli import main
from lrbench.errors import SuiteError, TaskError
from lrbench.results.directory import RunDirectory
from lrbench.suite.load import load_suite, suite_again
from lrbench.tasks.load import load_tasks
from lrbench.tasks.saved_datasets import datasets_from, load_dataset, origin_of
from tests.support.suites import run, write_suite

PIQA = [{"goal": f"Open jar {n}", "sol1": "turn the lid", "sol2": "eat the lid", "label": n % 2} for n in range(6)]
ARC = [
    {"question": f"Is {n} even?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}, "answerKey": "AB"[n % 2]}
    for n in range(4)
]
MMLU = [{"question": f"{n} + 0?", "choices": list("0123"), "answer": n} for n in range(4)]


def spec(task, num_fewshot=None, data=None):
    return SimpleNamespace(task=task, limit=None, num_fewshot=num_fewshot, data=data)


def save(rows, folder):
    Dataset.from_list(rows).save_to_disk(str(folder))


def load(name, root, **options):
    with datasets_from(root):
        return load_tasks([spec(name, **options)]).tasks[name]


def prompts(task):
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    return [instance.args[0] for instance in task.instances]


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """The hub's answer, which is an error; files on this machine are read."""
    original = datasets.load_dataset

    def ask(path, *args, **options):
        if path in ("json", "arrow", "csv", "text"):
            return original(path, *args, **options)
        raise ConnectionError("no way out")

    monkeypatch.setattr("lrbench.tasks.saved_datasets._load_dataset", ask)


@pytest.mark.parametrize(
    "place",
    [
        "piqa/plain_text/validation",
        "piqa/none/validation",
        "piqa/validation",
        "baber/piqa/default/validation",
        "baber/piqa/validation",
        "ybisk/piqa/main/validation",
    ],
)
def test_a_task_finds_its_data_set_whatever_the_organisation_and_the_name_of_no_configuration(tmp_path, place):
    save(PIQA, tmp_path / place)

    task = load("piqa", tmp_path)

    assert list(task.eval_docs) == PIQA
    assert origin_of(task) == {"split": "validation", "folder": place.removesuffix("/validation")}


def test_the_root_counts_in_a_working_directory_that_has_a_folder_of_the_data_sets_name(tmp_path, monkeypatch):
    save(PIQA, tmp_path / "baber" / "piqa" / "default" / "validation")
    monkeypatch.chdir(tmp_path)

    assert list(load("piqa", tmp_path).eval_docs) == PIQA


def test_documents_for_few_shot_examples_are_those_of_the_split_and_not_read_one_by_one(tmp_path, monkeypatch):
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "choices": {
                "text": datasets.List(datasets.Value("string")),
                "label": datasets.List(datasets.Value("string")),
            },
            "answerKey": datasets.Value("string"),
            "class": datasets.ClassLabel(names=["A", "B"]),
            "nested": datasets.List({"n": datasets.Value("int64")}),
        }
    )
    documents = [{**row, "class": row["answerKey"], "nested": [{"n": 1}, {"n": 2}]} for row in ARC]
    Dataset.from_list(documents, features).save_to_disk(str(tmp_path / "ai2_arc" / "ARC-Easy" / "test"))
    expected = list(Dataset.load_from_disk(str(tmp_path / "ai2_arc" / "ARC-Easy" / "test")))
    monkeypatch.setattr(Dataset, "__iter__", None)

    task = load("arc_easy", tmp_path)

    assert task.sampler.df == expected


def test_the_same_organisation_is_preferred_then_none(tmp_path):
    for number, place in enumerate(["other/piqa/none", "piqa/none", "baber/piqa/none"]):
        save(PIQA[: number + 1], tmp_path / place / "validation")
        assert len(load("piqa", tmp_path).eval_docs) == number + 1


def test_a_configuration_of_another_data_set_is_no_data_set(tmp_path):
    save(PIQA, tmp_path / "glue" / "piqa" / "validation")

    with pytest.raises(TaskError, match=r"has no data set 'baber/piqa', and the hub did not give it: .*no way out"):
        load("piqa", tmp_path)


def test_a_group_finds_the_data_of_all_its_tasks_and_examples_in_their_split(tmp_path):
    names = ["abstract_algebra", "college_mathematics", "elementary_mathematics", "high_school_mathematics"]
    for name in [*names, "high_school_statistics"]:
        save(MMLU, tmp_path / "hails" / "mmlu_no_train" / name / "test")
        save(MMLU * 2, tmp_path / "hails" / "mmlu_no_train" / name / "dev")

    with datasets_from(tmp_path):
        tasks = load_tasks([spec("mmlu_math")])

    assert tasks.summary() == ["mmlu_math: 5 tasks, 20 documents, 5-shot"]
    assert origin_of(tasks.tasks["mmlu_college_mathematics"]) == {
        "split": "test",
        "examples": "dev",
        "folder": "hails/mmlu_no_train/college_mathematics",
    }


def test_a_missing_test_split_is_replaced_by_the_tasks_validation_split_and_said(tmp_path):
    save(ARC, tmp_path / "ai2_arc" / "ARC-Easy" / "validation")

    with datasets_from(tmp_path):
        tasks = load_tasks([spec("arc_easy")])

    assert list(tasks.tasks["arc_easy"].eval_docs) == ARC
    assert tasks.summary() == ["arc_easy: 4 documents, 0-shot, split 'validation' in place of 'test'"]
    assert origin_of(tasks.tasks["arc_easy"])["missing"] == {"scored": "test"}


def test_other_splits_and_configurations_do_not_replace_a_missing_one(tmp_path):
    save(ARC, tmp_path / "ai2_arc" / "ARC-Easy" / "train")

    with pytest.raises(TaskError, match=r"'arc_easy': .*ARC-Easy has no split 'test' or 'validation'; it has train$"):
        load("arc_easy", tmp_path)
    with pytest.raises(
        TaskError, match=r"'arc_challenge': .*ai2_arc has no configuration 'ARC-Challenge'; it has ARC-"
    ):
        load("arc_challenge", tmp_path)


def test_examples_come_from_the_training_split(tmp_path):
    save(PIQA[:3], tmp_path / "piqa" / "none" / "validation")
    save(PIQA[3:], tmp_path / "piqa" / "none" / "train")

    task = load("piqa", tmp_path, num_fewshot=2)

    assert all(not any(f"jar {n}" in text.rsplit("Question", 1)[0] for n in range(3)) for text in prompts(task))
    assert origin_of(task) == {"split": "validation", "examples": "train", "folder": "piqa/none"}


@pytest.mark.parametrize("way", ["root", "folder", "dict", "file"])
@pytest.mark.parametrize("name", ["piqa", "arc_easy"])
def test_without_a_training_split_examples_are_scored_documents_and_never_the_prompts_own(tmp_path, way, name):
    rows, path = (PIQA, "piqa/none") if name == "piqa" else (ARC, "ai2_arc/ARC-Easy")
    save(rows, tmp_path / path / "validation")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"folder": tmp_path / path / "validation", "dict": tmp_path / path, "file": tmp_path / "rows.jsonl"}

    task = load(name, tmp_path if way == "root" else None, num_fewshot=2, data=data.get(way))

    for text in prompts(task):
        *examples, question = text.split("\n\n")
        assert len(examples) == 2
        assert not any(example.startswith(question) for example in examples)
    origin = origin_of(task)
    assert origin["examples"] == origin["split"]
    assert ("missing" in origin) == (way != "file")


def test_data_sets_of_one_name_by_several_others_are_refused(tmp_path):
    save(PIQA, tmp_path / "a" / "piqa" / "none" / "validation")
    save(PIQA, tmp_path / "b" / "piqa" / "none" / "validation")

    with pytest.raises(TaskError, match=r"several data sets 'piqa' \(a/piqa, b/piqa\), and none is 'baber/piqa'"):
        load("piqa", tmp_path)


def test_data_takes_an_arrow_file_and_saved_folders(tmp_path):
    DatasetDict(validation=Dataset.from_list(PIQA), other=Dataset.from_list(PIQA[:1])).save_to_disk(tmp_path / "all")
    [arrow] = (tmp_path / "all" / "validation").glob("*.arrow")

    for data in (tmp_path / "all", tmp_path / "all" / "validation", arrow):
        assert list(load("piqa", None, data=data).eval_docs) == PIQA
    assert len(load("piqa", None, data=tmp_path / "all" / "other").eval_docs) == 1


def test_a_folder_that_is_not_a_saved_data_set_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    DatasetDict(a=Dataset.from_list(PIQA), b=Dataset.from_list(PIQA)).save_to_disk(tmp_path / "all")
    save(PIQA, tmp_path / "rows")
    Dataset.from_list(PIQA).filter(lambda row: False).save_to_disk(tmp_path / "none")
    Dataset.from_list(PIQA).select([]).save_to_disk(tmp_path / "nothing")  # writes no file of documents

    for name, message in (
        ("empty", "'piqa': .*empty is no data set saved by save_to_disk; it is empty"),
        ("texts", "'piqa': .*texts is no data set saved by save_to_disk; it has a.txt"),
        ("all", "'piqa': .*all has no split 'validation'; it has a, b"),
        ("none", "'piqa': it has no documents"),
        ("nothing", "'piqa': .*nothing has no documents"),
    ):
        with pytest.raises(TaskError, match=message):
            load("piqa", None, data=tmp_path / name)


def test_a_data_set_of_a_newer_version_or_a_damaged_one_is_refused_in_one_line(tmp_path):
    save(PIQA, tmp_path / "piqa" / "none" / "validation")
    info = tmp_path / "piqa" / "none" / "validation" / "dataset_info.json"
    written = info.read_text()
    info.write_text(written.replace('"Value"', '"Tomorrow"'))

    message = r"task 'piqa': .*validation cannot be read: ValueError: .*Tomorrow.*; a newer version of datasets than"
    with pytest.raises(TaskError, match=message):
        load("piqa", tmp_path)
    info.write_text(written)
    next(info.parent.glob("*.arrow")).unlink()
    with pytest.raises(TaskError, match=r"validation is incomplete or damaged; copy it again: FileNotFoundError"):
        load("piqa", tmp_path)


def test_a_file_of_documents_that_is_cut_off_is_refused_with_the_fault(tmp_path):
    save(PIQA * 5000, tmp_path / "rows")
    [arrow] = (tmp_path / "rows").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:50_000])

    with pytest.raises(TaskError, match=r"rows is incomplete or damaged; copy it again: .*Expected to be able to read"):
        load("piqa", None, data=tmp_path / "rows")
    with pytest.raises(TaskError, match=r"'piqa' cannot be loaded: .*Expected to be able to read"):
        load("piqa", None, data=arrow)


@pytest.mark.parametrize(
    ("task", "rows", "lacks"),
    [
        (
            "piqa",
            [{"goal": "g", "sol1": "a", "sol2": "b", "answer": 0}],
            "reads 'label', .* they have goal, sol1, sol2",
        ),
        ("piqa", [{"q": "g", "sol1": "a", "label": 0}], "reads 'goal', 'sol2', which its documents lack; they have"),
        ("almanac_facts_rare", [{"question": "q", "gold": 0}], "reads 'choices', which .* they have question, gold"),
        ("winogrande", [{"sentence": "_ is", "option1": "a", "answer": "1"}], "reads 'option2', .* they have sentence"),
        ("hellaswag", [{"ctx_a": "a", "ctx_b": "b", "endings": ["c"], "label": "0"}], "reads 'activity_label', which"),
        ("text_tokens", [{"words": "a"}], "reads 'text', which its documents lack; they have words"),
        ("wikitext", [{"text": "a"}], "reads 'page', which its documents lack; they have text"),
    ],
)
def test_a_field_that_the_prompt_reads_and_the_documents_lack_is_named(tmp_path, task, rows, lacks):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(rows, tmp_path / "saved")

    for data in (tmp_path / "rows.jsonl", tmp_path / "saved"):
        with pytest.raises(TaskError, match=f"task '{task}' {lacks}"):
            load(task, None, data=data)


def test_a_field_that_a_template_may_lack_and_a_constant_answer_are_not_missed(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Is it?"}) + "\n")
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_choice: [yes it is, never]\ndoc_to_target: never\n"
        "doc_to_text: \"{{hint if hint is defined else ''}}{{rule|default('')}}{{question}}\"\n"
        "metric_list: [{metric: acc}]\n"
    )

    assert load_tasks([spec("mine")], [tmp_path]).tasks["mine"].config.doc_to_target == "never"


def test_counterfact_reads_all_splits_of_the_root(tmp_path):
    def fact(case):
        answers = {"target_true": {"str": "a"}, "target_new": {"str": "b"}}
        rewrite = {"prompt": "{} is", "subject": f"S{case}", **answers}
        return {"case_id": case, "requested_rewrite": rewrite, "paraphrase_prompts": ["x", "y"]}

    save([fact(2), fact(0)], tmp_path / "counterfact" / "none" / "train")
    save([fact(1)], tmp_path / "counterfact" / "none" / "test")

    task = load("counterfact", tmp_path)

    assert [doc["case_id"] for doc in task.eval_docs] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(TaskError, match=r"'counterfact': .* has no data set 'azhx/counterfact', and the hub"):
        load("counterfact", tmp_path / "counterfact")


def test_a_split_of_the_root_is_loaded_by_name(tmp_path):
    save(PIQA, tmp_path / "texts" / "en" / "train")

    with datasets_from(tmp_path):
        assert list(load_dataset("org/texts", "en", split="train")) == PIQA
        assert list(load_dataset("texts", "en")) == ["train"]
        with pytest.raises(TaskError, match="en has no split 'test'; it has train"):
            load_dataset("texts", "en", split="test")
    with pytest.raises(ConnectionError):
        load_dataset("texts", "en", split="train")


SUITE = """\
name: saved
model: {name: almanac, device: cpu}
datasets: sets
tasks: [{task: piqa, num_fewshot: 1}]
reducers: [svd]
sweep:
  - {mode: together, layers: [5], weights: [mlp.down], rank: {keep: [0.3]}}
"""


def test_the_root_of_a_suite_is_relative_to_it_stays_out_of_its_hash_and_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "sets").mkdir()
    (tmp_path / "more").mkdir()
    suite = load_suite(write_suite(tmp_path, SUITE))
    bare = load_suite(write_suite(tmp_path, SUITE.replace("datasets: sets\n", "")))

    assert suite.datasets == tmp_path / "sets"
    assert suite.resolved()["datasets"] == "sets"
    assert bare.datasets is None
    assert bare.hash == suite.hash
    monkeypatch.setenv("LRBENCH_DATASETS", str(tmp_path / "more"))
    by_setting = load_suite(tmp_path / "suite.yaml")
    assert by_setting.datasets == tmp_path / "more"
    assert suite_again(suite.resolved(), tmp_path / "m.json", suite.local_paths()).datasets == tmp_path / "sets"
    (tmp_path / "sets").rmdir()
    assert suite_again(suite.resolved(), tmp_path / "m.json", suite.local_paths()).datasets == tmp_path / "more"
    monkeypatch.delenv("LRBENCH_DATASETS")
    again = by_setting.resolved(), tmp_path / "m.json", by_setting.local_paths()
    assert suite_again(*again).datasets == tmp_path / "more"
    (tmp_path / "more").rmdir()
    assert suite_again(*again, with_tasks=False).datasets is None
    with pytest.raises(SuiteError, match=r"no such folder of data sets: .*more"):
        suite_again(*again)


def test_a_root_that_is_not_there_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    path = str(write_suite(tmp_path, SUITE))

    assert main(["check", path]) == 2
    assert main(["check", path, "--datasets", str(tmp_path / "none")]) == 2
    (tmp_path / "sets").mkdir()
    assert main(["check", path]) == 2
    monkeypatch.setenv("LRBENCH_DATASETS", str(tmp_path / "gone"))
    assert main(["check", str(write_suite(tmp_path, SUITE.replace("datasets: sets\n", "")))]) == 2

    first, second, third, fourth = capsys.readouterr().err.strip().splitlines()
    assert first.endswith(f"suite.yaml:3:11: no such folder of data sets: {tmp_path}/sets")
    assert second.endswith(f"no such folder of data sets: {tmp_path}/none")
    assert "suite.yaml:4:9: task 'piqa':" in third
    assert f"{tmp_path}/sets has no data set 'baber/piqa'" in third
    assert fourth.endswith(f"LRBENCH_DATASETS: no such folder of data sets: {tmp_path}/gone")


def test_the_same_documents_make_the_same_cells_wherever_they_come_from(tmp_path):
    save(PIQA, tmp_path / "sets" / "piqa" / "none" / "validation")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PIQA))
    from_file = SUITE.replace("datasets: sets\n", "").replace("piqa,", "piqa, data: rows.jsonl,")

    run(write_suite(tmp_path, from_file), tmp_path / "file")
    run(write_suite(tmp_path, SUITE), tmp_path / "root")

    expected = RunDirectory(tmp_path / "file").rows()
    rows = RunDirectory(tmp_path / "root").rows()
    assert list(rows) == list(expected)
    assert [row.scores for row in rows.values()] == [row.scores for row in expected.values()]
    [model] = RunDirectory(tmp_path / "root").manifest()["models"]
    assert model["engine"]["tasks"]["piqa"]["data"] == {
        "split": "validation",
        "examples": "validation",
        "folder": "piqa/none",
        "missing": {"examples": "train"},
    }


def test_boolqs_passages_are_halved_by_passage_not_by_question(tmp_path):
    rows = [{"question": f"{n}?", "answer": True, "passage": f"Passage {n % 5}."} for n in range(12)]
    save(rows, tmp_path / "boolq" / "none" / "validation")
    task = load("boolq_tokens", tmp_path)

    halves = [[document["text"] for document in documents] for documents in (task.training_docs(), task.eval_docs)]

    assert halves == [["Passage 0.", "Passage 1."], ["Passage 2.", "Passage 3.", "Passage 4."]]
    assert origin_of(task)["split"] == "test"
