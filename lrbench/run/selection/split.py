"""Splits documents into validation, on which a choice is made, and test, on which it is reported."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from lrbench.suite.selection import SelectSpec
from lrbench.tasks.frozen_requests import FrozenRequests


@dataclass(frozen=True)
class Split:
    """Task -> ascending indices of its documents on each side; every document is on one side."""

    validation: dict[str, list[int]] = field(default_factory=dict)
    test: dict[str, list[int]] = field(default_factory=dict)

    def sizes(self, side: str) -> dict[str, int]:
        """The number of documents of each task on a side (`validation` or `test`)."""
        return {task: len(documents) for task, documents in getattr(self, side).items()}


def split(requests: FrozenRequests, validation: float, seed: int) -> Split:
    """Puts each document on a side by the hash of its group, or else of its content.

    Documents of one group, and equal documents, are on the same side, also across tasks. A document's side depends only
    on the document, the fraction and the seed, and not on the limit or on other documents.

    Args:
        validation: the expected fraction of documents on the validation side.
    """
    result = Split()
    for name, frozen in requests.tasks.items():
        sides: dict[bool, list[int]] = {True: [], False: []}
        documents = {instance.doc_id: instance.doc for instance in frozen.instances}
        for index in frozen.indices:
            group = frozen.groups.get(index)
            key = ["document", documents[index]] if group is None else ["group", group]
            sides[_place(key, seed) < validation].append(index)
        result.validation[name], result.test[name] = sides[True], sides[False]
    return result


def split_of(spec: SelectSpec, requests: FrozenRequests) -> Split:
    """The split that a suite specifies.

    Raises:
        SuiteError: a task has no document on one side; at the suite's line.
    """
    result = split(requests, spec.validation, spec.seed)
    for side, other in (("validation", "test"), ("test", "validation")):
        for task, count in result.sizes(side).items():
            if not count:
                total = result.sizes(other)[task]
                raise spec.error_at(
                    f"task {task!r}: all of its {total} documents fall to {other} and none to {side}; take more "
                    "documents, another fraction for 'validation', or another 'seed' of the split"
                )
    return result


def _place(key: list[Any], seed: int) -> float:
    """A hash of a key as a number in [0, 1)."""
    text = json.dumps([seed, *key], sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
