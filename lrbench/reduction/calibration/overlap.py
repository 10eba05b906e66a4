"""Detects evaluated documents in the calibration text, comparing words without case, punctuation and spacing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lrbench.errors import TaskError
from lrbench.reduction.calibration.sources import gold_answer
from lrbench.system.text import one_line
from lrbench.tasks.token_windows import REQUEST

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from lrbench.tasks.frozen_requests import FrozenRequests, FrozenTask

#: A document overlaps if all of its words, or this many consecutive ones, appear in the text.
RUN = 50
#: Documents with fewer characters are not compared: `yes` and `3 + 4 = 7` appear in many texts.
SHORTEST = 20
_KEY = 4  # words of a look-up key
_WORD = re.compile(r"\w+")


class Passages:
    """Texts indexed by runs of words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts: list[str] = []
        self._runs: set[str] = set()
        self._keys: dict[str, set[int]] = {}
        for index, text in enumerate(texts):
            words = _words(text)
            self._texts.append(f" {' '.join(words)} ")
            self._runs.update(_runs(words, RUN))
            for key in _runs(words, _KEY):
                self._keys.setdefault(key, set()).add(index)

    def hold(self, text: str) -> bool:
        """Whether a passage contains the words of `text` consecutively; of a longer text, `RUN` consecutive words."""
        if len(text.strip()) < SHORTEST:
            return False
        words = _words(text)
        if len(words) > RUN:
            return any(run in self._runs for run in _runs(words, RUN))
        if len(words) < _KEY:
            return bool(words) and any(f" {' '.join(words)} " in passage for passage in self._texts)
        sought = f" {' '.join(words)} "
        return any(sought in self._texts[index] for index in self._keys.get(" ".join(words[:_KEY]), ()))


def find_evaluated_document(passages: Sequence[str], requests: FrozenRequests) -> tuple[str, int] | None:
    """(task, document) of the first evaluated document that the calibration text contains, else None.

    Looks for each prompt without few-shot examples, followed by each choice; for rolling tasks, the text; for
    generation tasks, the prompt followed by the gold answer.

    Raises:
        TaskError: a task's documents cannot be rendered as text.
    """
    index = Passages(passages)
    for name, frozen in requests.tasks.items():
        try:
            documents = list(_documents(frozen))
        except Exception as error:  # task templates and functions may raise anything
            problem = "its documents cannot be compared with the calibration text"
            raise TaskError(f"task {name!r}: {problem}: {one_line(error)}") from error
        for document, texts in documents:
            if any(index.hold(text) for text in texts):
                return name, document
    return None


def _documents(frozen: FrozenTask) -> Iterator[tuple[int, list[str]]]:
    texts: dict[int, list[str]] = {}
    for instance in frozen.instances:
        texts.setdefault(instance.doc_id, []).append(_text(frozen, instance))
    yield from texts.items()


def _text(frozen: FrozenTask, instance: Instance) -> str:
    if instance.request_type in ("loglikelihood_rolling", REQUEST):
        return str(instance.args[0])
    query = frozen.task.doc_to_text(instance.doc)
    if not isinstance(query, str):  # several contexts with one answer: compare the context
        query = str(instance.args[0])
    if instance.request_type == "loglikelihood":
        return f"{query}{instance.args[1]}"  # the answer comes with its delimiter
    return f"{query} {gold_answer(frozen.task, instance.doc) or ''}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str], length: int) -> Iterable[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
