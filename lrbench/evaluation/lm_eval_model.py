"""lm-eval's model class around a model that is already loaded."""

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

CPU_BATCH_SIZE = 32  # for `auto`: a CPU has no memory limit that could be probed safely


class WindowedHFLM(HFLM):
    """lm-eval's model, which also takes requests that are tokens already."""

    def loglikelihood_windows(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood of each window after its first token, in batches as they come."""
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
    """Wraps a model for lm-eval. Do this before any edit: it calls `eval()`, and `tie_weights()` undoes edits of heads.

    Args:
        model: on its device already; lm-eval reads the device once.
        batch_size: rows of one forward pass; `auto` finds once what the GPU's memory holds.
        max_length: of a row in tokens; None: the model's own.
        add_bos: whether texts begin with the beginning-of-sequence token; None: as the tokenizer does.
        chat_template: whether prompts will go through the tokenizer's chat template.

    Raises:
        ModelError: lm-eval does not take the model or its tokenizer, or there is no chat template.
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
            raise ModelError(f"{model.name_or_path or 'model'}: lm-eval cannot take it: {one_line(error)}") from error
    return lm


def logits_are_finite(lm: HFLM, prompt: str) -> bool:
    """Whether the model, as it stands, can still choose a next token; generation itself would not notice."""
    tokens = torch.tensor([lm.tok_encode(prompt)[-lm.max_length :]], device=lm.device)
    return bool(torch.isfinite(lm._model_call(tokens)[0, -1]).all())


def _with_bos(tokenizer: Any, add_bos: bool | None) -> Any:
    """A tokenizer that does as `add_bos` says, which lm-eval sees to only for one that it loads itself."""
    if add_bos is None or not hasattr(tokenizer, "add_bos_token") or tokenizer.add_bos_token == add_bos:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_bos_token = add_bos
    return tokenizer
