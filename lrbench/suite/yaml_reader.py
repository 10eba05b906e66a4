"""Reads YAML with the place of each value, and without YAML 1.1's surprises.

PyYAML reads `1e-3` as a string, `10:30` as 630, `010` as 8, `no` as False, and lets the last of two equal keys win.
Here plain scalars follow YAML 1.2's core schema without octal and hexadecimal numbers: a scalar that is not a decimal
number, `true`, `false` or null is a string, and a schema that requires a number refuses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from lrbench.errors import SuiteError
from lrbench.system.text import did_you_mean, one_line

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer

#: The path of a value in the data: keys and list indices from the root.
KeyPath = tuple[str | int, ...]

_MAX_BYTES = 200_000  # which PyYAML reads in a second
_MAX_NODES = 10_000  # aliases of aliases grow exponentially
MAX_DEPTH = 64
_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)


class _TooMuch(yaml.MarkedYAMLError):
    """Valid YAML that is too large or too deep for a suite."""


class _SuiteLoader(yaml.SafeLoader):
    """Composes nodes lazily, and stops when they are too many or nested too deeply."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's way to give a class its own
    _depth = _count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > _MAX_NODES:
            problem = _TOO_DEEP if self._depth > MAX_DEPTH else _TOO_MANY
            raise _TooMuch(problem=problem, problem_mark=self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_TOO_DEEP = f"not a suite: nested more than {MAX_DEPTH} levels deep; the keys of a suite are in docs/suites.md"
_TOO_MANY = f"not a suite: more than {_MAX_NODES:,} values, aliases counted; split it into several"
_CYCLE = "an anchor that contains itself; write out what it stands for"


_SuiteLoader.add_implicit_resolver(_TAG + "null", _NULL, ["~", "n", "N", ""])
_SuiteLoader.add_implicit_resolver(_TAG + "bool", _BOOL, list("tTfF"))
_SuiteLoader.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
_SuiteLoader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_SuiteLoader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<\Z"), ["<"])


class Place(NamedTuple):
    """A place in a file; line and column count from 1, and are 0 outside a file (`--set key=value`)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


_KEY_VALUE = "write key=value, with dots between keys and indices: sweep.0.rank.keep=[0.5]"


@dataclass
class Document:
    """One YAML document as plain data, with the place of every key and value.

    Attributes:
        file: the file's name as the user gave it.
        data: dicts, lists, strings, numbers, booleans and None; no two places share an object.
        values: the place of each value.
        keys: the place of each key of a mapping.
        overridden: the paths set by `override`.
        classes: reducers passed as classes, which `data` has by name.
    """

    file: str
    data: Any
    values: dict[KeyPath, Place] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    overridden: set[KeyPath] = field(default_factory=set)
    classes: list[type[Reducer]] = field(default_factory=list)

    def place(self, path: KeyPath, *, key: bool = False) -> Place:
        """The place of the value (or the key) at `path`, or of the nearest enclosing value with a place."""
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values and path:
            path = path[:-1]
        return self.values.get(path, Place(self.file, 1, 1))

    def error(self, path: KeyPath, message: str, *, key: bool = False) -> SuiteError:
        """A `SuiteError` with `message` and the place of `path`, for the caller to raise."""
        return SuiteError(message, *self.place(path, key=key))

    def is_override(self, path: KeyPath) -> bool:
        """Whether the value at `path` came from an override."""
        return any(path[:length] in self.overridden for length in range(len(path) + 1))

    def override(self, text: str) -> None:
        """Sets one value from `dotted.path=YAML`, as `sweep.0.rank.keep=[0.5]`; missing mappings are made.

        Raises:
            SuiteError: no `=`, an empty key, an index that is none or out of range, a step into a scalar, bad YAML.
        """
        place = Place(f"--set {text}")
        dotted, equals, value = text.partition("=")
        if not equals:
            raise SuiteError(_KEY_VALUE, place.file)
        self.put(dotted, parse_yaml(value, place.file, in_file=False).data, place)

    def put(self, dotted: str, value: Any, place: Place) -> None:
        """Sets the value at `dotted.path`, as written at `place`; missing mappings are made.

        Raises:
            SuiteError: an empty key, an index that is none or out of range, a step into a scalar.
        """
        steps = dotted.strip().split(".")
        if not all(steps):
            raise SuiteError(_KEY_VALUE, place.file)
        path: KeyPath = ()
        target = self.data
        for step in steps[:-1]:
            target, path = self._step(target, path, step, place)
        last, path = self._key(target, path, steps[-1], place)
        target[last] = value
        for marks in (self.values, self.keys):
            for old in [old for old in marks if old[: len(path)] == path]:
                del marks[old]
        self.values[path] = self.keys[path] = place
        self.overridden.add(path)

    def _step(self, target: Any, path: KeyPath, step: str, place: Place) -> tuple[Any, KeyPath]:
        key, path = self._key(target, path, step, place)
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
            self.values[path] = self.keys[path] = place
            self.overridden.add(path)
        return target[key], path

    @staticmethod
    def _key(target: Any, path: KeyPath, step: str, place: Place) -> tuple[Any, KeyPath]:
        where = ".".join(map(str, path)) or "the suite"
        if isinstance(target, dict):
            return step, (*path, step)
        if not isinstance(target, list):
            raise SuiteError(f"{where} is {describe(target)}, so it has no {step!r}", place.file)
        if not step.isdecimal():
            raise SuiteError(f"{where} is a list: give an index from 0 instead of {step!r}", place.file)
        if int(step) >= len(target):
            raise SuiteError(f"{where} has {len(target)} entries, so there is no {step} (from 0)", place.file)
        return int(step), (*path, int(step))


def read_yaml(path: Path) -> Document:
    """Reads a file that holds one YAML mapping.

    Raises:
        SuiteError: no such file, a directory, too large, not UTF-8, not YAML, several documents, empty, not a mapping,
            a duplicate key, a tag beyond plain data, NaN or infinity.
    """
    file = str(path)
    if path.is_dir():
        raise SuiteError("is a directory; give the suite file in it", file)
    try:
        with path.open("rb") as opened:
            raw = opened.read(_MAX_BYTES + 1)  # a device has no end
    except FileNotFoundError:
        raise SuiteError("no such file", file) from None
    except OSError as error:
        raise SuiteError(f"cannot be read: {error.strerror or one_line(error)}", file) from None
    if len(raw) > _MAX_BYTES:
        raise SuiteError(f"not a suite: more than {_MAX_BYTES:,} bytes; is it another file?", file, 1, 1)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        raise SuiteError(
            f"not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8", file, *_line_column(before)
        ) from None
    document = parse_yaml(text, file)
    if document.data is None:
        raise SuiteError("the suite is empty", file, 1, 1)
    if not isinstance(document.data, dict):
        message = f"a suite is a mapping of keys (name, model, tasks, ...), not {describe(document.data)}"
        raise document.error((), message)
    return document


def parse_yaml(text: str, file: str, *, in_file: bool = True) -> Document:
    """Parses one YAML document; the places of an override's text (`in_file=False`) carry no line.

    Raises:
        SuiteError: see `read_yaml`; an empty text is None and any value is accepted.
    """
    document = Document(file, None)
    builder = _Builder(document, in_file)
    try:
        loader = _SuiteLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is not None:
            document.data = builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        raise builder.error(_explain(error), error.problem_mark or error.context_mark) from None
    except yaml.reader.ReaderError as error:
        line, column = _line_column(text[: error.position])
        message = f"not YAML: character 0x{error.character:02x} is not allowed; take it out, and save the file as UTF-8"
        raise SuiteError(message, file, *((line, column) if in_file else ())) from None
    except RecursionError:
        raise SuiteError(_TOO_DEEP, file, *((1, 1) if in_file else ())) from None
    return document


def describe(value: Any) -> str:
    """A value as an error message shows it: `'abc' (a string)`, `3`, `null`, `a list`, `a mapping`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} (a string)" if isinstance(value, str) else text


def unknown_key(key: str, known: list[str]) -> str:
    """The message for an unknown key of a mapping."""
    head, colon, tail = key.partition(":")
    if colon and head in known:  # {keep:0.5} is one key in YAML
        return f"unknown key {key!r}; write '{head}: {tail}', with a space after the colon"
    return f"unknown key {key!r}{did_you_mean(key, known) or '; known keys: ' + ', '.join(known)}"


class _Builder:
    """Turns nodes into plain data and records their places."""

    def __init__(self, document: Document, in_file: bool) -> None:
        self.document, self.in_file = document, in_file
        self.nodes = 0
        self.open: set[int] = set()

    def place(self, mark: yaml.Mark | None) -> Place:
        if mark is None or not self.in_file:
            return Place(self.document.file)
        return Place(self.document.file, mark.line + 1, mark.column + 1)

    def error(self, message: str, mark: yaml.Mark | None) -> SuiteError:
        return SuiteError(message, *self.place(mark))

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise self.error(_TOO_MANY, node.start_mark)
        if id(node) in self.open:
            raise self.error(_CYCLE, node.start_mark)
        if len(path) > MAX_DEPTH:
            raise self.error(_TOO_DEEP, node.start_mark)
        self.document.values[path] = self.place(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if not isinstance(node, yaml.SequenceNode | yaml.MappingNode) or node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self.error(_tagged(node), node.start_mark)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
            return self.mapping(node, path)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        self.collect(node, own, merged)
        data = {}
        for key, (key_node, value_node) in (merged | own).items():
            self.document.keys[(*path, key)] = self.place(key_node.start_mark)
            data[key] = self.build(value_node, (*path, key))
        return data

    def collect(
        self, node: yaml.Node, own: dict[str, Any], merged: dict[str, Any], above: frozenset[int] = frozenset()
    ) -> None:
        """Collects a mapping's own pairs and those merged by `<<`, of which the first for a key is used."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error("`<<` takes a mapping or a list of mappings", node.start_mark)
        if id(node) in above:
            raise self.error(_CYCLE, node.start_mark)
        self.nodes += len(node.value) if above else 0  # merged mappings are read again at each use
        if self.nodes > _MAX_NODES:
            raise self.error(_TOO_MANY, node.start_mark)
        merges: yaml.Node | None = None
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                if merges is not None:
                    raise self.error("duplicate key '<<'; write one, with a list", key_node.start_mark)
                merges = value_node
                continue
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise self.error(f"a key must be a word, not {shown or 'empty'}; quote it", key_node.start_mark)
            if key in own:
                first = own[key][0].start_mark
                where = f" (first at line {first.line + 1}, column {first.column + 1})" if self.in_file else ""
                raise self.error(f"duplicate key {key!r}{where}; keep one", key_node.start_mark)
            own[key] = (key_node, value_node)
        for source in self.sources(merges):
            direct: dict[str, Any] = {}
            inherited: dict[str, Any] = {}
            self.collect(source, direct, inherited, above | {id(node)})
            for key, pair in (inherited | direct).items():
                merged.setdefault(key, pair)

    @staticmethod
    def sources(merges: yaml.Node | None) -> Iterator[yaml.Node]:
        if isinstance(merges, yaml.SequenceNode):
            yield from merges.value
        elif merges is not None:
            yield merges

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind in ("str", "merge", "!"):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise self.error("half of a surrogate pair; write the character itself", node.start_mark)
            return text
        # an explicit tag (`!!int abc`) comes here unchecked
        form = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}.get(kind)
        if form is None:
            raise self.error(_tagged(node), node.start_mark)
        if not form.match(text):
            raise self.error(f"{text!r} is not {kind}; leave the tag out", node.start_mark)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            if len(text) > 1000:
                raise self.error("a number of more than 1000 digits; quote it if it is none", node.start_mark)
            return int(text)
        number = float(text) if "n" not in text.lower() else math.nan
        if not math.isfinite(number):
            raise self.error(f"{text} is not a finite number", node.start_mark)
        return number


def _tagged(node: yaml.Node) -> str:
    return f"tag {node.tag!r} is not allowed here: plain data only; leave it out"


#: Part of PyYAML's message -> advice.
_REMEDIES = {
    "mapping values are not allowed": "quote a value that has a colon in it, and indent a key as those beside it",
    "sequence entries are not allowed": "begin a list on a line of its own",
    "undefined alias": "quote a value that begins with *",
    "cannot start any token": "quote a value that begins with it",
    "could not find expected ':'": "write 'key: value', with a space after the colon",
    "',' or": "close the bracket, and quote what has commas, colons or brackets in it",
    "unexpected end of stream": "close them",
    "document separator": "close them",
    "<block end>": "indent it as the lines that it belongs to",
    "escape": r"write \\ for a backslash, or single quotes",
    "document start": "a suite file holds one mapping",
    "YAML document": "leave the directive out",
    "directive": "leave the directive out",
    "node content": "write the value first",
}


def _explain(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _TooMuch):
        return str(error.problem)
    problem = error.problem or error.context or "cannot be parsed"
    if "'\\t'" in problem:
        return "not YAML: a tab where YAML wants spaces; indent with spaces"
    if "another document" in problem:
        return "a second document ('---'): a suite file holds one"
    context = f" ({error.context})" if error.context and error.context != problem else ""
    if "while scanning a quoted scalar" in context and error.context_mark is not None:
        mark = error.context_mark
        context = f" (in the quotes that open at line {mark.line + 1}, column {mark.column + 1})"
    remedies = (remedy for part, remedy in _REMEDIES.items() if part in problem)
    remedy = next(remedies, "quote values that have signs in them")
    return f"not YAML: {problem}{context}; {remedy}"


def _line_column(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
