"""Folders of lm-eval task YAML: validation, and paths of data files.

lm-eval skips an unreadable task file with a message at DEBUG level, keeps the first of two tasks with one name, and
resolves data files in the working directory. Here such files are errors with file and line, and data files are resolved
in the folder of their YAML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from lm_eval.config.group import GroupConfig
from lm_eval.config.task import TaskConfig

from lrbench.errors import TaskError
from lrbench.system.text import did_you_mean
from lrbench.tasks.lm_eval_index import TaskLoader
from lrbench.tasks.names import BUNDLED, PROTOCOLS

__all__ = ["BUNDLED", "PROTOCOLS", "check_folders", "with_absolute_data"]

SKIPPED = {"__pycache__", ".ipynb_checkpoints"}
TASK_KEYS = {field.name for field in fields(TaskConfig)}
KNOWN_KEYS = TASK_KEYS | {field.name for field in fields(GroupConfig)} | {"class", "include", "tag", "task_list"}
DEFINES = ("class", "group", "task")
LOCAL_READERS = {"arrow", "csv", "json", "parquet", "text", "xml"}  # values of `dataset_path` that read files


def check_folders(folders: list[Path]) -> dict[str, Path]:
    """Validates all task files: name of task or group -> the file that defines it.

    Raises:
        TaskError: a folder is missing; a file is malformed, has an unknown key, includes a missing file, or defines
            neither a task nor a group; a name is defined twice.
    """
    defined: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder of tasks")
        contents = {path: _read(path) for path in _yaml_files(folder)}
        templates = {target for path, content in contents.items() for target in _includes(path, content)}
        for target in templates - contents.keys():
            _read(target)
        for path, content in contents.items():
            name = next((content[key] for key in reversed(DEFINES) if isinstance(content.get(key), str)), None)
            if "group" in content:
                name = content["group"]
            if name is None:
                if content.keys() & TASK_KEYS and path not in templates and not path.name.startswith("_"):
                    raise TaskError(f"{path}:1: neither 'task' nor 'group'; name the task, or the file _{path.name}")
            elif name in defined:
                raise TaskError(f"{path}: {name!r} is already defined in {defined[name]}; rename one")
            else:
                defined[name] = path
    return defined


def with_absolute_data(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A copy of a task's or group's config with absolute data files; relative ones are resolved beside the YAML `path`.

    Raises:
        TaskError: a data file is missing.
    """
    out: dict[str, Any] = {}
    folder = _origin(path, "dataset_kwargs").parent
    for key, value in config.items():
        if key == "dataset_kwargs" and isinstance(value, dict) and config.get("dataset_path") in LOCAL_READERS:
            value = {k: _absolute(v, folder, path) if k in ("data_files", "data_dir") else v for k, v in value.items()}
        elif key == "dataset_path" and isinstance(value, str) and value.startswith("."):
            value = _absolute(value, _origin(path, key).parent, path)
        elif key == "task" and isinstance(value, list):
            value = [with_absolute_data(item, path) if isinstance(item, dict) else item for item in value]
        out[key] = value
    return out


def _yaml_files(folder: Path) -> Iterator[Path]:
    """The task files that lm-eval reads, in its order."""
    paths = (path for path in folder.resolve().glob("**/*.yaml") if not SKIPPED & set(path.parts))
    return iter(sorted(paths, key=Path.as_posix))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.load(text, Loader=TaskLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{path}"
        raise TaskError(f"{place}: not valid task YAML: {error.problem or error.context}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(content, dict):
        raise TaskError(f"{path}:1: a task file must be a mapping with a key 'task' or 'group'")
    if any(key in content for key in TASK_KEYS) and "class" not in content:
        for key, _ in node.value:
            if key.value not in KNOWN_KEYS:
                mark = key.start_mark
                hint = did_you_mean(key.value, KNOWN_KEYS)
                raise TaskError(f"{path}:{mark.line + 1}:{mark.column + 1}: unknown key {key.value!r}{hint}")
    if "group" in content and not isinstance(content.get("task"), list):
        raise TaskError(f"{path}:1: 'task' of group {content['group']!r} must be a list of tasks")
    for target in _includes(path, content):
        if not target.is_file():
            raise TaskError(f"{path}: includes {target}, which is not there")
    return content


def _includes(path: Path, content: dict[str, Any]) -> list[Path]:
    named = content.get("include") or []
    return [(path.parent / name).resolve() for name in (named if isinstance(named, list) else [named])]


def _origin(path: Path, key: str) -> Path:
    """The file that sets `key` of a task: its own, or the last included file that does."""
    content = _read(path)
    if key in content:
        return path
    for target in reversed(_includes(path, content)):
        if key in _read(origin := _origin(target, key)):
            return origin
    return path


def _absolute(value: Any, folder: Path, source: Path) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(item, folder, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder, source) for item in value]
    if not isinstance(value, str) or "://" in value or Path(value).is_absolute():
        return value
    place = folder / value
    if not place.exists() and not set("*?[") & set(value):
        raise TaskError(f"{source}: data file {value!r} is not in {folder}")
    return str(place)
