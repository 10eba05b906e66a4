"""A suite as a Python mapping; errors name the place in the mapping, and reducers may be classes."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrbench.errors import SuiteError
from lrbench.reducers.base import Reducer
from lrbench.reducers.parameters import values
from lrbench.suite.yaml_reader import MAX_DEPTH, Document, KeyPath, Place


def read_mapping(data: Mapping[str, Any]) -> Document:
    """A document from a mapping with a suite's keys; the mapping is not changed.

    Raises:
        SuiteError: a value is neither plain data nor a reducer; names its place: `suite['tasks'][0]: ...`.
    """
    document = Document("suite", None)
    document.data = _Reader(document, "suite").plain(data, ())
    return document


def override(document: Document, changes: Mapping[str, Any]) -> None:
    """Sets values by their dotted paths, as `{"sweep.0.rank.keep": [0.5]}`.

    Raises:
        SuiteError: as `read_mapping` and `Document.put`.
    """
    for dotted, value in changes.items():
        where = f"overrides[{dotted!r}]"
        if not isinstance(dotted, str):
            raise SuiteError("a key is text, with dots between keys and indices: 'sweep.0.rank.keep'", where)
        scratch = Document(where, None)
        document.put(dotted, _Reader(scratch, where).plain(value, ()), Place(where))
        document.classes += scratch.classes


class _Reader:
    """Copies values into a document and records their places."""

    def __init__(self, document: Document, root: str) -> None:
        self._document, self._root = document, root

    def plain(self, value: Any, path: KeyPath) -> Any:
        """A value as a YAML reader returns it: dicts, lists, text, numbers, booleans and None."""
        place = Place(self._root + "".join(f"[{step!r}]" for step in path))
        self._document.values[path] = place
        if len(path) > MAX_DEPTH:
            raise SuiteError(f"nested more than {MAX_DEPTH} levels deep; docs/suites.md has the keys", self._root)
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, type) and issubclass(value, Reducer):
            return self._named(value)
        if isinstance(value, Reducer):
            return {self._named(type(value)): values(value)}
        if isinstance(value, numbers.Integral):
            return operator.index(value)
        if isinstance(value, numbers.Real):
            if not math.isfinite(value):
                raise SuiteError(f"{value} is not a finite number", place.file)
            return float(value)
        if isinstance(value, Mapping):
            return {key: self.plain(entry, (*path, key)) for key, entry in self._items(value, path, place)}
        if isinstance(value, list | tuple | range):
            return [self.plain(entry, (*path, index)) for index, entry in enumerate(value)]
        raise SuiteError(
            f"a suite holds plain data and classes of reducers, not {type(value).__name__}; write text, a number, a "
            "list or a mapping",
            place.file,
        )

    def _items(self, mapping: Mapping[Any, Any], path: KeyPath, place: Place) -> list[tuple[str, Any]]:
        items: list[tuple[str, Any]] = []
        for key, entry in mapping.items():
            if isinstance(key, type) and issubclass(key, Reducer):
                key = self._named(key)
            if not isinstance(key, str):
                raise SuiteError(f"a key must be a word, not {key!r}", place.file)
            self._document.keys[(*path, key)] = Place(f"{place.file}[{key!r}]")
            items.append((key, entry))
        return items

    def _named(self, reducer: type[Reducer]) -> str:
        self._document.classes.append(reducer)
        return reducer.name or reducer.__qualname__  # the registry refuses a reducer without a name
