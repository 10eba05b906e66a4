"""Hashes of code, so that rows are reused until code that affects their results changes.

A Python file is hashed as its syntax tree, without comments, docstrings and layout. Everything else counts, including
the order of definitions and the text of messages.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import linecache
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.errors import PluginError
from lrbench.system.cache import cached
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer

_LRBENCH = Path(__file__).parent.parent
#: packages of lrbench that affect the result of every reducer
_PACKAGES = ("linalg", "reducers", "reduction")
#: modules in them that affect no result: conformance checks, and the registry
_EXCLUDED = ("reducers/registry.py", "reducers/testing/")
#: fields of a syntax tree that depend on spelling, or follow from a node's position
_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def source_hash(reducer: type[Reducer]) -> str:
    """SHA-256 (hex) of the code that defines a reducer's result.

    It covers lrbench's `linalg`, `reducers` and `reduction`, and the files of the class and its base classes; of a
    class typed into a notebook, the cells that define its methods. Other files that a plugin imports, and other cells,
    are not covered, so a plugin should be a single file, or a single cell.

    Raises:
        PluginError: the source cannot be read.
    """
    from lrbench.reducers.base import Reducer

    digest = hashlib.sha256(code_hash(*_PACKAGES).encode())
    classes = [cls for cls in reducer.__mro__ if issubclass(cls, Reducer) and cls is not Reducer]
    hashed = set()
    for cls in classes:
        module = sys.modules.get(cls.__module__)
        file = getattr(module, "__file__", None)
        typed = module is not None and not file
        key = cls if typed else cls.__module__
        if key in hashed:
            continue
        hashed.add(key)
        try:
            digest.update(_cells_hash(cls) if typed else _file_hash(Path(file or "")))
        except (OSError, SyntaxError, ValueError, PluginError) as error:
            name = f"{cls.__module__}.{cls.__qualname__}" if typed else cls.__module__
            raise PluginError(f"{reducer.name}: the source of {name} cannot be read: {one_line(error)}") from None
    return digest.hexdigest()


def code_hash(*packages: str) -> str:
    """SHA-256 (hex) of packages of lrbench.

    Args:
        packages: folders below `lrbench/`, such as `reduction/calibration`.
    """
    sources: dict[str, bytes] = {}
    for package in packages:
        for path in sorted((_LRBENCH / package).rglob("*.py")):
            name = path.relative_to(_LRBENCH).as_posix()
            if not name.startswith(_EXCLUDED):
                sources[name] = path.read_bytes()

    def digest() -> str:
        return hashlib.sha256(b"".join(name.encode() + _tree_hash(sources[name]) for name in sources)).hexdigest()

    key = repr((sys.version, Path(__file__).read_bytes(), sources)).encode()
    return str(cached("code", f"{_LRBENCH} {packages}", key, digest))


def _file_hash(path: Path) -> bytes:
    content = path.read_bytes()
    return _tree_hash(content) if path.suffix == ".py" else hashlib.sha256(content).digest()  # a compiled module


def _cells_hash(cls: type) -> bytes:
    """SHA-256 of the cells that define a class's methods. Raises PluginError: one is kept nowhere."""
    methods = (getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(cls).values())
    functions = [inspect.unwrap(method) for method in methods if inspect.isfunction(method)]
    made_by_dataclass = ("<string>", dataclasses.__file__)
    cells = dict.fromkeys(f.__code__.co_filename for f in functions if f.__code__.co_filename not in made_by_dataclass)
    sources = ["".join(linecache.getlines(cell)) for cell in cells]
    if not sources or not all(sources):
        raise PluginError("no cell that defines its methods is kept; type it into a notebook cell, or write a file")
    return b"".join(_tree_hash(source.encode()) for source in sources)


@lru_cache(maxsize=1024)
def _tree_hash(source: bytes) -> bytes:
    """SHA-256 of Python source as a syntax tree. Raises SyntaxError or ValueError: the source is invalid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # already shown when the file was imported
        tree = ast.parse(source)
    return hashlib.sha256("\n".join(_normal_form(tree)).encode()).digest()


def _normal_form(tree: ast.AST) -> Iterator[str]:
    """A tree in lines, one per node, such that different trees differ.

    Like `ast.dump`, but equal in all versions of Python: empty fields are left out, so that fields added by a newer
    version have no effect until used. Iterative, since a long sum is a deep tree.
    """
    pending: list[Any] = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, ast.Constant):
            yield f"{type(item.value).__name__} {item.value!a}"
        elif isinstance(item, ast.AST):
            fields = {name: value for name, value in ast.iter_fields(item) if name not in _IGNORED}
            kept = {name: value for name, value in fields.items() if value is not None and value != []}
            yield " ".join([type(item).__name__, *kept])
            pending += kept.values()
        elif isinstance(item, list):
            entries = [entry for entry in item if not _is_text(entry)]
            yield f"[{len(entries)}]"
            pending += entries
        else:  # a name, a number in a node, or None: the key of `**mapping`
            yield ascii(item)


def _is_text(node: Any) -> bool:
    """Whether a statement is a bare string: a docstring, or a comment written as one."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
