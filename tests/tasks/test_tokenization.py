"""Requests tokenised in batches have the token ids that lm-eval makes of one text at a time."""

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrbench.evaluation.lm_eval_model import make_hflm
from lrbench.models.load import bundled
from lrbench.tasks import tokenization
from lrbench.tasks.tokenization import encode, token_pairs

BEGIN = "<s>"
TEXTS = [
    "The capital of France is",
    "trailing spaces \n ",
    f"{BEGIN}begins with the token itself",
    "",
    " ",
    "naïve 東京 👩‍🚀\u200d e\u0301",
    "x" * 3000,
    "The capital of France is",
]
CONTINUATIONS = [" Paris", "Paris", " ", "\n", f"{BEGIN}", "ça va ?", " a much longer answer. " * 40]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(bundled()["almanac"]).eval()


def beginning_tokenizer():
    """The bundled model's tokenizer, which puts a token of its own before every text."""
    tokenizer = AutoTokenizer.from_pretrained(bundled()["almanac"])
    tokenizer.add_special_tokens({"bos_token": BEGIN})
    place = tokenizer.convert_tokens_to_ids(BEGIN)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, place)]
    )
    return tokenizer


class Separately(type(AutoTokenizer.from_pretrained(bundled()["almanac"]))):
    """A tokenizer whose `encode` differs from its batches."""

    def encode(self, text, **options):
        return [*super().encode(text, **options), 7]


@pytest.fixture(params=["plain", "begins", "separately"])
def lm(request, model):
    made = {
        "plain": lambda: AutoTokenizer.from_pretrained(bundled()["almanac"]),
        "begins": beginning_tokenizer,
        "separately": lambda: Separately.from_pretrained(bundled()["almanac"]),
    }
    return lambda **options: make_hflm(model, made[request.param](), **options)


def instance(context, continuation):
    return Instance("loglikelihood", {}, (context, continuation), 0, metadata=("task", 0, 1))


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("batch", [3, 1024])
def test_texts_have_the_tokens_of_lm_evals_tok_encode(lm, add_bos, batch, monkeypatch):
    monkeypatch.setattr(tokenization, "BATCH", batch)
    lm = lm(add_bos=add_bos)

    for special in (None, True, False):
        assert encode(TEXTS, lm, special) == [lm.tok_encode(text, special) for text in TEXTS]


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_pairs_are_split_as_lm_evals_encode_pair_splits_them(lm, add_bos):
    lm = lm(add_bos=add_bos)
    instances = [instance(context, continuation) for context in TEXTS for continuation in CONTINUATIONS]
    expected = []
    for context, continuation in [one.args for one in instances]:
        if context:
            tokens = lm._encode_pair(context, continuation)
        else:  # as lm-eval's `loglikelihood`
            ids, begin = lm.tok_encode(continuation, add_special_tokens=False), lm.prefix_token_id
            tokens = (ids[:1], ids[1:]) if ids[0] == begin else ([begin], ids)
        expected.append(((context, continuation), *tokens))

    pairs = token_pairs(instances, lm)

    assert pairs == expected
    assert "tok_encode" not in vars(lm)
    assert "_loglikelihood_tokens" not in vars(lm)
    pairs[0][1].append(1)  # lists are not shared between requests
    assert pairs[1:] == expected[1:]


def test_a_tokenizer_that_begins_texts_does_so_only_once(model):
    lm = make_hflm(model, beginning_tokenizer())
    begin = lm.tokenizer.convert_tokens_to_ids(BEGIN)

    plain, begun = encode(["A city", f"{BEGIN}A city"], lm)

    assert plain[0] == begin
    assert begun.count(begin) == 1


def test_the_fast_tokenizer_is_called_once_per_batch(model, monkeypatch):
    lm = make_hflm(model, AutoTokenizer.from_pretrained(bundled()["almanac"]))
    monkeypatch.setattr(lm, "tok_encode", None)

    assert len(token_pairs([instance("A city", " of gold"), instance("A city", " of tin")], lm)) == 2
