"""Data sets saved by `save_to_disk` of `datasets`, which are read before the hub is asked.

A root folder holds splits as DATASET/CONFIG/SPLIT, such as `piqa/plain_text/validation`. A data set may stand in a
folder of its organisation, and one without configurations may lack the folder CONFIG. There are up to two: the suite's
folder, and after it the one that `lrbench fetch` has filled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow
from datasets.exceptions import DatasetGenerationError
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.task import FewshotConfig, TaskConfig

from lrbench.errors import TaskError
from lrbench.system.offline import DATASETS, fetched_folder
from lrbench.system.text import one_line
from lrbench.tasks.folders import LOCAL_READERS
from lrbench.tasks.hub_datasets import HubDataset, hub_dataset

#: Names of the folder CONFIG of a data set without configurations; also the hub's names for the only one.
NO_CONFIG = ("none", "default", "main", "plain_text")
#: Data sets that the hub holds under two names, with the same documents and fields.
OTHER_NAMES = {"mmlu": "mmlu_no_train", "siqa": "social_i_qa"}
#: In a task's metadata: the folder of its documents, and which of its splits are replaced by others.
DATA = "data"

_STATE = "state.json"  # is in the folder of every saved split
_ROOT: ContextVar[Path | None] = ContextVar("root", default=None)
_BEFORE: ContextVar[Callable[[HubDataset], None] | None] = ContextVar("before", default=None)
_load_dataset = datasets.load_dataset


@dataclass(frozen=True)
class SavedDataset:
    """The folders of a data set's splits.

    Attributes:
        folder: the folder above them; the split's own if there is one without a name.
        splits: name -> folder; the name is empty if `folder` itself is the split.
    """

    folder: Path
    splits: Mapping[str, Path]

    def read(self, split: str) -> datasets.Dataset:
        """Reads a split. Raises TaskError: it is empty or damaged, or was saved by a newer version of `datasets`."""
        folder = self.splits[split]
        try:
            return datasets.Dataset.load_from_disk(str(folder))
        except IndexError as error:  # no file at all, as datasets saves an empty split
            raise TaskError(f"{folder} has no documents") from error
        except (OSError, json.JSONDecodeError, pyarrow.ArrowException) as error:
            raise TaskError(f"{folder} is incomplete or damaged; copy it again: {one_line(error)}") from error
        except Exception as error:  # datasets may raise anything
            hint = f"; a newer version of datasets than {datasets.__version__} may have saved it"
            raise TaskError(f"{folder} cannot be read: {one_line(error)}{hint}") from error

    def listing(self) -> str:
        """The names of the splits."""
        return ", ".join(self.splits)


def reason(error: BaseException) -> str:
    """An exception of `datasets` as one line; where a file cannot be read, the exception of the file's reader."""
    return one_line((isinstance(error, DatasetGenerationError) and error.__cause__) or error)


@contextmanager
def datasets_from(root: Path | None) -> Iterator[None]:
    """Makes tasks, and calibration text, look for their data sets in `root` before they ask the hub."""
    token = _ROOT.set(root)
    try:
        yield
    finally:
        _ROOT.reset(token)


@contextmanager
def before_reading(act: Callable[[HubDataset], None]) -> Iterator[None]:
    """Calls `act` before a task, or calibration text, reads a data set that is on the hub."""
    token = _BEFORE.set(act)
    try:
        yield
    finally:
        _BEFORE.reset(token)


def load_dataset(
    path: str, name: str | None = None, data_dir: Any = None, data_files: Any = None, split: Any = None, **options: Any
) -> Any:
    """As `datasets.load_dataset`, but a saved data set is read from its folder.

    Raises:
        TaskError: the folder lacks the configuration or split, or cannot be read; or the hub does not have it either.
    """
    options |= {key: value for key, value in (("data_dir", data_dir), ("data_files", data_files)) if value is not None}
    if options.get("streaming"):
        return _load_dataset(path, name, split=split, **options)
    _announce(hub_dataset(path, name, options, None if split is None else (str(split),)))
    saved = find_saved(path, name, options)
    if saved is None:
        return _from_hub(path, lambda: _load_dataset(path, name, split=split, **options))
    if split is None:
        return datasets.DatasetDict({name: saved.read(name) for name in saved.splits})
    if "" in saved.splits:
        return saved.read("")
    if split not in saved.splits:
        raise TaskError(f"{saved.folder} has no split {split!r}; it has {saved.listing()}")
    return saved.read(split)


def _announce(dataset: HubDataset | None) -> None:
    act = _BEFORE.get()
    if act is not None and dataset is not None:
        act(dataset)


@contextmanager
def saved_datasets() -> Iterator[list[ConfigurableTask]]:
    """Makes lm-eval's tasks read saved data sets; yields the list of tasks that began to load.

    All tasks load their data set in `ConfigurableTask.download`, those in groups, of Python classes and inline as well;
    code of their own calls `datasets.load_dataset`. Then lm-eval lists the documents for few-shot examples; read at
    once, they take a tenth of the time.
    """
    begun: list[ConfigurableTask] = []
    original, examples = ConfigurableTask.download, ConfigurableTask.fewshot_docs

    def download(task: ConfigurableTask, dataset_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        begun.append(task)
        try:
            options = {key: value for key, value in (dataset_kwargs or {}).items() if key != "trust_remote_code"}
            if not callable(task.config.custom_dataset):
                _announce(hub_dataset(task.DATASET_PATH, task.DATASET_NAME, options, _named_splits(task.config)))
            saved = _saved_for(task, options)
            if saved is None:
                _from_hub(task.DATASET_PATH, lambda: original(task, dataset_kwargs, **options))
            else:
                task.dataset = _chosen_splits(task.config, saved)
        except TaskError as error:
            raise TaskError(f"task {task.config.task!r}: {error}") from error

    def fewshot_docs(task: ConfigurableTask) -> Any:
        documents = examples(task)
        plain = isinstance(documents, datasets.Dataset) and documents.format["type"] is None
        return _at_once(documents) if plain else documents

    with (
        mock.patch.multiple(ConfigurableTask, download=download, fewshot_docs=fewshot_docs),
        mock.patch.object(datasets, "load_dataset", load_dataset),
    ):
        yield begun


def _at_once(documents: datasets.Dataset) -> list[dict[str, Any]]:
    """As `list(documents)`, which reads one document after the other."""
    columns = documents[:]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def find_saved(path: str, config: str | None, options: Mapping[str, Any] | None = None) -> SavedDataset | None:
    """A saved data set: `path` itself if it is absolute, else its folder in a root; None if there is none.

    Args:
        options: of `datasets.load_dataset`. A data set without configurations of which they choose files has a folder
            of its own (`hub_dataset`).

    Raises:
        TaskError: the folder of the data set lacks the configuration, or there are several folders for it.
    """
    if Path(path).is_absolute():
        return _saved_in(Path(path))
    options = options or {}
    wanted = hub_dataset(path, config, options)
    own, fetched = _ROOT.get(), fetched_folder()
    saved = None
    if own is not None and not path.startswith("."):
        chooses_files = config is None and ("data_files" in options or "data_dir" in options)
        saved = None if wanted is None else _saved_in(own / wanted.name)
        if saved is None and not chooses_files and path not in LOCAL_READERS:
            saved = _saved_as(own, path, config)
    if saved is None and wanted is not None and fetched is not None:  # by the hub's name only
        saved = _saved_in(fetched / DATASETS / wanted.name)
    return saved


def _saved_as(root: Path, path: str, config: str | None) -> SavedDataset | None:
    """A data set in a root, under any of its names. Raises TaskError as `find_saved`."""
    folder = _dataset_folder(root, path)
    if folder is None:
        return None
    configs = {child.name: child for child in sorted(folder.iterdir()) if _saved_in(child) and child.is_dir()}
    names = NO_CONFIG if config is None else (config, *(NO_CONFIG if config in NO_CONFIG else ()))
    places = [configs[name] for name in names if name in configs]
    for place in [*places, *([folder] if config is None or config in NO_CONFIG else [])]:
        saved = _saved_in(place)
        if saved is not None:
            return saved
    holds = f"it has {', '.join(configs)}" if configs else "it holds no data set saved by save_to_disk"
    raise TaskError(f"{folder} has no configuration {config or NO_CONFIG[0]!r}; {holds}")


def _saved_in(folder: Path) -> SavedDataset | None:
    """The splits in a folder; None if it holds none."""
    if (folder / _STATE).is_file():
        return SavedDataset(folder, {"": folder})
    splits = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{_STATE}"))}
    return SavedDataset(folder, splits) if splits else None


def _dataset_folder(root: Path, path: str) -> Path | None:
    """The folder of a data set in the root: of the same organisation, else of none, else of another."""
    name = path.rsplit("/", 1)[-1]
    for base in filter(None, (name, OTHER_NAMES.get(name))):
        for folder in (root / path, root / base):
            if folder.name == base and folder.is_dir():
                return folder
        others = [child / base for child in sorted(root.iterdir()) if any(child.glob(f"{base}/*/*/{_STATE}"))]
        if len(others) > 1:
            names = ", ".join(str(folder.relative_to(root)) for folder in others)
            raise TaskError(
                f"{root} has several data sets {base!r} ({names}), and none is {path!r}; keep the right one"
            )
        if others:
            return others[0]
    return None


def _saved_for(task: ConfigurableTask, options: Mapping[str, Any]) -> SavedDataset | None:
    """A task's saved data set; None if there is none, or if the task's own code chooses the documents."""
    if task.DATASET_PATH is None or callable(task.config.custom_dataset):
        return None
    return find_saved(task.DATASET_PATH, task.DATASET_NAME, options)


def _from_hub(path: str | None, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except TaskError:
        raise
    except Exception as error:  # datasets may raise anything
        roots = " and ".join(str(root) for root in (_ROOT.get(), fetched_folder()) if root is not None)
        if not roots or path is None or path in LOCAL_READERS or Path(path).is_absolute():
            raise
        raise TaskError(f"{roots} has no data set {path!r}, and the hub did not give it: {reason(error)}") from error


def _named_splits(config: TaskConfig) -> tuple[str, ...]:
    """The splits that a task's configuration names."""
    named = (config.test_split, config.validation_split, config.training_split, examples_split(config))
    return tuple(dict.fromkeys(split for split in named if split is not None))


def _chosen_splits(config: TaskConfig, saved: SavedDataset) -> datasets.DatasetDict:
    """Reads the splits that a task uses, and adapts the task's configuration to those that exist.

    A task is scored on its test split, else its validation split, as in lm-eval. If the split for few-shot examples is
    missing, they come from the training split, else from the scored split, without the document that is scored.

    Raises:
        TaskError: neither the test nor the validation split exists, or a split cannot be read.
    """
    named = [split for split in (config.test_split, config.validation_split) if split is not None]
    if not named:
        raise TaskError("it names neither a test nor a validation split")
    splits = {named[0]: ""} if "" in saved.splits else {split: split for split in saved.splits}
    scored = next((split for split in named if split in splits), None)
    if scored is None:
        raise TaskError(f"{saved.folder} has no split {' or '.join(map(repr, named))}; it has {saved.listing()}")
    fewshot = config.fewshot_config
    assert isinstance(fewshot, FewshotConfig)
    wanted = examples_split(config)
    for key in ("training_split", "validation_split", "test_split"):
        if getattr(config, key) not in splits:
            setattr(config, key, None)
    if wanted is not None and wanted not in splits:
        # lm-eval leaves the scored document out of its own examples only if these two are equal
        config.fewshot_split = fewshot.split = config.training_split or scored
        config.test_split = scored
    replaced = {"scored": named[0]} if scored != named[0] else {}
    if wanted != (now := examples_split(config)):
        replaced |= {"examples": wanted}
    roots = (_ROOT.get(), (fetched_folder() or saved.folder) / DATASETS)
    root = next((root for root in roots if root is not None and root in saved.folder.parents), saved.folder.parent)
    folder = saved.folder.relative_to(root)
    config.metadata = {**(config.metadata or {}), DATA: {"folder": str(folder), "missing": replaced}}
    used = {scored, now, *filter(None, (config.training_split, config.validation_split, fewshot.split))} - {None}
    return datasets.DatasetDict({split: saved.read(splits[split]) for split in used})


def origin_of(task: Task) -> dict[str, Any]:
    """For the manifest: the split that a task is scored on, that of its few-shot examples, and the saved data set."""
    if not isinstance(task, ConfigurableTask):
        return {}
    config = task.config
    examples = {"examples": examples_split(config)} if config.num_fewshot else {}
    saved = (config.metadata or {}).get(DATA) or {}
    missing = {key: split for key, split in saved.get("missing", {}).items() if key != "examples" or examples}
    return {
        "split": config.test_split or config.validation_split,
        **examples,
        **({"folder": saved["folder"]} if saved else {}),
        **({"missing": missing} if missing else {}),
    }


def examples_split(config: TaskConfig) -> str | None:
    """The split of a task's few-shot examples; None if they are written in its YAML."""
    fewshot = config.fewshot_config
    assert isinstance(fewshot, FewshotConfig)
    if fewshot.split is None and fewshot.samples is not None:
        return None
    return fewshot.split or config.training_split or config.validation_split or config.test_split
