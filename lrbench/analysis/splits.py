"""On which part of the documents a row was scored, where a run selects on one part and reports another."""

from __future__ import annotations

from typing import Literal

from lrbench.results.store import Row

Split = Literal["", "test", "validation"]


def split_of(row: Row) -> Split:
    """`validation` of a row that served a choice, `test` of one that was held out from it; empty without a selection.

    Rows of one table are of one part: a score on the documents that chose the row is no score of the choice.
    """
    return row.selection.split if row.selection is not None else ""


def in_words(split: Split) -> str:
    """Behind a model's name: `, held-out documents`."""
    return {"validation": ", documents of the selection", "test": ", held-out documents"}.get(split, "")


def first_class(row: Row) -> bool:
    """Whether a row is to be reported: those that a choice was made on are shown apart."""
    return split_of(row) != "validation"
