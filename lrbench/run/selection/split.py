"""Documents in two: those that a choice is made on, and those that it is reported on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from lrbench.suite.selection import SelectSpec
from lrbench.tasks.frozen_requests import FrozenRequests


@dataclass(frozen=True)
class Split:
    """Indices of documents by task, ascending; each document is on one side."""

    validation: dict[str, list[int]] = field(default_factory=dict)
    test: dict[str, list[int]] = field(default_factory=dict)

    def sizes(self, side: str) -> dict[str, int]:
        """How many documents of each task a side (`validation` or `test`) has."""
        return {task: len(documents) for task, documents in getattr(self, side).items()}


def split(requests: FrozenRequests, validation: float, seed: int) -> Split:
    """Puts each document where the hash of its group, or else of its content, says.

    Documents of one group, and equal documents, come to the same side, whichever task they are of. A document's side
    depends on nothing but itself, the fraction and the seed: neither another limit nor other documents move it.

    Args:
        validation: the probability of coming to the validation side.
    """
    found = Split()
    for name, frozen in requests.tasks.items():
        sides: dict[bool, list[int]] = {True: [], False: []}
        documents = {instance.doc_id: instance.doc for instance in frozen.instances}
        for index in frozen.indices:
            group = frozen.groups.get(index)
            key = ["document", documents[index]] if group is None else ["group", group]
            sides[_place(key, seed) < validation].append(index)
        found.validation[name], found.test[name] = sides[True], sides[False]
    return found


def split_of(spec: SelectSpec, requests: FrozenRequests) -> Split:
    """The split that a suite asks for.

    Raises:
        SuiteError: a side of some task is empty; at the suite's line.
    """
    found = split(requests, spec.validation, spec.seed)
    for side, other in (("validation", "test"), ("test", "validation")):
        for task, count in found.sizes(side).items():
            if not count:
                there = found.sizes(other)[task]
                raise spec.error_at(
                    f"task {task!r}: all of its {there} documents fall to {other} and none to {side}; take more "
                    "documents, another fraction for 'validation', or another 'seed' of the split"
                )
    return found


def _place(key: list[Any], seed: int) -> float:
    """A number in [0, 1), evenly spread over keys."""
    text = json.dumps([seed, *key], sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
