"""Wraps a loaded model in lm-eval's model class."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import ModelError
from lrbench.system.text import one_line
from lrbench.tasks.containment import contained
from lrbench.tasks.token_windows import window_pair

CPU_BATCH_SIZE = 32  # for `auto` on a CPU, whose memory limit cannot be probed safely


class WindowedHFLM(HFLM):
    """lm-eval's model, extended with requests that are already tokenised."""

    def loglikelihood_windows(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood of each window after its first token; windows are batched in their order."""
        pairs, answers = [window_pair(request) for request in requests], []
        for start in range(0, len(pairs), self.batch_size):
            batch = pairs[start : start + self.batch_size]
            answers += self._loglikelihood_tokens(batch, disable_tqdm=True)
        return [loglikelihood for loglikelihood, _ in answers]


def make_hflm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int | str = 32,
    max_length: int | None = None,
    add_bos: bool | None = None,
    chat_template: bool = False,
) -> HFLM:
    """Wraps a model for lm-eval. Call it before any edit: lm-eval's `tie_weights()` would undo an edit of the head.

    Args:
        model: already on its device; lm-eval reads the device once.
        batch_size: rows of one forward pass; `auto` measures once how many fit the GPU's memory.
        max_length: tokens per row; None: the model's own limit.
        add_bos: whether texts begin with the beginning-of-sequence token; None: as the tokenizer does.
        chat_template: whether prompts will go through the tokenizer's chat template.

    Raises:
        ModelError: lm-eval does not accept the model or its tokenizer, or the tokenizer has no chat template.
    """
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise ModelError("chat_template is on, and the tokenizer has none; turn it off or take an instruction model")
    if not (batch_size == "auto" or (isinstance(batch_size, int) and batch_size > 0)):
        raise ModelError(f"batch_size {batch_size!r}; it must be a positive number or 'auto'")
    with contained():
        try:
            lm = WindowedHFLM(
                pretrained=model,
                tokenizer=_with_bos(tokenizer, add_bos),
                batch_size=1 if batch_size == "auto" else batch_size,
                max_length=max_length,
                add_bos_token=add_bos,
            )
            if batch_size == "auto":
                lm.batch_size_per_gpu = lm._detect_batch_size() if lm.device.type != "cpu" else CPU_BATCH_SIZE
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{model.name_or_path or 'model'}: lm-eval rejects it: {one_line(error)}") from error
    return lm


def logits_are_finite(lm: HFLM, prompt: str) -> bool:
    """Whether the logits after `prompt` are finite. Generation itself would not notice."""
    tokens = torch.tensor([lm.tok_encode(prompt)[-lm.max_length :]], device=lm.device)
    return bool(torch.isfinite(lm._model_call(tokens)[0, -1]).all())


def _with_bos(tokenizer: Any, add_bos: bool | None) -> Any:
    """The tokenizer with `add_bos` applied, which lm-eval does only for a tokenizer that it loads itself."""
    if add_bos is None or not hasattr(tokenizer, "add_bos_token") or tokenizer.add_bos_token == add_bos:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_bos_token = add_bos
    return tokenizer
