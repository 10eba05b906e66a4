"""Whether calibration text holds what is evaluated. Compared are words: no case, no punctuation, no spacing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lrbench.errors import TaskError
from lrbench.reduction.calibration.sources import right_answer
from lrbench.system.text import one_line
from lrbench.tasks.token_windows import REQUEST

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from lrbench.tasks.frozen_requests import FrozenRequests, FrozenTask

#: An evaluated document is found by all of its words, or any so many in a row.
RUN = 50
#: Characters below which a document is not compared: `yes`, `3 + 4 = 7` stand in many texts.
SHORTEST = 20
_KEY = 4  # words by which passages are looked up
_WORD = re.compile(r"\w+")


class Passages:
    """Texts in which runs of words can be looked up."""

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
        """Whether a passage holds all words of `text` in a row, or `RUN` in a row of a longer one."""
        if len(text.strip()) < SHORTEST:
            return False
        words = _words(text)
        if len(words) > RUN:
            return any(run in self._runs for run in _runs(words, RUN))
        if len(words) < _KEY:
            return bool(words) and any(f" {' '.join(words)} " in passage for passage in self._texts)
        sought = f" {' '.join(words)} "
        return any(sought in self._texts[index] for index in self._keys.get(" ".join(words[:_KEY]), ()))


def evaluated_in(passages: Sequence[str], requests: FrozenRequests) -> tuple[str, int] | None:
    """(task, document) of the first evaluated document that stands in calibration text; None where none does.

    Of a document that is asked about, its prompt without few-shot examples and each of its answers is looked for; of
    one whose every token is predicted, the text; of one that is answered in writing, the prompt and the right answer.

    Raises:
        TaskError: what a task asks cannot be had as text.
    """
    found = Passages(passages)
    for name, frozen in requests.tasks.items():
        try:
            documents = list(_documents(frozen))
        except Exception as error:  # the task's templates and functions raise whatever they like
            what = "its documents cannot be compared with the calibration text"
            raise TaskError(f"task {name!r}: {what}: {one_line(error)}") from error
        for document, texts in documents:
            if any(found.hold(text) for text in texts):
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
    if not isinstance(query, str):  # several contexts, one answer: then the context is the document
        query = str(instance.args[0])
    if instance.request_type == "loglikelihood":
        return f"{query}{instance.args[1]}"  # the answer comes with its delimiter
    return f"{query} {right_answer(frozen.task, instance.doc) or ''}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str], length: int) -> Iterable[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
