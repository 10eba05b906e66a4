"""Token perplexity: a text cut into windows of tokens, each token of a window predicted from those before it in it.

The number of the papers on compression (GPTQ, SparseGPT, SVD-LLM, ...). lm-eval's are others: per word or byte,
and in windows of single documents. A task of lm-eval's knows text only, so this one is cut into windows once the
tokenizer is known, and asks for them by a kind of request of its own.
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


#: The kind of request: the method of lm-eval's model that answers it, with one log-likelihood a window.
REQUEST = "loglikelihood_windows"


@dataclass(frozen=True)
class Layout:
    """How documents become windows: the keys under `windows` in the metadata of a task's YAML.

    Attributes:
        length: tokens of a window; fewer where the model reads fewer at once.
        separator: stands between documents.
        documents: of the first so many; None: of all.
        count: at most so many windows, the first ones; None: all.
        lines: documents are lines with their line breaks, and those that are blank are empty.
    """

    length: int = 2048
    separator: str = "\n\n"
    documents: int | None = None
    count: int | None = None
    lines: bool = False

    @classmethod
    def of(cls, name: str, given: Any) -> Layout:
        """From the metadata of the task `name`. Raises TaskError: a key is unknown, or a number is not above zero."""
        given = {} if given is None else given
        known = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(given, dict) or given.keys() - known.keys():
            raise TaskError(f"task {name!r}: metadata: windows: it may have {', '.join(known)}, and nothing else")
        layout = cls(**given)
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
        """The documents as one text. Raises TaskError: one has no text."""
        texts = []
        for index, document in enumerate(documents):
            if index == self.documents:
                break
            text = document.get("text")
            if not isinstance(text, str):
                there = ", ".join(document)
                raise TaskError(f"task {name!r}, document {index}: no text under 'text'; it has {there}")
            texts.append(text if text.strip() or not self.lines else "")
        return self.separator.join(texts)


class TokenPerplexity(ConfigurableTask):
    """exp of the mean negative log-likelihood of a text's tokens, in windows that do not overlap.

    The documents are joined, and the text is tokenised once (with one beginning-of-sequence token, where the model's
    texts have one) and cut into windows of `length` tokens; what is left at the end is dropped. A window of L tokens
    predicts L − 1: its first is only read. So did GPTQ's script (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", 2022,
    arXiv 2210.17323) and those that follow it. As all windows are of one length, the mean over tokens is the mean over
    windows that those scripts take.

    In the suite's terms a document is a window: `limit` counts them, and they are what is resampled.

    Raises:
        TaskError: there is no text, or the layout is wrong.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        name = own["task"]
        if own.get("dataset_path") is None and own.get("custom_dataset") is None:
            raise TaskError(f"task {name!r} has no text of its own; give it some: {{task: {name}, data: FILE}}")
        self.layout = Layout.of(name, (own.get("metadata") or {}).get("windows"))
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
        """The same task, cut into windows of this model's tokens.

        Raises:
            TaskError: a document has no text, or all together are shorter than a window.
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
        """The windows, or the documents as long as it has not been cut."""
        return super().eval_docs if self._windows is None else self._windows

    def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> str:
        """Nothing stands before a window, neither examples nor a chat template."""
        return ""

    def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Instance:
        """One request a window, with its text for the reader and its tokens for the model."""
        if self._windows is None:
            raise TaskError(f"task {self.config.task!r} counts tokens, which lrbench knows and lm-eval alone does not")
        return Instance(REQUEST, doc, (doc["text"], tuple(doc["tokens"])), 0, metadata=kwargs["metadata"])


def window_perplexity(doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    """A window's log-likelihood, and how many tokens it is of."""
    return {"token_perplexity": (results[0], len(doc["tokens"]) - 1)}


def window_pair(request: Instance) -> tuple[None, list[int], list[int]]:
    """A window as a context of one token and the continuation that is predicted."""
    tokens = list(request.args[1])
    return None, tokens[:1], tokens[1:]
