"""Reads the bundled tasks' documents from this folder, whatever the working directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def read(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The documents of a JSON lines file as the split `test`; lm-eval also passes the task's metadata."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
