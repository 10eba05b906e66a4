"""Calibration text that comes with the bundled models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrbench.models.almanac.corpus import Corpus

ALMANAC_DOCUMENTS = 10_000  # some 300,000 tokens


def bundled_texts() -> dict[str, Callable[[], Iterator[str]]]:
    """Name -> its documents. Generated, so the same on every machine; held apart from what the bundled tasks ask."""
    return {"almanac": lambda: Corpus().calibration(ALMANAC_DOCUMENTS)}
