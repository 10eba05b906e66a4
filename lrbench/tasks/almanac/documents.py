"""Reads the bundled tasks' documents from beside this file, so that no path depends on the working directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def read(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The documents of one JSON lines file as the split `test`; lm-eval passes the task's metadata too."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
