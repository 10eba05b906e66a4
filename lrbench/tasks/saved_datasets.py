"""Data sets saved by `save_to_disk` of `datasets`, which are read before the hub is asked.

A root folder holds splits as DATASET/CONFIG/SPLIT, such as `piqa/plain_text/validation`. A data set may stand in a
folder of its organisation, and one without configurations may lack the folder CONFIG.
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
from lrbench.system.text import one_line
from lrbench.tasks.folders import LOCAL_READERS

#: Names of the folder CONFIG of a data set without configurations; also the hub's names for the only one.
NO_CONFIG = ("none", "default", "main", "plain_text")
#: Data sets that the hub holds under two names, with the same documents and fields.
OTHER_NAMES = {"mmlu": "mmlu_no_train", "siqa": "social_i_qa"}
#: In a task's metadata: the folder of its documents, and which of its splits are replaced by others.
DATA = "data"

_STATE = "state.json"  # is in the folder of every saved split
_ROOT: ContextVar[Path | None] = ContextVar("root", default=None)


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
    """Makes tasks, and calibration text of a task, look for their data sets in `root` before they ask the hub."""
    token = _ROOT.set(root)
    try:
        yield
    finally:
        _ROOT.reset(token)


def load_dataset(path: str, config: str | None = None, split: str | None = None) -> Any:
    """As `datasets.load_dataset`, but a saved data set is read from its folder.

    Raises:
        TaskError: the folder lacks the configuration or split, or cannot be read; or the hub does not have it either.
    """
    saved = find_saved(path, config)
    if saved is None:
        return _from_hub(path, lambda: datasets.load_dataset(path, config, split=split))
    if split is None:
        return datasets.DatasetDict({name: saved.read(name) for name in saved.splits})
    if "" in saved.splits:
        return saved.read("")
    if split not in saved.splits:
        raise TaskError(f"{saved.folder} has no split {split!r}; it has {saved.listing()}")
    return saved.read(split)


@contextmanager
def saved_datasets() -> Iterator[list[ConfigurableTask]]:
    """Makes lm-eval's tasks read saved data sets; yields the list of tasks that began to load.

    All tasks load their data set in `ConfigurableTask.download`, those in groups, of Python classes and inline as well.
    Then lm-eval lists the documents for few-shot examples; read at once, they take a tenth of the time.
    """
    begun: list[ConfigurableTask] = []
    original, examples = ConfigurableTask.download, ConfigurableTask.fewshot_docs

    def download(task: ConfigurableTask, dataset_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        begun.append(task)
        try:
            saved = _saved_for(task, dataset_kwargs or {})
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

    with mock.patch.multiple(ConfigurableTask, download=download, fewshot_docs=fewshot_docs):
        yield begun


def _at_once(documents: datasets.Dataset) -> list[dict[str, Any]]:
    """As `list(documents)`, which reads one document after the other."""
    columns = documents[:]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def find_saved(path: str, config: str | None) -> SavedDataset | None:
    """A saved data set: `path` itself if it is absolute, else the folder in the root; None if there is none.

    Raises:
        TaskError: the folder of the data set lacks the configuration, or there are several folders for it.
    """
    if Path(path).is_absolute():
        return _saved_in(Path(path))
    root = _ROOT.get()
    if root is None or path in LOCAL_READERS or path.startswith("."):
        return None
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
    """A task's saved data set; None if there is none, or if the task's own code or options choose the documents."""
    chosen = task.DATASET_NAME is None and ("data_files" in options or "data_dir" in options)
    if task.DATASET_PATH is None or callable(task.config.custom_dataset) or chosen:
        return None
    return find_saved(task.DATASET_PATH, task.DATASET_NAME)


def _from_hub(path: str | None, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except TaskError:
        raise
    except Exception as error:  # datasets may raise anything
        root = _ROOT.get()
        if root is None or path is None or path in LOCAL_READERS or Path(path).is_absolute():
            raise
        raise TaskError(f"{root} has no data set {path!r}, and the hub did not give it: {reason(error)}") from error


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
    root = _ROOT.get()
    folder = saved.folder.relative_to(root) if root is not None and root in saved.folder.parents else saved.folder.name
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
