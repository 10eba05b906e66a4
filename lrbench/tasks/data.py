"""Replaces a task's documents by those of a file or a saved data set (`data` in a suite)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrbench.errors import TaskError
from lrbench.tasks.saved_datasets import find_saved

#: File ending -> builder of `datasets`; compressed files are unpacked.
READERS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".raw": "text",
    ".txt": "text",
}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
_SHOWN = 8


def with_data(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A copy of a task's config with documents and few-shot examples from `file`.

    Of a folder saved by `save_to_disk`, the task reads its own splits; a folder of a single split replaces them all.
    Plain text is one document under `text`, or one per line if the task's documents are lines.

    Raises:
        TaskError: the file is missing or of an unknown kind, or the folder was not saved by `save_to_disk`; or the task
            has no split to replace.
    """
    name = config.get("task")
    if file.is_dir():
        return _with_folder(config, file)
    if not file.is_file():
        raise TaskError(f"task {name!r}: data file not found: {file}")
    endings = [ending for ending in file.suffixes[-2:] if ending not in COMPRESSED]
    reader = READERS.get(endings[-1]) if endings else None
    if reader is None:
        raise TaskError(
            f"task {name!r}: data must be a file of {', '.join(READERS)}, or one of these compressed, or a folder "
            f"saved by save_to_disk; not {file.name!r}"
        )
    split = config.get("test_split") or config.get("validation_split")
    if split is None:
        raise TaskError(f"task {name!r} has neither a test nor a validation split, so its data cannot be replaced")
    options: dict[str, Any] = {"data_files": {split: str(file)}}
    if reader == "text":
        lines = ((config.get("metadata") or {}).get("windows") or {}).get("lines", False)
        options |= {"sample_by": "line", "keep_linebreaks": True} if lines else {"sample_by": "document"}
    fewshot = {key: value for key, value in (config.get("fewshot_config") or {}).items() if key != "split"}
    # lm-eval leaves the scored document out of its own examples only if these two splits are equal
    splits = {"test_split": split, "fewshot_split": None if "samples" in fewshot else split}
    return {
        **config,
        **{key: None for key in ("training_split", "validation_split") if key in config},
        **splits,
        "fewshot_config": fewshot or None,
        "custom_dataset": None,
        "dataset_path": reader,
        "dataset_name": None,
        "dataset_kwargs": options,
    }


def _with_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    if find_saved(str(folder.resolve()), None) is None:
        inside = [path.name for path in sorted(folder.iterdir())]
        holds = f"it has {', '.join(inside[:_SHOWN])}{', ...' * (len(inside) > _SHOWN)}" if inside else "it is empty"
        raise TaskError(f"task {config.get('task')!r}: {folder} is no data set saved by save_to_disk; {holds}")
    source = {
        "custom_dataset": None,
        "dataset_path": str(folder.resolve()),
        "dataset_name": None,
        "dataset_kwargs": None,
    }
    return {**config, **source}
