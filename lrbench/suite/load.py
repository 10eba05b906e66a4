"""Reads a suite file into a validated, frozen `Suite`; each part of it knows its line and column in the file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lrbench.errors import InputError
from lrbench.suite.calibration import CalibrationSpec, TextSpec
from lrbench.suite.fields import PACKAGE, Spec
from lrbench.suite.mapping import override, read_mapping
from lrbench.suite.messages import suite_error
from lrbench.suite.model import DeltaSpec, Dtype, ModelSpec
from lrbench.suite.schema import BASE, ReducerSpec, Suite, TaskSpec
from lrbench.suite.selection import RaceSpec, ScreenSpec, SelectSpec
from lrbench.suite.sweep import RankSpec, SweepSpec
from lrbench.suite.yaml_reader import Document, KeyPath, Place, read_yaml
from lrbench.system.text import did_you_mean, one_line

__all__ = [
    "BASE", "CalibrationSpec", "DeltaSpec", "ModelSpec", "RaceSpec", "RankSpec", "ReducerSpec", "ScreenSpec",
    "SelectSpec", "Suite",
    "SweepSpec", "TaskSpec", "TextSpec", "bundled_suites", "find_suite", "load_suite", "narrowed", "suite_again",
]  # fmt: skip

#: The environment variable with the default of a suite's `datasets`.
DATASETS = "LRBENCH_DATASETS"

_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Suite,
    ("models",): ModelSpec,
    ("tasks",): TaskSpec,
    ("sweep",): SweepSpec,
    ("sweep", "rank"): RankSpec,
    ("calibration",): CalibrationSpec,
    ("calibration", "text"): TextSpec,
    ("delta",): DeltaSpec,
    ("delta", "base"): ModelSpec,
    ("select",): SelectSpec,
    ("race",): RaceSpec,
    ("screen",): ScreenSpec,
}


def find_suite(name_or_path: str | Path) -> Path:
    """The file of a suite: the path itself, or a bundled suite by name.

    Raises:
        InputError: neither a file nor the name of a bundled suite.
    """
    path = Path(name_or_path)
    name = str(name_or_path)
    known = bundled_suites()
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name too long or with a NUL, a folder without permission
        raise InputError(f"{name[:80]}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if path.is_file() or (name not in known and (path.suffix in (".yaml", ".yml") or len(path.parts) != 1)):
        return path
    if name in known:
        return known[name]
    if path.is_dir():
        raise InputError(f"{name}: is a directory; give the suite file in it")
    hint = did_you_mean(name, known) or f"; bundled suites: {', '.join(known) or 'none'}"
    raise InputError(f"unknown suite {name!r}: no such file, and no bundled suite{hint}")


def bundled_suites() -> dict[str, Path]:
    """Names and files of the suites that come with lrbench."""
    import lrbench.suites

    folders = [Path(folder) for folder in lrbench.suites.__path__]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def load_suite(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    limit: int | None = None,
    dtype: str | None = None,
) -> Suite:
    """Reads and validates a suite.

    Args:
        source: a file, the name of a bundled suite, or a mapping with a suite's keys, where reducers may be classes.
        overrides: `dotted.path=YAML` each, or a mapping from dotted paths to values, applied in order. Relative paths
            in overrides and in a mapping start at the working directory, those in a file at the file's folder.
        limit: the largest number of documents of each task.
        dtype: for every model, instead of the suite's.

    Raises:
        SuiteError: the file, the mapping or an override is wrong; one line, `file:line:column: message`.
        InputError: no such bundled suite, a limit below 1, or a dtype that suites do not accept.
    """
    if isinstance(source, Mapping):
        document, path = read_mapping(source), Path.cwd() / "suite"
    else:
        path = find_suite(source)
        document = read_yaml(path)
    if isinstance(overrides, Mapping):
        override(document, overrides)
    else:
        for text in overrides:
            document.override(text)
    return narrowed(_located(_validated(document, path), document, path.parent), limit, dtype)


def suite_again(data: Mapping[str, Any], file: Path, paths: Mapping[str, str], *, with_tasks: bool = True) -> Suite:
    """The suite stored in a manifest.

    Args:
        data: the result of `Suite.resolved`.
        file: the manifest, for errors.
        paths: the result of `Suite.local_paths`.
        with_tasks: whether its task folders are needed and must exist.

    Raises:
        SuiteError: a file or folder named in the suite no longer exists, or another version of lrbench wrote the
            manifest.
    """
    document = Document(str(file), dict(data), values={(): Place(str(file))})
    if not with_tasks:
        document.data["task_paths"] = []
    root = paths.get("datasets", data.get("datasets"))
    folder = None if root is None else _package_path(root) if root.startswith(PACKAGE) else Path(root)
    if root is not None and not (folder and folder.is_dir()) and (not with_tasks or os.environ.get(DATASETS)):
        del document.data["datasets"]
    return _located(_validated(document, file), document, file.parent, paths)


def _validated(document: Document, path: Path) -> Suite:
    try:
        return Suite.model_validate(_normalised(document, path))
    except ValidationError as error:
        raise suite_error(error, document, lambda loc: _written(loc, document), _MODELS) from None


def _normalised(document: Document, path: Path) -> dict[str, Any]:
    """The data with `model` as a list with one entry, and the file's stem as the default name."""
    data = dict(document.data)
    if "model" in data and "models" in data:
        first, second = sorted(("model", "models"), key=lambda key: document.place((key,), key=True))
        raise document.error((second,), f"both {first!r} and {second!r}; give one of them", key=True)
    if "model" in data:
        model = data.pop("model")
        if isinstance(model, list):
            raise document.error(("model",), "'model' takes one model; for several write 'models'")
        data["models"] = [model]
    for key in ("task_paths", "plugins", "datasets", "calibration", "delta", "select", "race", "screen"):
        if data.get(key, "") is None:
            del data[key]
    if data.get("name") is None:
        data["name"] = path.stem
    return data


def _written(loc: KeyPath, document: Document) -> KeyPath:
    """The path in the file of a path in the validated data."""
    match loc:
        case ("models", int(), *rest) if "model" in document.data:
            return ("model", *rest)
        case ("reducers", int(index), ("label" | "params") as field, *rest):
            entry = document.data["reducers"][index]
            name = next(iter(entry)) if isinstance(entry, dict) else entry
            return ("reducers", index, name, *(rest if field == "params" else ["label"]))
    return loc


def _located(suite: Suite, document: Document, folder: Path, paths: Mapping[str, str] | None = None) -> Suite:
    """The suite with absolute paths; each part stores its place in the file.

    Args:
        folder: start of the file's relative paths; those of overrides start at the working directory.
        paths: dotted place -> absolute path, used instead of the written one.

    Raises:
        SuiteError: a path does not exist.
    """

    def absolute(path: KeyPath, written: str | Path) -> Path:
        stored = (paths or {}).get(".".join(map(str, path)))
        if stored is not None:
            return Path(stored)
        if str(written).startswith(PACKAGE):
            return _in_package(path, str(written), document)
        base = Path.cwd() if document.is_override(path) else folder
        try:
            absolute_path = (base / Path(written).expanduser()).resolve()
            absolute_path.exists()  # may raise; callers check whether the path exists
        except (OSError, ValueError, RuntimeError) as error:  # a path too long, a loop of links, an unknown home folder
            reason = getattr(error, "strerror", None) or one_line(error)
            raise document.error(path, f"a path that cannot be followed: {reason}; give another") from None
        return absolute_path

    _note_places(suite, (), document)
    task_paths, plugins = [], []
    for index, written in enumerate(suite.task_paths):
        task_paths.append(absolute(("task_paths", index), written))
        if not task_paths[-1].is_dir():
            raise document.error(("task_paths", index), f"no such folder: {task_paths[-1]}")
    for index, written in enumerate(suite.plugins):
        plugins.append(absolute(("plugins", index), written))
        if not plugins[-1].exists():
            raise document.error(("plugins", index), f"no such plugin file or folder: {plugins[-1]}")
    root = suite.datasets and absolute(("datasets",), suite.datasets)
    if root is not None and not root.is_dir():
        raise document.error(("datasets",), f"no such folder of data sets: {root}")
    if root is None and (setting := os.environ.get(DATASETS)):
        root = Path(setting).expanduser().absolute()
        if not root.is_dir():
            raise InputError(f"{DATASETS}: no such folder of data sets: {root}")

    def located_model(model: ModelSpec) -> ModelSpec:
        local_paths = {}
        for key in ("pretrained", "gguf", "config", "tokenizer", "adapter"):
            written = getattr(model, key)
            if not isinstance(written, str) or (key == "gguf" and model.pretrained is not None):
                continue
            place = (*model.path, key)
            local = absolute(place, written)
            if local.exists():
                local_paths[key] = str(local)
            elif (
                key == "gguf"
                or written.startswith((".", "/", "~", PACKAGE))
                or ".".join(map(str, place)) in (paths or {})
            ):
                # any other spelling may be a hub id
                kind = {"pretrained": "checkpoint folder", "gguf": "GGUF file"}.get(key, key)
                raise document.error(place, f"no such {kind}: {local}")
        located = model.model_copy(update=local_paths)
        located._as_written = {key: getattr(model, key) for key in local_paths}
        return located

    def located_task(task: TaskSpec) -> TaskSpec:
        if task.data is None:
            return task
        file = absolute((*task.path, "data"), task.data)
        if not file.exists():
            raise document.error((*task.path, "data"), f"no such file of documents: {file}")
        located = task.model_copy(update={"data": str(file)})
        located._as_written = task.data
        return located

    changes: dict[str, Any] = {
        "task_paths": tuple(task_paths),
        "plugins": tuple(plugins),
        "datasets": root,
        "models": tuple(map(located_model, suite.models)),
        "tasks": tuple(map(located_task, suite.tasks)),
    }
    if suite.calibration is not None and suite.calibration.text is not None:
        text = _located_text(suite.calibration.text, document, absolute)
        changes["calibration"] = suite.calibration.model_copy(update={"text": text})
    if suite.delta is not None:
        changes["delta"] = suite.delta.model_copy(update={"base": located_model(suite.delta.base)})
    return suite.model_copy(update=changes)


def _package_path(written: str) -> Path | None:
    """The file or folder that `package:NAME/REST` names, whether it exists or not; None without such a package."""
    name, _, rest = written.removeprefix(PACKAGE).partition("/")
    at_top = name.isidentifier() and name != "__main__"  # so that nothing is imported
    spec = importlib.util.find_spec(name) if at_top else None
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(locations[0], rest) if locations else None


def _in_package(path: KeyPath, written: str, document: Document) -> Path:
    """As `_package_path`. Raises SuiteError: no such package is installed."""
    located = _package_path(written)
    if located is None:
        name = written.removeprefix(PACKAGE).partition("/")[0]
        message = f"no Python package {name!r} is installed here; install it, or give the path of a file or folder"
        raise document.error(path, message)
    return located


def _note_places(spec: Spec, path: KeyPath, document: Document) -> None:
    """Stores in each part of the suite its place in the document."""
    spec._path, spec._document = _written(path, document), document
    for key, value in spec:
        for index, part in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if isinstance(part, Spec):
                _note_places(part, (*path, key) if index is None else (*path, key, index), document)


def _located_text(text: TextSpec, document: Document, absolute: Callable[[KeyPath, str], Path]) -> TextSpec:
    """Calibration text with its path made absolute. Raises SuiteError: no such file, or not a file of text."""
    written = text.file or text.dataset
    if written is None:
        return text
    spelled = document.data["calibration"]["text"]
    place = ("calibration", "text") if isinstance(spelled, str) else ("calibration", "text", "file")
    if text.file is None:
        local = absolute(("calibration", "text", "dataset"), written)
        if not local.is_dir():
            if written.startswith(PACKAGE):
                raise document.error(("calibration", "text", "dataset"), f"no such folder: {local}")
            return text  # a hub id
        located = text.model_copy(update={"dataset": str(local)})
    else:
        path = absolute(place, written)
        if not path.is_file():
            raise document.error(place, f"no such file of calibration text: {path} (a data set is {{dataset: NAME}})")
        if path.suffix not in (".txt", ".jsonl"):
            raise document.error(place, f"calibration text is a .txt or .jsonl file, not {path.name!r}")
        if path.suffix == ".txt" and text.column is not None:
            raise document.error(("calibration", "text", "column"), "a .txt file has no 'column'", key=True)
        located = text.model_copy(update={"file": str(path)})
    located._as_written = written
    return located


def narrowed(suite: Suite, limit: int | None = None, dtype: str | None = None) -> Suite:
    """The suite on at most `limit` documents of each task, in another dtype; see `load_suite`."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"limit {limit}: must be a whole number of documents, at least 1")
    if dtype is not None and dtype not in get_args(Dtype):
        raise InputError(f"dtype {dtype!r}: must be one of {', '.join(get_args(Dtype))}")
    changes: dict[str, Any] = {}
    if limit is not None:
        changes["tasks"] = tuple(
            task.model_copy(update={"limit": min(limit, task.limit or limit)}) for task in suite.tasks
        )
    if dtype is not None:
        changes["models"] = tuple(model.model_copy(update={"dtype": dtype}) for model in suite.models)
    return suite.model_copy(update=changes)
