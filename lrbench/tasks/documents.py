"""What a task says of its documents beside their requests: which belong together, and which answer is right."""

from __future__ import annotations

import json
from typing import Any

from lm_eval.api.task import Task

from lrbench.errors import TaskError

#: In a task's `metadata`: the field of its documents whose value those that belong together share.
GROUP = "group"


def groups_of(name: str, task: Task, documents: dict[int, Any]) -> dict[int, str | int]:
    """Document -> what it shares with those that it belongs to; empty where the task names no field for that.

    Raises:
        TaskError: a document has no such field, or nothing in it.
    """
    metadata = task.get_config("metadata")
    field = metadata.get(GROUP) if isinstance(metadata, dict) else None
    if field is None:
        return {}
    found: dict[int, str | int] = {}
    for index, document in documents.items():
        value = document.get(field) if isinstance(document, dict) else None
        if value is None:
            raise TaskError(
                f"task {name!r}, document {index}: no {field!r}, by which its metadata group documents; "
                "give it to every document"
            )
        plain = isinstance(value, str | int) and not isinstance(value, bool)
        found[index] = value if plain else json.dumps(value, sort_keys=True, default=str)
    return found


def right_choices(task: Task, documents: dict[int, Any]) -> dict[int, int | list[int]]:
    """Document -> index of the choice that is right, or of those that are, as lm-eval reads them.

    Empty where the task gives no choices; documents whose right choice lm-eval does not know are left out.
    """
    if task.get_config("output_type") != "multiple_choice":
        return {}
    found: dict[int, int | list[int]] = {}
    for index, document in documents.items():
        choices = task.doc_to_choice(document)
        gold = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
        if isinstance(gold, str):
            gold = choices.index(gold) if gold in choices else -1
        several = gold if isinstance(gold, list | tuple) else [gold]
        known = [int(place) for place in several if isinstance(place, int) and 0 <= place < len(choices)]
        if known:
            found[index] = known if isinstance(gold, list | tuple) else known[0]
    return found
