"""Replaces a task's documents by those of a file (`data` in a suite)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrbench.errors import TaskError

#: File ending -> builder of `datasets`; compressed files are unpacked.
READERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".raw": "text",
    ".txt": "text",
}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}


def with_data(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A copy of a task's config with documents and few-shot examples from `file`.

    Plain text is one document under `text`, or one per line if the task's documents are lines.

    Raises:
        TaskError: the file is missing or of an unknown kind, or the task has no split to replace.
    """
    name = config.get("task")
    if not file.is_file():
        raise TaskError(f"task {name!r}: data file not found: {file}")
    endings = [ending for ending in file.suffixes[-2:] if ending not in COMPRESSED]
    reader = READERS.get(endings[-1]) if endings else None
    if reader is None:
        raise TaskError(
            f"task {name!r}: data must be a file of {', '.join(READERS)}, or one of these compressed; not {file.name!r}"
        )
    split = config.get("test_split") or config.get("validation_split")
    if split is None:
        raise TaskError(f"task {name!r} has neither a test nor a validation split, so its data cannot be replaced")
    options: dict[str, Any] = {"data_files": {split: str(file)}}
    if reader == "text":
        lines = ((config.get("metadata") or {}).get("windows") or {}).get("lines", False)
        options |= {"sample_by": "line", "keep_linebreaks": True} if lines else {"sample_by": "document"}
    elsewhere = {
        key: None
        for key in ("training_split", "validation_split", "fewshot_split")
        if config.get(key) not in (None, split)
    }
    return {
        **config,
        **elsewhere,
        "custom_dataset": None,
        "dataset_path": reader,
        "dataset_name": None,
        "dataset_kwargs": options,
    }
