"""Calibration text: where it comes from, which windows are drawn, and that none of it is evaluated."""

import json
from itertools import pairwise

import datasets
import pytest
from transformers import AutoTokenizer

from lrbench.errors import SuiteError
from lrbench.evaluation import make_engine
from lrbench.models.almanac.corpus import Corpus
from lrbench.models.bundled_text import bundled_texts
from lrbench.models.load import bundled, load
from lrbench.reducers.registry import Registry
from lrbench.reduction.calibration import sources
from lrbench.reduction.calibration.overlap import RUN, Passages, find_evaluated_document
from lrbench.reduction.calibration.samples import draw
from lrbench.reduction.calibration.sources import read_text
from lrbench.reduction.plan import methods
from lrbench.suite.load import ModelSpec, load_suite
from lrbench.tasks.load import load_tasks
from lrbench.tasks.saved_datasets import datasets_from
from tests.support.suites import write_suite

WORDS = "The baker of Lund walked slowly to the harbour where seven grey ships waited for the tide to turn again."


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled()["almanac"])


def with_calibration(folder, calibration, **replaced):
    path = write_suite(folder, **replaced)
    path.write_text(path.read_text() + f"calibration: {calibration}\n")
    return path


def text_of(folder, calibration, evaluated=()):
    suite = load_suite(with_calibration(folder, calibration))
    return read_text(suite.calibration, suite.task_paths, dict(evaluated), lambda _: None)


def refusal(folder, calibration):
    with pytest.raises(SuiteError) as caught:
        text_of(folder, calibration)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(folder) + "/")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ("{}", "suite.yaml:13:14: a calibration has either 'name' (bundled text) or 'text'"),
        ("{name: almanac, text: a.txt}", "suite.yaml:13:14: a calibration has either"),
        ("{name: almanak}", "suite.yaml:13:21: no bundled calibration text 'almanak'; did you mean 'almanac'?"),
        ("3", "suite.yaml:13:14: 'calibration' takes a mapping, such as {text: ./text.txt, samples: 128}, not 3"),
        ("{txt: a.txt}", "suite.yaml:13:15: unknown key 'txt'; did you mean 'text'?"),
        ("{text: a.txt}", "suite.yaml:13:21: no such file of calibration text: "),
        ("{text: {file: a.txt}}", "suite.yaml:13:28: no such file of calibration text: "),
        ("{text: suite.yaml}", "suite.yaml:13:21: calibration text is a .txt or .jsonl file, not 'suite.yaml'"),
        ("{text: {}}", "suite.yaml:13:21: calibration text is exactly one of file, dataset, task"),
        ("{text: {file: a.txt, task: b}}", "suite.yaml:13:35: calibration text is exactly one of"),
        ("{text: {task: b, split: train}}", "suite.yaml:13:31: 'split' does not go with 'task'"),
        ("{name: almanac, samples: 0}", "suite.yaml:13:39: 'samples' must be at least 1, not 0"),
        ("{name: almanac, length: 1}", "suite.yaml:13:38: 'length' must be at least 2, not 1"),
        ("{name: almanac, damping: -1}", "suite.yaml:13:39: 'damping' must be at least 0, not -1"),
        ("{text: {task: almanac_fact}}", "suite.yaml:13:28: unknown task 'almanac_fact'"),
        ("{text: {task: almanac_text}}", "suite.yaml:13:28: task 'almanac_text' has no training split"),
        ("{text: {dataset: ./nowhere}}", "suite.yaml:13:31: data set './nowhere', split 'train': "),
    ],
)
def test_a_wrong_calibration_is_refused_at_its_place(tmp_path, calibration, message):
    assert refusal(tmp_path, calibration).startswith(message)


def test_text_is_read_from_files_and_from_data_sets(tmp_path):
    (tmp_path / "a.txt").write_text("One text.\n\nIn two parts.\n")
    assert text_of(tmp_path, "{text: a.txt}") == ["One text.\n\nIn two parts.\n"]
    lines = [{"text": "one", "body": "a"}, {"text": "two", "body": "b"}, {"text": " ", "body": "c"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert text_of(tmp_path, "{text: b.jsonl}") == ["one", "two"]
    assert text_of(tmp_path, "{text: {file: b.jsonl, column: body}}") == ["a", "b", "c"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text((tmp_path / "b.jsonl").read_text())
    assert text_of(tmp_path, "{text: {dataset: data, column: body}}") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "calibration", "message"),
    [
        ("", "{text: b.jsonl}", "suite.yaml:13:21: the calibration text is empty"),
        ('{"text": "a"}\n{"a"', "{text: b.jsonl}", "b.jsonl:2: not JSON"),
        ('{"body": "a"}', "{text: b.jsonl}", "b.jsonl:1: no column 'text' (it has body); set 'column'"),
        ('{"text": 3}', "{text: b.jsonl}", "b.jsonl:1: 'text' is no text"),
        ("[3]", "{text: b.jsonl}", "b.jsonl:1: no column 'text'"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_its_line(tmp_path, content, calibration, message):
    (tmp_path / "b.jsonl").write_text(content)
    found = refusal(tmp_path, calibration)
    assert found.startswith("suite.yaml:13:")
    assert message in found


def test_no_more_text_is_read_than_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "READ", 10)
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": "abcdef" * 10}) for _ in range(5)))
    found = text_of(tmp_path, "{text: b.jsonl, samples: 1, length: 2}")  # 40 characters a token
    assert [len(text) for text in found] == [60, 20]
    (tmp_path / "a.txt").write_text("abcdef" * 100)
    assert text_of(tmp_path, "{text: a.txt, samples: 2, length: 2}") == [("abcdef" * 100)[:160]]


def test_a_saved_data_set_is_read_from_its_folder_and_from_the_root(tmp_path):
    for split, texts in (("train", ["a", "b"]), ("test", ["c"])):
        rows = datasets.Dataset.from_dict({"text": texts})
        rows.save_to_disk(str(tmp_path / "sets" / "wikitext" / "raw" / split))
    assert text_of(tmp_path, "{text: {dataset: sets/wikitext/raw, split: test}}") == ["c"]
    with datasets_from(tmp_path / "sets"):
        assert text_of(tmp_path, "{text: {dataset: Salesforce/wikitext, config: raw}}") == ["a", "b"]
        with pytest.raises(
            SuiteError, match=r"suite\.yaml:13:31: data set .*raw has no split 'dev'; it has test, train"
        ):
            text_of(tmp_path, "{text: {dataset: Salesforce/wikitext, config: raw, split: dev}}")


def test_long_texts_are_tokenised_in_pieces_of_whole_lines(tmp_path, tokenizer):
    lines = [f"Line {number} of many.\n" for number in range(3000)]
    samples = drawn(tmp_path, tokenizer, ["".join(lines)], "{name: almanac, samples: 1, length: 2}")
    assert samples.tokens == len(tokenizer("".join(lines) + "\n\n", add_special_tokens=False)["input_ids"])


# Training splits of tasks

QUIZ = """\
task: quiz
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_choice: "{{c}}"
doc_to_target: "{{g}}"
"""


def quiz(folder, yaml=QUIZ):
    folder.mkdir(exist_ok=True)
    entry = {"q": "Who waits for the tide in the harbour of Lund?", "c": ["the baker", "the grey ships"], "g": 1}
    (folder / "train.jsonl").write_text(json.dumps({**entry, "q": "Who walked slowly to the harbour?", "g": 0}) + "\n")
    (folder / "test.jsonl").write_text(json.dumps(entry) + "\n")
    (folder / "quiz.yaml").write_text(yaml)
    return folder


class Spec:
    limit = num_fewshot = None

    def __init__(self, task):
        self.task = task


def with_quiz(folder, calibration, yaml=QUIZ):
    path = with_calibration(folder, calibration)
    lines = path.read_text().splitlines()
    at = lines.index("tasks:")
    lines[at + 1 : at + 4] = ["  - quiz"]
    path.write_text("\n".join([*lines, f"task_paths: [{quiz(folder / 'tasks', yaml)}]"]) + "\n")
    return load_suite(path)


def test_the_training_split_of_a_task_is_its_prompts_with_their_right_answers(tmp_path):
    suite = with_quiz(tmp_path, "{text: {task: quiz}}")
    tasks = load_tasks(suite.tasks, suite.task_paths).tasks
    text = read_text(suite.calibration, suite.task_paths, tasks, lambda _: None)
    assert text == ["Question: Who walked slowly to the harbour?\nAnswer: the baker"]


def test_the_split_that_a_task_is_evaluated_on_is_refused_outright(tmp_path):
    yaml = QUIZ.replace("test_split: test", "test_split: train")
    suite = with_quiz(tmp_path, "{text: {task: quiz}}", yaml)
    tasks = load_tasks(suite.tasks, suite.task_paths).tasks
    with pytest.raises(SuiteError, match=r"suite.yaml:11:28: task 'quiz' is evaluated on its split 'train'"):
        read_text(suite.calibration, suite.task_paths, tasks, lambda _: None)


# Windows


def drawn(folder, tokenizer, documents, calibration, longest=256):
    return draw(load_suite(with_calibration(folder, calibration)).calibration, documents, tokenizer, longest)


def test_windows_are_stretches_of_the_text_that_never_overlap(tmp_path, tokenizer):
    documents = [f"Document {number} says that {number} and {number} make {2 * number}." for number in range(400)]
    samples = drawn(tmp_path, tokenizer, documents, "{name: almanac, samples: 30, length: 50, seed: 3}")
    text = "\n\n".join(documents) + "\n\n"
    stream = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = []
    for window in samples.windows.tolist():
        places = [at for at in range(len(stream) - 49) if stream[at : at + 50] == window]
        assert len(places) == 1
        starts += places
    assert all(b - a >= 50 for a, b in pairwise(starts))
    assert samples.tokens == len(stream)


def test_the_same_seed_draws_the_same_windows_and_another_seed_others(tmp_path, tokenizer):
    documents = list(bundled_texts()["almanac"]())[:500]
    first = drawn(tmp_path, tokenizer, documents, "{name: almanac, samples: 5}")
    assert first.windows.shape == (5, 256)  # 512, or the model's own where that is less
    assert drawn(tmp_path, tokenizer, documents, "{name: almanac, samples: 5}").hash == first.hash
    assert drawn(tmp_path, tokenizer, documents, "{name: almanac, samples: 5, seed: 1}").hash != first.hash
    # Recorded once: another machine or version that draws other windows must not pass unnoticed.
    assert first.hash.startswith("85f4126932bb")


def test_text_that_is_too_short_and_windows_that_are_too_long_are_refused_with_numbers(tmp_path, tokenizer):
    with pytest.raises(
        SuiteError, match=r"13:21: the calibration text has \d+ tokens, and 4 samples of 256 need 1,024"
    ):
        drawn(tmp_path, tokenizer, [WORDS], "{name: almanac, samples: 4}")
    with pytest.raises(SuiteError, match=r"13:38: length 257 exceeds the model's maximum of 256"):
        drawn(tmp_path, tokenizer, [WORDS], "{name: almanac, length: 257}")
    exact = tokenizer(WORDS + "\n\n", add_special_tokens=False)["input_ids"]
    samples = drawn(tmp_path, tokenizer, [WORDS], f"{{name: almanac, samples: 1, length: {len(exact)}}}")
    assert samples.windows.tolist() == [exact]


# What is evaluated


def test_a_text_is_found_by_all_its_words_whatever_stands_between_them():
    passages = Passages(["Before that. " + WORDS + " After that.", "Another one."])
    assert passages.hold(WORDS)
    assert passages.hold("the BAKER of Lund,\n walked slowly -- to the harbour")
    assert not passages.hold(WORDS.replace("seven", "eight"))
    assert not passages.hold("baker of Lun walked slowly to")
    assert not passages.hold("of Lund")  # too short to tell anything
    assert passages.hold("waited for the tide to turn")


def test_a_long_text_is_found_by_a_run_of_its_words():
    text = [f"word{number}" for number in range(200)]
    passages = Passages([" ".join(text[60 : 60 + RUN]), " ".join(text[130 : 130 + RUN - 1])])
    assert passages.hold(" ".join(text))
    assert not passages.hold(" ".join(text[70:]))


def frozen(folder, *tasks, task_paths="[]"):
    suite = write_suite(folder)
    overrides = [f"tasks=[{', '.join(tasks)}]", f"task_paths={task_paths}"]
    suite = load_suite(suite, overrides=overrides)
    loaded = load(ModelSpec(name="almanac"), device="cpu")
    engine = make_engine(
        "frozen", loaded, load_tasks(suite.tasks, suite.task_paths), suite.models[0], None, lambda _: None
    )
    return engine.requests


def test_nothing_that_the_bundled_tasks_ask_stands_in_the_bundled_text(tmp_path):
    names = ("facts", "agreement", "arithmetic", "text", "recall")
    requests = frozen(tmp_path, *(f"almanac_{name}" for name in names))
    assert find_evaluated_document(list(bundled_texts()["almanac"]()), requests) is None
    assert find_evaluated_document(list(Corpus().held_out(5)), requests) == ("almanac_text", 0)


def test_questions_with_their_answers_are_found_without_their_examples(tmp_path):
    requests = frozen(tmp_path, "{task: almanac_facts_rare, num_fewshot: 3}", "{task: almanac_agreement, limit: 5}")
    document = requests.tasks["almanac_facts_rare"].instances[4 * 7].doc
    whole = f"{document['question']} {document['choices'][document['gold']]}."
    assert find_evaluated_document([f"Some text. {whole} Some more."], requests) == ("almanac_facts_rare", 7)
    assert find_evaluated_document([f"Some text. {document['question']} nowhere."], requests) is None
    pair = requests.tasks["almanac_agreement"].instances[4]
    assert find_evaluated_document([pair.args[1]], requests) == ("almanac_agreement", 2)


def test_a_task_that_is_answered_in_writing_is_found_by_its_right_answer(tmp_path):
    requests = frozen(tmp_path, "almanac_recall")
    document = requests.tasks["almanac_recall"].instances[3].doc
    assert find_evaluated_document([f"{document['question']} {document['answer']}."], requests) == ("almanac_recall", 3)


# Needs


def test_a_reducer_that_needs_calibration_in_a_suite_without_is_refused_at_its_line(tmp_path):
    suite = load_suite(write_suite(tmp_path, reducers="[svd, svd-llm]"))
    with pytest.raises(SuiteError) as caught:
        methods(suite, Registry.load())
    assert "suite.yaml:7:17: svd-llm needs calibration (second_moment); add `calibration:" in str(caught.value)
    suite = load_suite(write_suite(tmp_path, reducers="[{id: {calibrated: true}}]"))
    with pytest.raises(SuiteError, match=r"suite.yaml:7:12: id needs calibration"):
        methods(suite, Registry.load())
    assert methods(load_suite(write_suite(tmp_path, reducers="[id, cr]")), Registry.load())


def test_a_plugin_that_needs_an_unknown_statistic_is_refused_at_its_line(tmp_path):
    plugin = tmp_path / "odd.py"
    plugin.write_text(
        "import lrbench\nclass Odd(lrbench.Reducer):\n    name = 'odd'\n    def __post_init__(self):\n"
        "        object.__setattr__(self, 'needs', frozenset({'third_moment'}))\n"
        "    def reduce(self, weight, rank, context):\n        return lrbench.Dense(weight)\n"
        "@lrbench.hookimpl\ndef lrbench_reducers():\n    return [Odd]\n"
    )
    suite = load_suite(with_calibration(tmp_path, "{name: almanac}", reducers="[odd]"))
    with pytest.raises(SuiteError, match=r"7:12: odd needs 'third_moment', which is no statistic; known are absmean"):
        methods(suite, Registry.load([plugin]))


def test_a_suite_without_calibration_has_the_hash_that_it_had_and_one_with_it_another(tmp_path):
    plain = load_suite(write_suite(tmp_path))
    assert plain.resolved()["calibration"] is None
    (tmp_path / "a.txt").write_text("text")
    hashes = {plain.hash}
    for calibration in ("{name: almanac}", "{name: almanac, seed: 1}", "{text: a.txt}", "{text: a.txt, damping: 0}"):
        suite = load_suite(with_calibration(tmp_path, calibration))
        hashes.add(suite.hash)
        assert suite.resolved()["calibration"]["samples"] == 128
    assert len(hashes) == 5
