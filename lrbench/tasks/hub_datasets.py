"""Data sets of the Hugging Face hub: which a task reads, how large they are, and saving them as folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi

from lrbench.errors import TaskError
from lrbench.system import files
from lrbench.system.text import one_line
from lrbench.tasks.folders import LOCAL_READERS

#: Options of `load_dataset` that do not change the documents.
_EXECUTION = {
    *("cache_dir", "download_config", "download_mode", "verification_mode", "keep_in_memory", "save_infos", "num_proc"),
    *("token", "storage_options", "streaming", "trust_remote_code"),
}
_FILE = re.compile(r"hf://datasets/(?P<repository>[^/@\"]+/[^/@\"]+)(?:@(?P<commit>[0-9a-f]{40}))?/(?P<path>[^\"]+)")


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub, as a task or calibration reads it.

    Attributes:
        repository: its hub id.
        config: the folder of its splits, inside that of the repository.
        splits: the splits that are read; None for all.
        arguments: of `datasets.load_dataset`, without the split.
    """

    repository: str
    config: str
    splits: tuple[str, ...] | None
    arguments: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        """The data set's name in manifests, and its folder."""
        return f"{self.repository}/{self.config}"

    @property
    def label(self) -> str:
        """The data set's name in messages."""
        return f"data set {self.name}"

    @cached_property
    def _builder(self) -> datasets.DatasetBuilder:
        options = {key: value for key, value in self.arguments.items() if key not in _EXECUTION}
        return datasets.load_dataset_builder(**options)

    def files(self) -> tuple[str | None, dict[str, int]]:
        """The hub's commit, and the files that are downloaded with their sizes in bytes. Asks the hub.

        Raises:
            TaskError: the hub does not have the data set or the configuration, or cannot be reached.
        """
        try:
            urls = [url for group in (self._builder.config.data_files or {}).values() for url in group]
            places = [place for place in map(_FILE.match, map(str, urls)) if place]
            commit = next((place["commit"] for place in places), None)
            info = HfApi().dataset_info(self.repository, revision=commit, files_metadata=True)
        except Exception as error:  # datasets and huggingface_hub may raise anything
            raise TaskError(f"data set {self.repository}: {one_line(error)}") from error
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        return info.sha, {place["path"]: sizes.get(place["path"], 0) for place in places}

    def save(self, root: Path) -> tuple[list[str], list[str]]:
        """Downloads the data set and saves its splits in `root`; those that are there already are kept.

        Returns:
            The saved splits; and those that the hub does not have.

        Raises:
            TaskError: the hub does not give it, or it cannot be written.
        """
        try:
            self._builder.download_and_prepare(verification_mode=self.arguments.get("verification_mode"))
            available = {str(name): split for name, split in self._builder.as_dataset().items()}
            wanted = [name for name in (available if self.splits is None else self.splits) if name in available]
            for name in wanted:
                folder = root / self.name / name
                if not folder.exists():
                    with files.temporary_folder(folder) as new:
                        available[name].save_to_disk(str(new))
                        files.sync_folder(new)
                        files.replace_folder(folder, new)
        except Exception as error:
            raise TaskError(f"data set {self.name}: {one_line(error)}") from error
        return wanted, sorted(set(self.splits or ()) - set(available))


def hub_dataset(
    path: str | None, config: str | None, options: Mapping[str, Any], splits: tuple[str, ...] | None = None
) -> HubDataset | None:
    """The data set that `datasets.load_dataset(path, config, **options)` reads from the hub; None if it is local.

    Where options choose files, or how they are read, the name of the folder has a hash of these options.
    """
    if path is None or path.startswith(".") or Path(path).is_dir():
        return None
    chosen = {key: value for key, value in options.items() if key not in _EXECUTION and value is not None}
    repository = path
    if path in LOCAL_READERS:
        place = _FILE.search(json.dumps(chosen, default=str))
        if place is None:
            return None
        repository = place["repository"]
    folder = config or "default"
    if chosen:
        text = json.dumps([path, chosen], sort_keys=True, default=str)
        folder = f"{config or 'files'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return HubDataset(repository, folder, splits, {"path": path, "name": config, **options})


def merged(datasets: Iterable[HubDataset]) -> list[HubDataset]:
    """Each data set once, with all splits that are read of it."""
    together: dict[str, HubDataset] = {}
    for dataset in datasets:
        known = together.setdefault(dataset.name, dataset)
        splits = (*known.splits, *dataset.splits) if known.splits is not None and dataset.splits is not None else None
        together[dataset.name] = replace(known, splits=splits and tuple(dict.fromkeys(splits)))
    return list(together.values())
