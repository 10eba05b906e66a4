"""Reads a suite's calibration text: bundled, a file, a data set, or the training split of an lm-eval task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.errors import LrbenchError, TaskError
from lrbench.models.bundled_text import bundled_texts
from lrbench.suite.load import CalibrationSpec, TaskSpec, TextSpec
from lrbench.system.text import did_you_mean, one_line
from lrbench.tasks.containment import contained
from lrbench.tasks.load import load_tasks
from lrbench.tasks.saved_datasets import load_dataset, reason

if TYPE_CHECKING:
    from lm_eval.api.task import Task

#: Characters read from the beginning of the text, and their minimum per drawn token.
READ, READ_PER_TOKEN = 5_000_000, 40
#: Default tokens of a window, if the model takes as many.
LENGTH = 512


def read_text(
    spec: CalibrationSpec, task_paths: Sequence[Path], evaluated: Mapping[str, Task], notify: Callable[[str], None]
) -> list[str]:
    """The documents of a suite's calibration text: the first `READ` characters, or more if many tokens are drawn.

    Args:
        task_paths: the suite's folders of tasks.
        evaluated: the evaluated tasks, by name.
        notify: called with one line before slow steps.

    Raises:
        SuiteError: the text cannot be read, is empty, or is an evaluated split; names the suite's line.
    """
    limit = max(READ, READ_PER_TOKEN * spec.samples * (spec.length or LENGTH))
    if spec.name is not None:
        known = bundled_texts()
        if spec.name not in known:
            hint = did_you_mean(spec.name, known)
            message = f"no bundled calibration text {spec.name!r}{hint} (bundled: {', '.join(known)})"
            raise spec.error_at(message, "name")
        return _first(known[spec.name](), limit)
    assert spec.text is not None
    try:
        documents = _first(_documents(spec.text, task_paths, evaluated, limit, notify), limit)
    except LrbenchError:
        raise
    except Exception as error:  # datasets, lm-eval and task code may raise anything
        raise spec.text.error_at(f"calibration text cannot be read: {one_line(error)}") from None
    if not documents:
        raise spec.text.error_at("the calibration text is empty")
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
    text: TextSpec,
    task_paths: Sequence[Path],
    evaluated: Mapping[str, Task],
    limit: int,
    notify: Callable[[str], None],
) -> Iterator[str]:
    if text.file is not None:
        path = Path(text.file)
        if path.suffix == ".txt":
            yield _plain(text, path, limit)
        else:
            yield from _lines(text, path)
    elif text.dataset is not None:
        notify(f"reading calibration text from {text.dataset}")
        yield from _dataset(text)
    else:
        yield from _training(text, task_paths, evaluated)


def _plain(text: TextSpec, path: Path, limit: int) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(limit)
    except (OSError, UnicodeDecodeError) as error:
        raise text.error_at(f"{path}: cannot be read as UTF-8 text: {one_line(error)}") from None


def _lines(text: TextSpec, path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise text.error_at(f"{path}:{number}: not JSON: {one_line(error)}") from None
            yield _column(text, entry, f"{path}:{number}")


def _column(text: TextSpec, entry: Any, where: str) -> str:
    key = text.column or "text"
    if not isinstance(entry, Mapping) or key not in entry:
        columns = f" (it has {', '.join(map(str, entry))})" if isinstance(entry, Mapping) else ""
        raise text.error_at(f"{where}: no column {key!r}{columns}; set 'column' to the one that holds the text")
    if not isinstance(entry[key], str):
        raise text.error_at(f"{where}: {key!r} is no text; set 'column' to the one that holds the text")
    return entry[key]


def _dataset(text: TextSpec) -> Iterator[str]:
    split = text.split or "train"
    try:
        with contained():
            loaded = load_dataset(str(text.dataset), text.config, split=split)
    except Exception as error:  # datasets may raise anything
        raise text.error_at(f"data set {text.dataset!r}, split {split!r}: {reason(error)}", "dataset") from None
    for index, entry in enumerate(loaded):
        yield _column(text, entry, f"{text.dataset}, entry {index}")


def _training(text: TextSpec, task_paths: Sequence[Path], evaluated: Mapping[str, Task]) -> Iterator[str]:
    try:
        tasks = load_tasks([TaskSpec(task=str(text.task))], task_paths).tasks
    except TaskError as error:
        raise text.error_at(str(error), "task") from None
    for task_name, task in tasks.items():
        split = task.get_config("training_split")
        if not task.has_training_docs():
            raise text.error_at(f"task {task_name!r} has no training split; calibrate on other text", "task")
        evaluated_split = task.get_config("test_split") or task.get_config("validation_split")
        if task_name in evaluated and split is not None and split == evaluated_split:
            message = f"task {task_name!r} is evaluated on its split {split!r}; calibrate on other text"
            raise text.error_at(message, "task")
        with contained():
            for document in task.training_docs():
                yield _as_text(text, task, document)


def _as_text(text: TextSpec, task: Task, document: Any) -> str:
    """A document's prompt followed by its gold answer."""
    question, answer = task.doc_to_text(document), gold_answer(task, document)
    if not isinstance(question, str) or answer is None:
        name = task.get_config("task")
        message = f"task {name!r}: its prompts and answers are not plain text; calibrate on other text"
        raise text.error_at(message, "task")
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
