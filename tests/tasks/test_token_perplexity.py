import gzip
import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.analysis.scored_run import ScoredRun, lines_of
from lrbench.errors import TaskError
from lrbench.evaluation.frozen import FrozenEngine
from lrbench.evaluation.interface import Job
from lrbench.evaluation.lm_eval_engine import HarnessEngine
from lrbench.evaluation.lm_eval_model import WindowedHFLM
from lrbench.evaluation.sweep import SweepEngine
from lrbench.models.edit import edited
from lrbench.models.load import bundled
from lrbench.models.slot_search import find_slots
from lrbench.reduction.calibration.overlap import find_evaluated_document
from lrbench.results.directory import RunDirectory
from lrbench.tasks.folders import BUNDLED
from lrbench.tasks.load import load_tasks
from lrbench.tasks.token_windows import WindowLayout
from tests.support.suites import run, write_suite

WORDS = "Kli Sealrom earned a living as a dancer. The family of Kli Sealrom comes from Trendla.".split()


def spec(task, limit=None, num_fewshot=None, data=None):
    return SimpleNamespace(task=task, limit=limit, num_fewshot=num_fewshot, data=data)


@pytest.fixture(scope="module")
def almanac():
    checkpoint = bundled()["almanac"]
    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)


def write_text(folder, name="text.txt", words=900):
    path = folder / name
    path.write_text(" ".join(WORDS[index % len(WORDS)] for index in range(words)))
    return path


def engine(almanac, tasks, kind=FrozenEngine, **options):
    return kind(*almanac, tasks, **options)


def only_outcome(engine, edit=None):
    (outcome,) = engine.score([Job("cell", None if edit is None else 3, lambda: edited(edit or {}))])
    assert outcome.error is None
    return outcome


def by_hand(almanac, text, length):
    """As GPTQ's script: the mean over windows of the mean over their predictions, through torch's own cross-entropy."""
    model, tokenizer = almanac
    tokens = tokenizer(text, return_tensors="pt").input_ids  # (1, tokens)
    losses = []
    for index in range(tokens.shape[1] // length):
        window = tokens[:, index * length : (index + 1) * length]
        with torch.no_grad():
            logits = model(window).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], window[0, 1:]))
    return math.exp(torch.stack(losses).double().mean())


@pytest.mark.parametrize("length", [64, 256])
def test_it_is_the_number_that_the_scripts_of_the_papers_compute(almanac, tmp_path, length):
    path = write_text(tmp_path)

    outcome = only_outcome(engine(almanac, load_tasks([spec("text_tokens", data=path)]), max_length=length))

    score = outcome.scores["text_tokens"]["token_perplexity"]
    assert score.value == pytest.approx(by_hand(almanac, path.read_text(), length), rel=1e-6)
    assert score.stderr > 0
    assert score.n == len(outcome.samples) > 4


def test_almanacs_own_text_is_joined_as_it_was_in_training(almanac):
    rows = [json.loads(line)["text"] for line in (BUNDLED / "text.jsonl").open()]

    outcome = only_outcome(engine(almanac, load_tasks([spec("almanac_tokens")])))

    value = outcome.scores["almanac_tokens"]["token_perplexity"].value
    assert value == pytest.approx(by_hand(almanac, "<|endoftext|>".join(rows), 256), rel=1e-6)


@pytest.mark.slow
def test_all_engines_give_the_same_numbers_before_and_after_an_edit(almanac):
    tasks = load_tasks([spec("almanac_text", 30), spec("almanac_tokens"), spec("almanac_agreement", 20)])
    slot = next(
        slot for slot in find_slots(almanac[0]).slots if slot.about.layer == 3 and slot.about.role == "mlp.down"
    )

    for edit in (None, {slot: slot.read() * 0.8}):
        frozen, harness, sweep = (
            only_outcome(engine(almanac, tasks, kind, batch_size=8), edit)
            for kind in (FrozenEngine, HarnessEngine, SweepEngine)
        )
        assert frozen.scores == harness.scores
        assert frozen.samples == harness.samples
        for name, metrics in frozen.scores.items():
            for metric, score in metrics.items():
                assert sweep.scores[name][metric].value == pytest.approx(score.value, rel=1e-4)


def test_a_document_is_a_window_and_the_rest_of_the_text_is_dropped(almanac, tmp_path):
    path = write_text(tmp_path)
    tokens = almanac[1](path.read_text()).input_ids
    tasks = load_tasks([spec("text_tokens", data=path)])

    bound = engine(almanac, tasks, max_length=100)

    windows = bound.tasks.tasks["text_tokens"].eval_docs
    assert [window["tokens"] for window in windows] == [
        tokens[start : start + 100] for start in range(0, len(tokens) - 99, 100)
    ]
    assert windows[0]["text"] == almanac[1].decode(tokens[:100])
    assert bound.describe()["tasks"]["text_tokens"]["window"] == 100
    assert bound.describe()["tasks"]["text_tokens"]["documents"] == len(windows)


def test_a_limit_counts_windows_in_every_engine(almanac, tmp_path):
    tasks = load_tasks([spec("text_tokens", limit=2, data=write_text(tmp_path))])

    for kind in (FrozenEngine, HarnessEngine, SweepEngine):
        outcome = only_outcome(engine(almanac, tasks, kind, max_length=100))
        assert outcome.scores["text_tokens"]["token_perplexity"].n == 2
        assert [sample["metrics"]["token_perplexity"][1] for sample in outcome.samples] == [99, 99]


def test_two_models_with_other_lengths_cut_the_same_tasks_each_their_own_way(almanac, tmp_path):
    tasks = load_tasks([spec("text_tokens", data=write_text(tmp_path))])

    long, short = (engine(almanac, tasks, HarnessEngine, max_length=length) for length in (200, 50))

    for bound, length in ((long, 200), (short, 50), (long, 200)):
        samples = only_outcome(bound).samples
        assert {sample["metrics"]["token_perplexity"][1] for sample in samples} == {length - 1}
    assert long.requests.hashes() != short.requests.hashes()


def test_a_window_of_the_task_is_shorter_than_the_model_where_its_yaml_says_so(almanac, tmp_path):
    rows = [{"text": f"{' '.join(WORDS)} {index}"} for index in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "class: !function lrbench.tasks.token_windows.TokenPerplexity\n"
        "task: mine\n"
        "dataset_path: json\n"
        "dataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        "test_split: test\n"
        'metadata: {version: 1.0, windows: {length: 32, separator: " | ", documents: 20, count: 7}}\n'
    )
    text = " | ".join(row["text"] for row in rows[:20])

    outcome = only_outcome(engine(almanac, load_tasks([spec("mine")], [tmp_path])))

    assert len(outcome.samples) == 7
    tokens = almanac[1](text).input_ids[: 7 * 32]
    expected = by_hand(almanac, almanac[1].decode(tokens), 32)
    assert outcome.scores["mine"]["token_perplexity"].value == pytest.approx(expected, rel=1e-6)


def test_wikitexts_raw_file_gives_the_text_that_the_hubs_rows_give(almanac, tmp_path):
    lines = [" \n", " = Kli Sealrom = \n", " \n", f" {' '.join(WORDS * 20)} \n"]
    (tmp_path / "wiki.test.raw").write_text("".join(lines))
    rows = ["", " = Kli Sealrom = \n", "", f" {' '.join(WORDS * 20)} \n"]  # as the hub has them
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))

    windows = []
    for name in ("wiki.test.raw", "rows.jsonl"):
        tasks = load_tasks([spec("wikitext2_tokens", data=tmp_path / name)])
        windows.append(engine(almanac, tasks, max_length=32).tasks.tasks["wikitext2_tokens"].eval_docs)

    assert windows[0] == windows[1]
    expected = almanac[1]("\n\n".join(rows)).input_ids
    assert [token for window in windows[0] for token in window["tokens"]] == expected[: len(windows[0]) * 32]


def test_c4s_file_is_read_compressed_and_joined_by_spaces_up_to_1100_documents(almanac, tmp_path):
    rows = [f"Kli {index} Sealrom." for index in range(1200)]
    with gzip.open(tmp_path / "c4-validation.00000-of-00008.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": row, "url": "u", "timestamp": "t"}) + "\n" for row in rows)
    tasks = load_tasks([spec("c4_tokens", data=tmp_path / "c4-validation.00000-of-00008.json.gz")])

    windows = engine(almanac, tasks, max_length=64).tasks.tasks["c4_tokens"].eval_docs

    tokens = almanac[1](" ".join(rows[:1100])).input_ids
    assert len(windows) == min(256, len(tokens) // 64)
    assert [token for window in windows for token in window["tokens"]] == tokens[: len(windows) * 64]


@pytest.mark.slow
def test_differences_between_rows_are_paired_by_window(tmp_path):
    text = write_suite(tmp_path, reducers="[svd]").read_text()
    tasks = text[text.index("tasks:") : text.index("reducers:")]
    (tmp_path / "suite.yaml").write_text(text.replace(tasks, "tasks: [almanac_tokens]\n"))

    result = run(tmp_path / "suite.yaml", tmp_path / "out")

    assert result.failed == 0
    scored = ScoredRun(RunDirectory(tmp_path / "out"), "run")
    lines = [line for line in lines_of(scored.rows.values()) if not line.baseline]
    assert len(lines) == 2
    for line, measured in zip(lines, scored.measure(lines), strict=True):
        base = scored.baseline_of(line.row).scores["almanac_tokens"]["token_perplexity"]
        of_metric = measured["almanac_tokens"]["token_perplexity"]
        assert of_metric.delta == pytest.approx(of_metric.value - base.value)
        assert 0 < of_metric.delta_stderr < base.stderr
        assert of_metric.interval is not None


def test_calibrating_on_the_text_is_refused(almanac, tmp_path):
    path = write_text(tmp_path)
    requests = engine(almanac, load_tasks([spec("text_tokens", data=path)])).requests

    assert find_evaluated_document(["Nothing of the kind, in quite other words than those."], requests) is None
    assert find_evaluated_document([path.read_text()], requests) == ("text_tokens", 0)


def test_a_plan_names_windows_and_not_documents(tmp_path):
    tasks = load_tasks([spec("almanac_tokens"), spec("text_tokens", 5, data=write_text(tmp_path))])

    assert tasks.summary() == [
        "almanac_tokens: a text, in windows of up to 2,048 tokens",
        "text_tokens: a text, in at most 5 windows of up to 2,048 tokens",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "text_tokens"}, r"no text of its own; give it a file: \{task: text_tokens, data: FILE\}"),
        ({"task": "almanac_tokens", "num_fewshot": 2}, "without examples; leave num_fewshot out"),
        ({"task": "almanac_tokens", "limit": 0}, "limit 0"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(TaskError, match=message) as raised:
        load_tasks([spec(**given)])

    assert raised.value.spec.task == given["task"]


def test_a_text_shorter_than_a_window_is_an_error_with_both_lengths(almanac, tmp_path):
    tasks = load_tasks([spec("text_tokens", data=write_text(tmp_path, words=10))])

    with pytest.raises(TaskError, match=r"'text_tokens': the text has \d+ tokens, and a window 256; give it more"):
        engine(almanac, tasks)


def test_a_tokenizer_that_fails_is_an_error_of_the_task(almanac, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(WindowedHFLM, "tok_encode", fail)

    with pytest.raises(TaskError, match=r"task 'almanac_tokens': its text cannot be cut into tokens: .*no such thing"):
        engine(almanac, load_tasks([spec("almanac_tokens")]))


def test_rows_without_text_are_an_error_that_says_what_they_have(almanac, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"content": "x", "id": 1}) + "\n")
    (tmp_path / "gaps.jsonl").write_text('{"text": "x", "id": 1}\n{"text": null, "id": 2}\n')

    with pytest.raises(TaskError, match="reads 'text', which its documents lack; they have content, id"):
        load_tasks([spec("text_tokens", data=tmp_path / "rows.jsonl")])
    tasks = load_tasks([spec("text_tokens", data=tmp_path / "gaps.jsonl")])
    with pytest.raises(TaskError, match="document 1: no text under 'text'; it has text, id"):
        engine(almanac, tasks)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"lenght": 2048}, "known keys are length, separator, documents, count, lines"),
        ([2048], "known keys are"),
        ({"length": 1}, "length must be a number, 2 or more"),
        ({"length": "2048"}, "length must be a number"),
        ({"length": None}, "length must be a number"),
        ({"count": 0}, "count must be a number, 1 or more"),
        ({"documents": True}, "documents must be a number"),
        ({"separator": 1}, "separator must be text"),
        ({"lines": "yes"}, "lines must be true or false"),
    ],
)
def test_a_wrong_layout_is_an_error(windows, message):
    with pytest.raises(TaskError, match=message):
        WindowLayout.of("mine", windows)


def test_lm_eval_without_lrbench_is_told_what_is_missing():
    task = load_tasks([spec("almanac_tokens")]).tasks["almanac_tokens"]

    with pytest.raises(TaskError, match="counts tokens, which lm-eval alone cannot"):
        task.build_all_requests(rank=0, world_size=1)
