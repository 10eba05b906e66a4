"""CounterFact (Meng, Bau, Andonian, Belinkov, "Locating and editing factual associations in GPT", arXiv 2202.05262).

A record is a fact: a prompt with its subject, two paraphrases of it, the true answer and a false one. Each prompt and
paraphrase is a document here, as in LASER (Sharma, Ash, Misra, 2023, arXiv 2312.13558), and those of a record share its
`case_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from lrbench.errors import TaskError


def from_hub(path: str, **_: Any) -> dict[str, datasets.Dataset]:
    """All records of a data set, whatever its splits, as the split `test`; lm-eval passes the task's metadata too."""
    return {"test": datasets.concatenate_datasets(list(datasets.load_dataset(path).values()))}


def documents(records: datasets.Dataset) -> datasets.Dataset:
    """Records by `case_id`, each as its prompt and then its paraphrases.

    Raises:
        TaskError: a record is not CounterFact's.
    """
    expanded = [document for index, record in enumerate(records) for document in _documents(index, record)]
    return datasets.Dataset.from_list(sorted(expanded, key=lambda document: document["case_id"]))  # sorted is stable


def _documents(index: int, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        rewrite = record["requested_rewrite"]
        prompts = [rewrite["prompt"].replace("{}", rewrite["subject"]), *record["paraphrase_prompts"]]
        shared = {
            "case_id": int(record["case_id"]),
            "subject": rewrite["subject"],
            "answer": rewrite["target_true"]["str"].strip(),
            "other": rewrite["target_new"]["str"].strip(),
        }
        for paraphrase, prompt in enumerate(prompts):
            yield {**shared, "paraphrase": paraphrase, "question": prompt.strip()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaskError(
            f"record {index} is not CounterFact's: it needs case_id, requested_rewrite (prompt, subject, "
            f"target_true.str, target_new.str) and paraphrase_prompts; {type(error).__name__}: {error}"
        ) from None
