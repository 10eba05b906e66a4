"""Token perplexity of a text in windows of tokens, where each token is predicted from the earlier ones in its window.

This is the perplexity of papers on compression (GPTQ, SparseGPT, SVD-LLM, ...). lm-eval's perplexities are per word or
byte, over single documents. Since lm-eval's tasks hold text only, the task is cut into windows once the tokenizer is
known, and has its own kind of request.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lrbench.errors import TaskError

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


#: The kind of request, and the method of lm-eval's model that answers it with one log-likelihood per window.
REQUEST = "loglikelihood_windows"


@dataclass(frozen=True)
class WindowLayout:
    """How documents are cut into windows: the keys under `windows` in the metadata of a task's YAML.

    Attributes:
        length: tokens per window, or the model's maximum length if that is smaller.
        separator: the text between documents.
        documents: the number of documents used, from the first; None for all.
        count: the maximum number of windows, from the first; None for all.
        lines: whether documents are lines with their line breaks; blank lines are then empty.
    """

    length: int = 2048
    separator: str = "\n\n"
    documents: int | None = None
    count: int | None = None
    lines: bool = False

    @classmethod
    def of(cls, name: str, settings: Any) -> WindowLayout:
        """From the metadata of the task `name`. Raises TaskError: a key is unknown, or a value is invalid."""
        settings = {} if settings is None else settings
        known = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(settings, dict) or settings.keys() - known.keys():
            raise TaskError(f"task {name!r}: metadata: windows: known keys are {', '.join(known)}")
        layout = cls(**settings)
        for key, least in (("length", 2), ("documents", 1), ("count", 1)):
            value = getattr(layout, key)
            if not (value is None and key != "length") and (type(value) is not int or value < least):
                raise TaskError(f"task {name!r}: metadata: windows: {key} must be a number, {least} or more")
        if not isinstance(layout.separator, str):
            raise TaskError(f"task {name!r}: metadata: windows: separator must be text")
        if not isinstance(layout.lines, bool):
            raise TaskError(f"task {name!r}: metadata: windows: lines must be true or false")
        return layout

    def text(self, name: str, documents: Sequence[Mapping[str, Any]]) -> str:
        """The documents joined into one text. Raises TaskError: a document has no text."""
        texts = []
        for index, document in enumerate(documents):
            if index == self.documents:
                break
            text = document.get("text")
            if not isinstance(text, str):
                fields = ", ".join(document)
                raise TaskError(f"task {name!r}, document {index}: no text under 'text'; it has {fields}")
            texts.append(text if text.strip() or not self.lines else "")
        return self.separator.join(texts)


class TokenPerplexity(ConfigurableTask):
    """exp of the mean negative log-likelihood of a text's tokens, in windows that do not overlap.

    The documents are joined, and the text is tokenised once (with one beginning-of-sequence token, if the tokenizer
    adds one) and cut into windows of `length` tokens; the remainder is dropped. A window of L tokens predicts all but
    its first, as in GPTQ's script (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", 2022, arXiv 2210.17323) and later
    ones. Since all windows have one length, the mean over tokens equals the mean over windows that those scripts take.

    A window counts as a document: `limit` counts windows, and windows are resampled.

    Raises:
        TaskError: there is no text, or the layout is invalid.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        name = own["task"]
        if own.get("dataset_path") is None and own.get("custom_dataset") is None:
            raise TaskError(f"task {name!r} has no text of its own; give it a file: {{task: {name}, data: FILE}}")
        self.layout = WindowLayout.of(name, (own.get("metadata") or {}).get("windows"))
        self.length: int | None = None
        self._windows: list[dict[str, Any]] | None = None
        metric = {"metric": "token_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
        fixed = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "process_results": window_perplexity,
            "metric_list": [metric],
            "num_fewshot": 0,
        }
        super().__init__(config={**own, **fixed})

    def cut(self, lm: HFLM) -> TokenPerplexity:
        """A copy of the task, cut into windows of this model's tokens.

        Raises:
            TaskError: a document has no text, or the whole text is shorter than a window.
        """
        name = self.config.task
        length = min(self.layout.length, lm.max_length)
        tokens = lm.tok_encode(self.layout.text(name, super().eval_docs))
        count = len(tokens) // length
        if not count:
            raise TaskError(
                f"task {name!r}: the text has {len(tokens):,} tokens, and a window {length:,}; give it more text"
            )
        if self.layout.count is not None:
            count = min(count, self.layout.count)
        task = copy.copy(self)
        pieces = [tokens[start : start + length] for start in range(0, count * length, length)]
        task._windows = [{"text": lm.tokenizer.decode(piece), "tokens": piece} for piece in pieces]
        task.length = length
        return task

    @property
    def eval_docs(self) -> Any:
        """The windows, or before `cut` the documents."""
        return super().eval_docs if self._windows is None else self._windows

    def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> str:
        """Empty: a window has neither examples nor a chat template."""
        return ""

    def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Instance:
        """The request of a window, with its text for readers and its tokens for the model."""
        if self._windows is None:
            raise TaskError(f"task {self.config.task!r} counts tokens, which lm-eval alone cannot; run it with lrbench")
        return Instance(REQUEST, doc, (doc["text"], tuple(doc["tokens"])), 0, metadata=kwargs["metadata"])


def window_perplexity(doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    """A window's log-likelihood, and how many tokens it is of."""
    return {"token_perplexity": (results[0], len(doc["tokens"]) - 1)}


def window_pair(request: Instance) -> tuple[None, list[int], list[int]]:
    """A window as a context of one token and the continuation to predict."""
    tokens = list(request.args[1])
    return None, tokens[:1], tokens[1:]
