"""BoolQ's passages as running text: one half to calibrate on, the other to score."""

from __future__ import annotations

from typing import Any

import datasets

from lrbench.tasks.saved_datasets import load_dataset


def halves(**_: Any) -> datasets.DatasetDict:
    """The passages of BoolQ's validation split (Clark et al., 2019, arXiv 1905.10044), each once, in their order.

    They are from Wikipedia. Several questions share a passage, so that halves of the questions would share text.

    Returns:
        The first half of the passages as `train`, the second as `test`, as documents with a `text`.

    Raises:
        TaskError: the data set cannot be read.
    """
    passages = list(dict.fromkeys(load_dataset("google/boolq", split="validation")["passage"]))
    middle = len(passages) // 2
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"text": part})
            for split, part in (("train", passages[:middle]), ("test", passages[middle:]))
        }
    )
