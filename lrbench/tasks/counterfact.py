"""CounterFact (Meng, Bau, Andonian, Belinkov, "Locating and editing factual associations in GPT", arXiv 2202.05262).

A record is a fact: a prompt with its subject, two paraphrases, the true answer and a false one. As in LASER (Sharma,
Ash, Misra, 2023, arXiv 2312.13558), each prompt and paraphrase is a document; those of a record share its `case_id`.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import datasets

from lrbench.errors import TaskError
from lrbench.system.text import one_line
from lrbench.tasks.saved_datasets import load_dataset

NEEDED = ("case_id", "requested_rewrite", "paraphrase_prompts")
WHAT = (
    "these are not CounterFact's records: each needs case_id, requested_rewrite (prompt, subject, target_true.str, "
    "target_new.str) and paraphrase_prompts"
)

# lm-eval requests a task's documents repeatedly, and expanding the records takes seconds.
_MADE: WeakKeyDictionary[datasets.Dataset, datasets.Dataset] = WeakKeyDictionary()


def from_hub(path: str, **_: Any) -> dict[str, datasets.Dataset]:
    """All splits of a data set together as the split `test`; lm-eval also passes the task's metadata."""
    return {"test": datasets.concatenate_datasets(list(load_dataset(path).values()))}


def documents(records: datasets.Dataset) -> datasets.Dataset:
    """One document for each prompt and each paraphrase, ordered by `case_id`.

    Raises:
        TaskError: the records are not CounterFact's.
    """
    if records not in _MADE:
        _MADE[records] = _expanded(records)
    return _MADE[records]


def _expanded(records: datasets.Dataset) -> datasets.Dataset:
    made: dict[str, list[Any]] = {
        name: [] for name in ("case_id", "paraphrase", "question", "answer", "other", "subject")
    }
    missing = [name for name in NEEDED if name not in records.column_names]
    if missing:
        raise TaskError(f"{WHAT}; they have no {missing[0]!r}")
    needed = records.select_columns(list(NEEDED))
    case = None
    try:
        for record in sorted(needed, key=lambda record: int(record["case_id"])):
            case = record["case_id"]
            rewrite = record["requested_rewrite"]
            prompts = [rewrite["prompt"].replace("{}", rewrite["subject"]), *record["paraphrase_prompts"]]
            true, other = (rewrite[target]["str"].strip() for target in ("target_true", "target_new"))
            for paraphrase, prompt in enumerate(prompts):
                values = (int(record["case_id"]), paraphrase, prompt.strip(), true, other, rewrite["subject"])
                for column, value in zip(made.values(), values, strict=True):
                    column.append(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaskError(f"{WHAT}; case {case}: {one_line(error)}") from None
    return datasets.Dataset.from_dict(made)
