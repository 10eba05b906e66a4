"""What suites need from the Hugging Face hub, and what of it a folder of `lrbench fetch` lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from lrbench.errors import InputError, ModelError, TaskError
from lrbench.models.hub_files import HubFiles, hub_files
from lrbench.models.source import find, load_tokenizer, read_tokenizer
from lrbench.run.inputs import at_line_of_task, tasks_of
from lrbench.suite.load import Suite, TaskSpec
from lrbench.system import files
from lrbench.system.offline import DATASETS, MANIFEST, fetched_folder
from lrbench.system.text import one_line
from lrbench.tasks.hub_datasets import HubDataset, hub_dataset, merged
from lrbench.tasks.load import find_hub_datasets
from lrbench.tasks.metric_trial import lacks_code, try_metrics
from lrbench.tasks.saved_datasets import datasets_from, find_saved


class FetchedFiles(BaseModel):
    """Files of a repository at one revision: the commit, the parts they make, and sizes in bytes."""

    commit: str
    parts: list[str] = []
    files: dict[str, int] = {}


class FetchedDataset(BaseModel):
    """A saved data set: the commit, its saved splits, whether these are all, and splits that the hub lacks."""

    repository: str
    commit: str | None
    splits: list[str] = []
    all: bool = False
    absent: list[str] = []


class FetchedManifest(BaseModel):
    """What came from where: `ORG/NAME@REVISION` -> files; `ORG/NAME/CONFIG` -> data set."""

    schema_version: int = 1
    models: dict[str, FetchedFiles] = {}
    datasets: dict[str, FetchedDataset] = {}

    @classmethod
    def read(cls, folder: Path) -> FetchedManifest:
        """The manifest in a folder; an empty one if there is none. Raises InputError if it is damaged."""
        file = folder / MANIFEST
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise InputError(f"{file}: cannot be read; delete it, and fetch again: {one_line(error)}") from None

    def write(self, folder: Path) -> None:
        """Writes the manifest durably."""
        files.write(folder / MANIFEST, self.model_dump_json(indent=2) + "\n")

    def lack_of(self, need: HubFiles | HubDataset, folder: Path) -> str | None:
        """What is missing of a need, in words; None if nothing is."""
        if isinstance(need, HubDataset):
            saved = self.datasets.get(need.name)
            if saved is None or (need.splits is None and not saved.all):
                return "not fetched"
            wanted = saved.splits if need.splits is None else need.splits
            places = {split: folder / DATASETS / need.name / split / "state.json" for split in wanted}
            lacking = [split for split in wanted if split not in saved.absent and not places[split].is_file()]
            return f"split {', '.join(map(repr, lacking))} not fetched" if lacking else None
        fetched = self.models.get(need.place)
        if fetched is None or (need.part not in fetched.parts and not (need.small and "model" in fetched.parts)):
            return "not fetched"
        snapshot = need.snapshot(folder / "hub", fetched.commit)
        damaged = [name for name, size in fetched.files.items() if _size(snapshot / name) != size]
        if damaged:
            return f"{damaged[0]}{f' and {len(damaged) - 1} more' if damaged[1:] else ''} missing or cut off"
        return None


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def needs_of(suite: Suite) -> Iterator[HubFiles | HubDataset]:
    """What a suite reads from the hub, or from a folder of `lrbench fetch` in its place. Asks nobody.

    Raises:
        InputError: a task is unknown, or its file is invalid.
    """
    for spec in [*suite.models, *([suite.delta.base] if suite.delta is not None else [])]:
        yield from hub_files(spec)
    text = suite.calibration.text if suite.calibration is not None else None
    specs = [*suite.tasks, *([TaskSpec(task=text.task)] if text is not None and text.task is not None else [])]
    with datasets_from(suite.datasets):
        with at_line_of_task(suite):
            datasets = find_hub_datasets(specs, suite.task_paths)
        if text is not None and text.dataset is not None:
            dataset = hub_dataset(text.dataset, text.config, {}, (text.split or "train",))
            datasets += [dataset] if dataset is not None else []
        for dataset in merged(datasets):
            if not _in_own_folder(dataset):
                yield dataset


def _in_own_folder(dataset: HubDataset) -> bool:
    """Whether a data set is in the suite's own folder, or in it but without the configuration, which the run tells."""
    arguments = dict(dataset.arguments)
    try:
        saved = find_saved(arguments.pop("path"), arguments.pop("name"), arguments)
    except TaskError:
        return True
    folder = fetched_folder()
    return saved is not None and (folder is None or not saved.folder.is_relative_to(folder / DATASETS))


def missing(suite: Suite, folder: Path, *, trust_remote_code: bool = False) -> list[str]:
    """One line for each need of a suite that the folder of `--offline` lacks.

    Args:
        trust_remote_code: lets models whose suite asks for it run their repositories' own code.

    Raises:
        InputError: the suite is wrong in another way, or the folder's manifest is damaged.
    """
    manifest = FetchedManifest.read(folder)
    lacks = [(need, manifest.lack_of(need, folder)) for need in dict.fromkeys(needs_of(suite))]
    lines = [f"{need.label}: {lack}" for need, lack in lacks if lack is not None]
    if not any(lack is not None and isinstance(need, HubFiles) for need, lack in lacks):
        lines += loading_faults(suite, trust_remote_code=trust_remote_code)
    if any(lack is not None and isinstance(need, HubDataset) for need, lack in lacks):
        return lines
    try:
        tasks = tasks_of(suite)
    except InputError as error:
        return [*lines, str(error)]
    for name, task in tasks.tasks.items():
        try:
            try_metrics(name, task)
        except Exception as error:  # the task's code may raise anything
            if lacks_code(error):
                lines.append(f"task {name!r}: its metrics need code or files that are missing: {one_line(error)}")
    return lines


def loading_faults(suite: Suite, *, trust_remote_code: bool = False) -> list[str]:
    """Reads the configurations and tokenizers of a suite's models; one line for each that cannot be read.

    Of a GGUF file, which would be dequantized first, only another tokenizer is read.
    """
    lines = []
    for spec in suite.models:
        try:
            if spec.gguf is None:
                read_tokenizer(spec, find(spec, trust_remote_code=trust_remote_code))
            elif spec.tokenizer is not None:
                load_tokenizer(spec.tokenizer)
        except ModelError as error:
            lines.append(str(error))
    return lines
