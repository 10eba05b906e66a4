"""Tokenises requests in batches. The token ids are those that lm-eval makes of one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from transformers import PreTrainedTokenizerBase

#: (context, continuation) as text, context token ids, continuation token ids, as HFLM scores them
TokenPair = tuple[tuple[str, str] | None, list[int], list[int]]

BATCH = 1024  # texts that are tokenised at once


def token_pairs(instances: Sequence[Instance], lm: HFLM) -> list[TokenPair]:
    """The token pairs that lm-eval's `loglikelihood` passes to the model.

    lm-eval's own code splits contexts from continuations. It runs twice: the first run collects the texts that it
    tokenises, the second receives their tokens.
    """
    tokens: dict[tuple[str, bool | None], list[int]] = {}

    def collect(text: str, add_special_tokens: bool | None = None) -> list[int]:
        return tokens.setdefault((text, add_special_tokens), [lm.prefix_token_id])

    _pairs(instances, lm, collect)
    for special in (None, True, False):
        texts = [text for text, requested in tokens if requested is special]
        tokens.update({(text, special): ids for text, ids in zip(texts, encode(texts, lm, special), strict=True)})
    return _pairs(instances, lm, lambda text, add_special_tokens=None: list(tokens[text, add_special_tokens]))


def encode(texts: Sequence[str], lm: HFLM, add_special_tokens: bool | None = None) -> list[list[int]]:
    """The token ids of each text, equal to `lm.tok_encode(text, add_special_tokens)`.

    A tokenizer without a fast implementation, or with an `encode` of its own, gets one text at a time.
    """
    tokenizer = lm.tokenizer
    if not tokenizer.is_fast or type(tokenizer).encode is not PreTrainedTokenizerBase.encode:
        return [lm.tok_encode(text, add_special_tokens) for text in texts]
    special = add_special_tokens if add_special_tokens is not None else lm.add_bos_token
    begin = tokenizer.decode(lm.prefix_token_id)
    encoded: list[list[int]] = [[]] * len(texts)
    begun = [add_special_tokens is None and has_bos_prefix(text, begin) for text in texts]
    for with_begin, special_tokens in ((False, True if special is None else special), (True, False)):
        places = [place for place, own in enumerate(begun) if own is with_begin]
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            ids = tokenizer([texts[place] for place in batch], add_special_tokens=special_tokens)["input_ids"]
            for place, one in zip(batch, ids, strict=True):
                encoded[place] = one
    return encoded


def _pairs(instances: Sequence[Instance], lm: HFLM, tok_encode: Callable[..., list[int]]) -> list[TokenPair]:
    """What lm-eval's `loglikelihood` passes to the model if it tokenises with `tok_encode`."""
    captured: list[TokenPair] = []

    def capture(pairs: list[TokenPair], **_: object) -> list[tuple[float, bool]]:
        captured.extend(pairs)
        return [(0.0, False)] * len(pairs)

    with mock.patch.multiple(lm, _loglikelihood_tokens=capture, tok_encode=tok_encode):
        lm.loglikelihood(list(instances), disable_tqdm=True)
    return captured
