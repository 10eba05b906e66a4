"""Groups and gold answers of a task's documents."""

from __future__ import annotations

import json
from typing import Any

from lm_eval.api.task import Task

from lrbench.errors import TaskError

#: Key in a task's `metadata`: the field of its documents that holds their group.
GROUP = "group"


def groups_of(name: str, task: Task, documents: dict[int, Any]) -> dict[int, str | int]:
    """Document -> its group; empty if the task's metadata name no field for groups.

    Raises:
        TaskError: a document has no value in that field.
    """
    metadata = task.get_config("metadata")
    field = metadata.get(GROUP) if isinstance(metadata, dict) else None
    if field is None:
        return {}
    groups: dict[int, str | int] = {}
    for index, document in documents.items():
        value = document.get(field) if isinstance(document, dict) else None
        if value is None:
            raise TaskError(
                f"task {name!r}, document {index}: no field {field!r}, the group field in its metadata; "
                "give it to every document"
            )
        plain = isinstance(value, str | int) and not isinstance(value, bool)
        groups[index] = value if plain else json.dumps(value, sort_keys=True, default=str)
    return groups


def gold_answers(task: Task, documents: dict[int, Any]) -> dict[int, int | list[int]]:
    """Document -> index, or indices, of its gold answer among the choices, as lm-eval determines them.

    Empty if the task is not multiple choice; documents without a gold answer are left out.
    """
    if task.get_config("output_type") != "multiple_choice":
        return {}
    answers: dict[int, int | list[int]] = {}
    for index, document in documents.items():
        choices = task.doc_to_choice(document)
        gold = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
        if isinstance(gold, str):
            gold = choices.index(gold) if gold in choices else -1
        several = gold if isinstance(gold, list | tuple) else [gold]
        known = [int(place) for place in several if isinstance(place, int) and 0 <= place < len(choices)]
        if known:
            answers[index] = known if isinstance(gold, list | tuple) else known[0]
    return answers
