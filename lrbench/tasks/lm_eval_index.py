"""The index of lm-eval's own tasks, groups and tags, without importing lm-eval; kept in the cache folder.

It equals the index of `lm_eval.tasks.TaskManager`, which takes ten seconds: lm-eval defines a class of YAML loaders for
each of its 14,000 files, and reads an included file again for each file that includes it. Here each file is read once,
and the index is stored with a checksum of all that it depends on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lrbench.system.cache import cached

_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}  # folders, as in lm-eval
_KEYS = ("class", "group", "include", "tag", "task")
_INCLUDE = re.compile(rb"""include["']?[ \t]*:([^\n]*(?:\n[ \t-][^\n]*)*)""")
_TARGET = re.compile(rb"""[^\s,\[\]"']+""")

#: The kinds of single tasks.
TASKS = ("TASK", "PY_TASK")


class IndexEntry(NamedTuple):
    """What the index holds under the name of a task, group or tag.

    Attributes:
        kind: `TASK`, `PY_TASK`, `GROUP` or `TAG`, as in lm-eval's `Kind`.
        file: the YAML file, relative to the indexed folder; None for a tag.
        tags: the tags of a task or group; the tasks of a tag.
        members: the value of a group's key `task`.
    """

    kind: str
    file: str | None
    tags: list[str]
    members: Any = None


class TaskLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader that does not import the functions a task file names."""


TaskLoader.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(node)))


def lm_eval_folder() -> Path:
    """The folder of lm-eval's own task files."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "tasks")


@functools.cache
def lm_eval_index() -> dict[str, IndexEntry]:
    """The index of lm-eval's own task files: some two seconds the first time, later a tenth of one."""
    return read_index(lm_eval_folder(), metadata.version("lm-eval"))


@functools.cache
def lm_eval_tasks(names: frozenset[str]) -> dict[str, IndexEntry] | None:
    """Of lm-eval's index, the entries of single tasks; None if a name is a group's, a tag's, or unknown.

    Only files that mention one of the names are parsed, so the first time takes a third of that of the whole index.
    """
    return read_tasks(lm_eval_folder(), metadata.version("lm-eval"), names)


def read_index(folder: Path, version: str) -> dict[str, IndexEntry]:
    """The index of a folder of task files: the stored one if version and files (name, size, time) are the same.

    A damaged index is built again; one that cannot be stored is built every time.
    """
    return _read_index(folder, version, str(folder), lambda yaml_files: _build(str(folder), yaml_files))


def read_tasks(folder: Path, version: str, names: frozenset[str]) -> dict[str, IndexEntry] | None:
    """The entries of single tasks in the index of a folder, stored likewise; None if a name is no single task's."""

    def build(yaml_files: list[str]) -> dict[str, IndexEntry]:
        index = _build(str(folder), _mentioning(str(folder), yaml_files, names))
        return {name: index[name] for name in names & index.keys()}

    entries = _read_index(folder, version, f"{folder} {sorted(names)}", build)
    return entries if [entry.kind in TASKS for entry in entries.values()].count(True) == len(names) else None


def _read_index(
    folder: Path, version: str, name: str, build: Callable[[list[str]], dict[str, IndexEntry]]
) -> dict[str, IndexEntry]:
    listing = sorted(_listing(str(folder)))
    key = repr((version, listing)).encode() + Path(__file__).read_bytes()
    yaml_files = [file for file, *_ in listing if file.endswith(".yaml")]
    index = cached("tasks", name, key, lambda: build(yaml_files))
    return {name: IndexEntry(*entry) for name, entry in index.items()}


def _listing(folder: str) -> Iterator[tuple[str, int, int]]:
    """Each file's name relative to the folder, size, and time of its last change."""
    for place, folders, names in os.walk(folder):
        folders[:] = set(folders) - _SKIPPED
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):  # a link to nothing
                status = os.stat(path)
                yield path[len(folder) + 1 :].replace(os.sep, "/"), status.st_size, status.st_mtime_ns


def _mentioning(folder: str, yaml_files: Iterable[str], names: Iterable[str]) -> list[str]:
    """The files in which one of the names occurs, or in a file that they include."""
    words = [name.encode() for name in names]

    known: dict[str, bool] = {}

    def mentions(path: str) -> bool:
        if path not in known:
            known[path] = False  # files that include each other define nothing
            with contextlib.suppress(OSError), open(path, "rb") as file:
                content = file.read()
                targets = (target for value in _INCLUDE.findall(content) for target in _TARGET.findall(value))
                known[path] = any(word in content for word in words) or any(
                    mentions(os.path.normpath(os.path.join(path, "..", os.fsdecode(target)))) for target in targets
                )
        return known[path]

    return [file for file in yaml_files if mentions(os.path.join(folder, file))]


def _build(folder: str, names: Iterable[str]) -> dict[str, IndexEntry]:
    """The index of files in lm-eval's order, in which the first that defines a name counts."""
    index: dict[str, IndexEntry] = {}
    read = functools.cache(_read)
    for name in names:
        try:
            _add(index, name, _with_includes(os.path.join(folder, name), read, set()))
        except Exception:  # lm-eval skips a file that it cannot read, whatever the reason
            continue
    return index


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = yaml.load(file, Loader=TaskLoader)
    if not isinstance(content, dict):
        raise TypeError(f"{path} is not a mapping")
    return {key: content[key] for key in _KEYS if key in content}


def _with_includes(path: str, read: Callable[[str], dict[str, Any]], seen: set[str]) -> dict[str, Any]:
    """A file's keys, over those of its included files. As in lm-eval, including a file twice is an error."""
    path = os.path.normpath(path)
    if path in seen:
        raise ValueError(f"{path} is included twice")
    seen.add(path)
    content = dict(read(path))
    included = content.pop("include", [])
    merged: dict[str, Any] = {}
    for target in included if isinstance(included, list) else [included]:
        merged |= _with_includes(os.path.join(os.path.dirname(path), target), read, seen)
    return merged | content


def _add(index: dict[str, IndexEntry], file: str, content: dict[str, Any]) -> None:
    if "class" not in content and "group" in content:
        index.setdefault(content["group"], IndexEntry("GROUP", file, _tags(content), content.get("task")))
    elif (name := content["task"]) not in index:
        index[name] = IndexEntry("PY_TASK" if "class" in content else "TASK", file, _tags(content))
        for tag in _tags(content):
            index.setdefault(tag, IndexEntry("TAG", None, [])).tags.append(name)


def _tags(content: dict[str, Any]) -> list[str]:
    tags = content.get("tag") or []
    return [tags] if isinstance(tags, str) else list(dict.fromkeys(tags))
