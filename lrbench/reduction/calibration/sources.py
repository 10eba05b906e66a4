"""Reads a suite's calibration text: bundled, a file, a data set, or the training split of an lm-eval task."""

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

#: Characters read from the beginning of the text, and their minimum per drawn token.
READ, READ_PER_TOKEN = 5_000_000, 40
#: Default tokens of a window, if the model takes as many.
LENGTH = 512

TEXT, NAME = ("calibration", "text"), ("calibration", "name")


def read_text(suite: Suite, evaluated: Mapping[str, Task], notify: Callable[[str], None]) -> list[str]:
    """The documents of the suite's calibration text: the first `READ` characters, or more if many tokens are drawn.

    Args:
        suite: must have a calibration.
        evaluated: the evaluated tasks, by name.
        notify: called with one line before slow steps.

    Raises:
        SuiteError: the text cannot be read, is empty, or is an evaluated split; names the suite's line.
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
    except Exception as error:  # datasets, lm-eval and task code may raise anything
        raise suite.error(TEXT, f"calibration text cannot be read: {one_line(error)}") from None
    if not documents:
        raise suite.error(TEXT, "the calibration text is empty")
    return documents


def _first(documents: Iterator[str], limit: int) -> list[str]:
    """The non-blank documents up to `limit` characters in total; the last one is cut."""
    selected, left = [], limit
    for document in documents:
        if document.strip():
            selected.append(document[:left])
            left -= len(selected[-1])
        if not left:
            break
    return selected


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
        columns = f" (it has {', '.join(map(str, entry))})" if isinstance(entry, Mapping) else ""
        raise suite.error(TEXT, f"{where}: no column {key!r}{columns}; set 'column' to the one that holds the text")
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
    except Exception as error:  # datasets may raise anything
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
        evaluated_split = task.get_config("test_split") or task.get_config("validation_split")
        if task_name in evaluated and split is not None and split == evaluated_split:
            raise suite.error(place, f"task {task_name!r} is evaluated on its split {split!r}; calibrate on other text")
        with contained():
            for document in task.training_docs():
                yield _as_text(suite, task, document, place)


def _as_text(suite: Suite, task: Task, document: Any, place: KeyPath) -> str:
    """A document's prompt followed by its gold answer."""
    question, answer = task.doc_to_text(document), gold_answer(task, document)
    if not isinstance(question, str) or answer is None:
        name = task.get_config("task")
        raise suite.error(place, f"task {name!r}: its prompts and answers are not plain text; calibrate on other text")
    return f"{question}{task.get_config('target_delimiter') if question else ''}{answer}"


def gold_answer(task: Task, document: Any) -> str | None:
    """A document's gold answer as text, or None."""
    target = task.doc_to_target(document)
    if isinstance(target, list | tuple):
        target = target[0] if target else None
    if isinstance(target, int) and not isinstance(target, bool) and task.get_config("doc_to_choice") is not None:
        choices = task.doc_to_choice(document)
        target = choices[target] if 0 <= target < len(choices) else None
    return target if isinstance(target, str) else None if target is None else str(target)
