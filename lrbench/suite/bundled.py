"""Names and folders of the bundled models; does not import torch."""

from __future__ import annotations

from pathlib import Path


def bundled() -> dict[str, Path]:
    """Names and folders of the bundled models."""
    return {"almanac": Path(__file__).parent.parent / "models" / "almanac" / "checkpoint"}
