"""The bundled calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrbench.models.almanac.corpus import Corpus

ALMANAC_DOCUMENTS = 10_000  # some 300,000 tokens


def bundled_texts() -> dict[str, Callable[[], Iterator[str]]]:
    """Name -> generator of documents, equal on every machine and disjoint from the bundled tasks."""
    return {"almanac": lambda: Corpus().calibration(ALMANAC_DOCUMENTS)}
