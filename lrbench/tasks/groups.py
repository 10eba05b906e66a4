"""Documents that stand or fall together, such as paraphrases of one fact: what they share is their group.

A task's YAML says which field of its documents that is: `metadata: {group_key: case_id}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import Task

from lrbench.errors import TaskError


def group_of(task: Task, document: Mapping[str, Any]) -> str | int | None:
    """What `document` shares with others of its task; None where it stands alone.

    Raises:
        TaskError: it lacks the field, or the field is neither text nor a whole number.
    """
    key = (task.get_config("metadata") or {}).get("group_key")
    if key is None:
        return None
    group = document.get(key)
    if not isinstance(group, str | int):
        name = task.get_config("task")
        raise TaskError(
            f"task {name!r}: group_key is {key!r}, and a document has {group!r} there; it takes text or a number"
        )
    return group
