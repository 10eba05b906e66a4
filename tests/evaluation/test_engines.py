import json
import math
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.errors import EvaluationError, ModelError, ReducerError, TaskError
from lrbench.evaluation.frozen import FrozenEngine
from lrbench.evaluation.interface import Job
from lrbench.evaluation.lm_eval_engine import HarnessEngine
from lrbench.models.load import bundled
from lrbench.tasks.load import load_tasks

NAMES = ["almanac_facts", "almanac_agreement", "almanac_arithmetic", "almanac_text", "almanac_recall"]
MATRIX = "model.layers.{}.mlp.down_proj"
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def spec(task, limit=None, num_fewshot=None):
    return SimpleNamespace(task=task, limit=limit, num_fewshot=num_fewshot)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(bundled()["almanac"]).eval()


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled()["almanac"])


@pytest.fixture
def make(model, tokenizer):
    """Makes an engine on the bundled model."""

    def made(kind, *specs, folders=(), **options):
        return kind(model, tokenizer, load_tasks(specs or [spec(name, 10) for name in NAMES], folders), **options)

    return made


@pytest.fixture
def job(model):
    """Makes jobs that scale one matrix: `job(layer, factor)`, and `job()` that edits nothing."""

    def made(layer=0, factor=None):
        @contextmanager
        def edited():
            weight = model.get_submodule(MATRIX.format(layer)).weight
            original = weight.data
            weight.data = original if factor is None else original * factor
            try:
                yield
            finally:
                weight.data = original

        return Job(f"{layer}-{factor}", None if factor is None else layer, edited)

    return made


def same(ours, theirs):
    assert ours.error is None
    assert theirs.error is None
    assert ours.scores == theirs.scores
    assert ours.samples == theirs.samples


def test_frozen_requests_give_lm_evals_own_numbers_on_every_bundled_task_and_document(make, job):
    frozen, harness = make(FrozenEngine), make(HarnessEngine)
    jobs = [job(), job(3, 0.0), job(7, -1.0)]

    for ours, theirs in zip(frozen.score(jobs), harness.score(jobs), strict=True):
        same(ours, theirs)

    assert set(ours.scores) == {*NAMES, *(f"almanac_facts_{third}" for third in ("frequent", "middle", "rare"))}
    assert len(ours.samples) == 70


def test_engines_that_share_their_tasks_do_not_disturb_each_other(model, tokenizer, job):
    tasks = load_tasks([spec("almanac_arithmetic", 10, 2), spec("almanac_text", 5)])
    frozen, harness = FrozenEngine(model, tokenizer, tasks), HarnessEngine(model, tokenizer, tasks)

    (before,) = frozen.score([job()])
    (theirs,) = harness.score([job()])
    (after,) = frozen.score([job()])

    same(before, theirs)
    same(after, theirs)


@pytest.mark.parametrize("kind", [FrozenEngine, HarnessEngine])
def test_an_answer_never_survives_into_the_next_cell(make, job, kind):
    engine = make(kind)

    first, edited, other, last = engine.score([job(), job(0, 0.0), job(5, 0.0), job()])

    assert first.samples == last.samples
    assert first.scores == last.scores
    for name in NAMES:
        parts = [[s for s in outcome.samples if s["task"].startswith(name)] for outcome in (first, edited, other)]
        if name != "almanac_recall":
            assert parts[0] != parts[1] != parts[2] != parts[0]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": "auto"}])
def test_the_batch_size_changes_no_score_beyond_rounding(make, job, options):
    (one,) = make(FrozenEngine).score([job()])
    (other,) = make(FrozenEngine, **options).score([job()])

    for ours, theirs in zip(one.samples, other.samples, strict=True):
        assert ours.get("loglikelihoods", []) == pytest.approx(theirs.get("loglikelihoods", []), abs=1e-3)


def test_few_shot_prompts_and_limits_are_as_lm_eval_makes_them(make, job):
    specs = [spec("almanac_facts", 6, 2), spec("almanac_arithmetic", 8, 3), spec("almanac_recall", 5, 1)]
    frozen, harness = make(FrozenEngine, *specs), make(HarnessEngine, *specs)

    same(*frozen.score([job()]), *harness.score([job()]))

    assert frozen.describe()["tasks"]["almanac_facts_rare"]["documents"] == 6
    assert frozen.requests.prompts[0].args[0].count(".\n") == 1


def test_a_limit_above_the_number_of_documents_means_all(make):
    engine = make(FrozenEngine, spec("almanac_recall", 100_000))

    assert engine.describe()["tasks"]["almanac_recall"]["documents"] == 150
    assert engine.describe()["tasks"]["almanac_recall"]["limit"] == 100_000


def test_another_seed_draws_other_few_shot_examples(make):
    prompts = [
        make(FrozenEngine, spec("almanac_arithmetic", 6, 2), seed=seed).requests.hashes()["almanac_arithmetic"]
        for seed in (1, 1, 2)
    ]

    assert prompts[0] == prompts[1]
    assert prompts[0]["documents"] == prompts[2]["documents"]
    assert prompts[0]["prompts"] != prompts[2]["prompts"]


def test_a_chat_template_is_applied_as_lm_eval_applies_it(make, job, tokenizer):
    tokenizer.chat_template = TEMPLATE
    specs = [spec("almanac_facts_frequent", 5, 1), spec("almanac_recall", 5)]
    frozen = make(FrozenEngine, *specs, chat_template=True)

    same(*frozen.score([job()]), *make(HarnessEngine, *specs, chat_template=True).score([job()]))

    prompt = frozen.requests.pair_requests[0].args[0]
    assert prompt.count("<user>") == 2
    assert prompt.endswith("<assistant>")


def test_a_chat_template_that_the_tokenizer_lacks_is_an_error(make):
    with pytest.raises(ModelError, match="chat_template is on, and the tokenizer has none"):
        make(FrozenEngine, chat_template=True)


def test_a_short_maximum_length_cuts_and_windows_as_in_lm_eval(make, job):
    specs = [spec("almanac_facts_frequent", 5, 3), spec("almanac_text", 5)]
    frozen = make(FrozenEngine, *specs, max_length=24)

    same(*frozen.score([job()]), *make(HarnessEngine, *specs, max_length=24).score([job()]))

    assert frozen.describe()["tasks"]["almanac_facts_frequent"]["truncated"] == 20
    assert max(frozen.requests.window_counts) > 1


def test_beginning_of_sequence_is_added_where_asked_and_the_callers_tokenizer_left_alone(make, job, tokenizer):
    specs = [spec("almanac_facts_frequent", 5), spec("almanac_text", 5)]
    plain, added = make(FrozenEngine, *specs), make(FrozenEngine, *specs, add_bos=True)

    assert [pair[1] for pair in added.requests.pairs] == [
        [tokenizer.bos_token_id, *pair[1]] for pair in plain.requests.pairs
    ]
    assert plain.requests.hashes()["almanac_text"]["tokens"] != added.requests.hashes()["almanac_text"]["tokens"]
    assert tokenizer("The")["input_ids"][0] != tokenizer.bos_token_id
    same(*added.score([job()]), *make(HarnessEngine, *specs, add_bos=True).score([job()]))


@pytest.mark.parametrize("kind", [FrozenEngine, HarnessEngine])
@pytest.mark.parametrize("task", ["almanac_arithmetic", "almanac_text", "almanac_recall"])
def test_weights_that_overflow_fail_their_cell_in_one_line_and_the_next_goes_on(make, job, kind, task):
    engine = make(kind, spec(task, 5))

    bad, good = engine.score([job(2, math.nan), job()])

    assert isinstance(bad.error, EvaluationError)
    assert task in str(bad.error)
    assert "\n" not in str(bad.error)
    assert bad.scores == {}
    assert good.error is None


def test_whatever_is_raised_while_scoring_or_editing_fails_only_its_cell(make, job):
    engine = make(FrozenEngine, spec("almanac_text", 3))

    @contextmanager
    def refuses():
        raise ReducerError("svd: no")
        yield

    def break_next(error):
        def raises(*args, **kwargs):
            raise error

        engine.lm._loglikelihood_tokens = raises

    break_next(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n 3 GiB"))
    (memory,) = engine.score([job()])
    break_next(RuntimeError("shapes\ndo not fit"))
    (runtime,) = engine.score([job()])
    del engine.lm._loglikelihood_tokens
    refused, good = engine.score([Job("x", 0, refuses), job()])

    assert str(memory.error) == "out of memory at batch size 32; set a smaller batch_size"
    assert str(runtime.error) == "scoring failed: RuntimeError: shapes do not fit"
    assert str(refused.error) == "svd: no"
    assert good.error is None


def test_an_edit_that_cannot_be_undone_stops_everything(make):
    @contextmanager
    def sticks():
        yield
        raise EvaluationError("the original weight was written to")

    with pytest.raises(EvaluationError, match="written to"):
        list(make(FrozenEngine, spec("almanac_text", 3)).score([Job("x", 0, sticks)]))


def test_samples_are_plain_enough_for_json(make, job):
    (outcome,) = make(FrozenEngine).score([job()])

    assert json.loads(json.dumps(outcome.samples)) == outcome.samples
    kinds = {frozenset(sample) for sample in outcome.samples}
    assert kinds == {
        frozenset({"task", "doc", "metrics", "loglikelihoods", "greedy", "gold"}),
        frozenset({"task", "doc", "metrics", "loglikelihoods"}),
        frozenset({"task", "doc", "metrics", "text"}),
    }


def test_groups_weigh_their_tasks_by_size(make, job):
    (outcome,) = make(FrozenEngine, spec("almanac_facts", 30)).score([job()])

    parts = [outcome.scores[f"almanac_facts_{third}"]["acc"] for third in ("frequent", "middle", "rare")]
    group = outcome.scores["almanac_facts"]["acc"]
    assert group.value == pytest.approx(sum(part.value for part in parts) / 3)
    assert group.n == 90
    assert min(part.stderr for part in parts) / 3 < group.stderr < max(part.stderr for part in parts)


def test_perplexities_have_a_standard_error_too(make, job):
    (outcome,) = make(FrozenEngine, spec("almanac_text", 50)).score([job()])

    for score in outcome.scores["almanac_text"].values():
        assert 0 < score.stderr < score.value


def test_filters_other_than_none_are_part_of_the_metrics_name(make, job, tmp_path):
    text = """\
task: filtered
custom_dataset: !function facts.read
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: answer
repeats: 2
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: true, temperature: 1.0}
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: loose, filter: [{function: remove_whitespace}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
    (tmp_path / "filtered.yaml").write_text(text)
    rows = [{"question": "The sum of 2 and 3 is", "answer": "5"}, {"question": "1 plus 1 is", "answer": "2"}]
    (tmp_path / "facts.py").write_text(
        f"import datasets\ndef read(**_):\n    return {{'test': datasets.Dataset.from_list({rows})}}\n"
    )
    frozen, harness = (make(kind, spec("filtered"), folders=[tmp_path]) for kind in (FrozenEngine, HarnessEngine))

    first, again = frozen.score([job(), job()])

    same(first, *harness.score([job()]))
    same(first, again)  # sampling starts from the same seed in each cell
    assert set(first.scores["filtered"]) == {"exact_match,strict", "exact_match,loose"}
    assert len(first.samples[0]["text"]) == 2


def test_what_no_weights_could_answer_is_an_error_before_the_first_cell(make, tmp_path):
    (tmp_path / "long.yaml").write_text("include: almanac_recall.yaml\ntask: long\n")
    (tmp_path / "almanac_recall.yaml").write_text(
        "custom_dataset: !function rows.read\noutput_type: generate_until\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_target: answer\ngeneration_kwargs: {until: ['.'], max_gen_toks: 256}\n"
    )
    (tmp_path / "choice.yaml").write_text(
        "task: choice\ncustom_dataset: !function rows.read\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_choice: ['yes', '{{answer}} no']\ndoc_to_target: 0\n"
    )
    (tmp_path / "rows.py").write_text(
        "import datasets\ndef read(**_):\n"
        "    return {'test': datasets.Dataset.from_list([{'question': 'Is it', 'answer': 'so'}])}\n"
    )

    with pytest.raises(TaskError, match="task 'long' writes up to 256 tokens, and the model holds 256"):
        make(FrozenEngine, spec("long"), folders=[tmp_path])
    with pytest.raises(TaskError, match=r"task 'choice', document 0: a continuation of .* tokens does not fit"):
        make(FrozenEngine, spec("choice"), folders=[tmp_path], max_length=4)


def test_hashes_know_documents_prompts_and_tokens_apart(make):
    def hashes(**options):
        return make(FrozenEngine, spec("almanac_text", 5), **options).requests.hashes()["almanac_text"]

    plain, again, bos = hashes(), hashes(), hashes(add_bos=True)

    assert plain == again
    assert (plain["documents"], plain["prompts"]) == (bos["documents"], bos["prompts"])
    assert plain["tokens"] != bos["tokens"]


def test_another_metric_over_the_same_prompts_changes_only_the_hash_of_metrics(make, tmp_path):
    task = "task: {}\ncustom_dataset: !function rows.read\noutput_type: multiple_choice\ntest_split: test\n"
    task += "doc_to_text: question\ndoc_to_choice: ['yes', 'no']\ndoc_to_target: 0\n"
    (tmp_path / "one.yaml").write_text(task.format("one") + "metric_list: [{metric: acc}]\n")
    (tmp_path / "two.yaml").write_text(task.format("two") + "metric_list: [{metric: acc_norm}]\n")
    (tmp_path / "rows.py").write_text(
        "import datasets\ndef read(**_):\n    return {'test': datasets.Dataset.from_list([{'question': 'Is it'}])}\n"
    )

    hashes = make(FrozenEngine, spec("one"), spec("two"), folders=[tmp_path]).requests.hashes()

    differ = [what for what, value in hashes["one"].items() if hashes["two"][what] != value]
    assert differ == ["metrics"]


def test_a_description_is_plain_json_and_says_what_was_scored_with(make):
    told = json.loads(json.dumps(make(FrozenEngine, batch_size="auto").describe()))

    assert told["name"] == "frozen"
    assert told["batch_size_asked"] == "auto"
    assert told["batch_size"] == 32
    assert told["groups"] == {"almanac_facts": [f"almanac_facts_{t}" for t in ("frequent", "middle", "rare")]}
    assert told["tasks"]["almanac_text"]["higher_is_better"]["bits_per_byte"] is False
    assert told["tasks"]["almanac_text"]["tokens"] > 300


def test_the_engine_boundary_does_not_import_lm_eval():
    code = "import sys, lrbench.evaluation.interface; print('lm_eval' in sys.modules, 'transformers' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
