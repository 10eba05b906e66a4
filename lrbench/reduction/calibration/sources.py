"""Calibration text as a suite names it: bundled, a file, a data set, or the training split of an lm-eval task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.errors import LrbenchError, TaskError
from lrbench.models.bundled_text import bundled_texts
from lrbench.suite.load import Suite, TaskSpec, TextSpec
from lrbench.suite.yaml_reader import KeyPath
from lrbench.system.text import did_you_mean, one_line
from lrbench.tasks.containment import contained
from lrbench.tasks.load import load_tasks

if TYPE_CHECKING:
    from lm_eval.api.task import Task

#: Characters of text that are looked at, from its beginning; at least so many for each token that is drawn.
READ, READ_PER_TOKEN = 5_000_000, 40
#: Tokens of a window, where the suite does not say and the model takes so many.
LENGTH = 512

TEXT, NAME = ("calibration", "text"), ("calibration", "name")


def read_text(suite: Suite, evaluated: Mapping[str, Task], notify: Callable[[str], None]) -> list[str]:
    """The documents of the suite's calibration text, in their order.

    The first `READ` characters are enough to draw from, and more only where many tokens are drawn.

    Args:
        suite: has a calibration.
        evaluated: the tasks that it evaluates, by name.
        notify: told in one line what takes long.

    Raises:
        SuiteError: the text cannot be had, is empty, or is what a task is evaluated on; at the suite's line.
    """
    spec = suite.calibration
    assert spec is not None
    limit = max(READ, READ_PER_TOKEN * spec.samples * (spec.length or LENGTH))
    if spec.name is not None:
        known = bundled_texts()
        if spec.name not in known:
            hint = did_you_mean(spec.name, known)
            raise suite.error(NAME, f"no bundled calibration text {spec.name!r}{hint} (bundled: {', '.join(known)})")
        return _first(known[spec.name](), limit)
    assert spec.text is not None
    try:
        documents = _first(_documents(suite, spec.text, evaluated, limit, notify), limit)
    except LrbenchError:
        raise
    except Exception as error:  # datasets, lm-eval and the tasks' own code raise whatever they like
        raise suite.error(TEXT, f"calibration text cannot be read: {one_line(error)}") from None
    if not documents:
        raise suite.error(TEXT, "the calibration text is empty")
    return documents


def _first(documents: Iterator[str], limit: int) -> list[str]:
    """Documents up to `limit` characters; the last one is cut there. Those of nothing but blanks are left out."""
    found, left = [], limit
    for document in documents:
        if document.strip():
            found.append(document[:left])
            left -= len(found[-1])
        if not left:
            break
    return found


def _documents(
    suite: Suite, text: TextSpec, evaluated: Mapping[str, Task], limit: int, notify: Callable[[str], None]
) -> Iterator[str]:
    if text.file is not None:
        path = Path(text.file)
        if path.suffix == ".txt":
            yield _plain(suite, path, limit)
        else:
            yield from _lines(suite, path, text.column or "text")
    elif text.dataset is not None:
        notify(f"reading calibration text from {text.dataset}")
        yield from _dataset(suite, text)
    else:
        yield from _training(suite, str(text.task), evaluated, notify)


def _plain(suite: Suite, path: Path, limit: int) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(limit)
    except (OSError, UnicodeDecodeError) as error:
        raise suite.error(TEXT, f"{path}: cannot be read as UTF-8 text: {one_line(error)}") from None


def _lines(suite: Suite, path: Path, key: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise suite.error(TEXT, f"{path}:{number}: not JSON: {one_line(error)}") from None
            yield _column(suite, entry, key, f"{path}:{number}")


def _column(suite: Suite, entry: Any, key: str, where: str) -> str:
    if not isinstance(entry, Mapping) or key not in entry:
        there = f" (it has {', '.join(map(str, entry))})" if isinstance(entry, Mapping) else ""
        raise suite.error(TEXT, f"{where}: no {key!r} there{there}; set 'column' to the one that holds the text")
    if not isinstance(entry[key], str):
        raise suite.error(TEXT, f"{where}: {key!r} is no text; set 'column' to the one that holds the text")
    return entry[key]


def _dataset(suite: Suite, text: TextSpec) -> Iterator[str]:
    import datasets

    place: KeyPath = (*TEXT, "dataset")
    split = text.split or "train"
    try:
        with contained():
            loaded = datasets.load_dataset(text.dataset, text.config, split=split)
    except Exception as error:  # datasets raises whatever it likes
        raise suite.error(place, f"data set {text.dataset!r}, split {split!r}: {one_line(error)}") from None
    for index, entry in enumerate(loaded):
        yield _column(suite, entry, text.column or "text", f"{text.dataset}, entry {index}")


def _training(suite: Suite, name: str, evaluated: Mapping[str, Task], notify: Callable[[str], None]) -> Iterator[str]:
    place: KeyPath = (*TEXT, "task")
    try:
        tasks = load_tasks([TaskSpec(task=name)], suite.task_paths, notify=notify).tasks
    except TaskError as error:
        raise suite.error(place, str(error)) from None
    for task_name, task in tasks.items():
        split = task.get_config("training_split")
        if not task.has_training_docs():
            raise suite.error(place, f"task {task_name!r} has no training split; calibrate on other text")
        asked = task.get_config("test_split") or task.get_config("validation_split")
        if task_name in evaluated and split is not None and split == asked:
            raise suite.error(place, f"task {task_name!r} is evaluated on its split {split!r}; calibrate on other text")
        with contained():
            for document in task.training_docs():
                yield _as_text(suite, task, document, place)


def _as_text(suite: Suite, task: Task, document: Any, place: KeyPath) -> str:
    """A document as its prompt and right answer."""
    question, answer = task.doc_to_text(document), right_answer(task, document)
    if not isinstance(question, str) or answer is None:
        name = task.get_config("task")
        raise suite.error(place, f"task {name!r}: its prompts and answers are not plain text; calibrate on other text")
    return f"{question}{task.get_config('target_delimiter') if question else ''}{answer}"


def right_answer(task: Task, document: Any) -> str | None:
    """The right answer to a document as text; None where it is none."""
    target = task.doc_to_target(document)
    if isinstance(target, list | tuple):
        target = target[0] if target else None
    if isinstance(target, int) and not isinstance(target, bool) and task.get_config("doc_to_choice") is not None:
        choices = task.doc_to_choice(document)
        target = choices[target] if 0 <= target < len(choices) else None
    return target if isinstance(target, str) else None if target is None else str(target)
