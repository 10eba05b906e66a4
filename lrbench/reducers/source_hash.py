"""Hashes of code, so that rows are reused until the code that made them changes what it does.

A Python file counts as its syntax tree. Comments, docstrings, blank lines and line breaks are not in it: changing them
keeps all rows. Everything else counts, the order of definitions and the text of messages included.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.errors import PluginError
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer

_LRBENCH = Path(__file__).parent.parent
#: packages of lrbench that decide what every reducer's edits are
_PACKAGES = ("linalg", "reducers", "reduction")
#: within them, what decides no number: conformance checks, and finding plugins
_EXCLUDED = ("reducers/registry.py", "reducers/testing/")
#: fields of a syntax tree that say how the source is written, or follow from a node's place in the tree
_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def source_hash(reducer: type[Reducer]) -> str:
    """SHA-256 (hex) of the code that defines a reducer's result.

    That is lrbench's `linalg`, `reducers` and `reduction`, and the files of the class and of the classes it derives
    from. Other files that a plugin imports are not seen: it should keep to one file.

    Raises:
        PluginError: the source cannot be read.
    """
    from lrbench.reducers.base import Reducer

    digest = hashlib.sha256(code_hash(*_PACKAGES).encode())
    classes = [cls for cls in reducer.__mro__ if issubclass(cls, Reducer) and cls is not Reducer]
    for module in dict.fromkeys(cls.__module__ for cls in classes):
        file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
        try:
            digest.update(_file_hash(file))
        except (OSError, SyntaxError, ValueError) as error:
            raise PluginError(f"{reducer.name}: the source of {module} cannot be read: {one_line(error)}") from None
    return digest.hexdigest()


def code_hash(*packages: str) -> str:
    """SHA-256 (hex) of packages of lrbench.

    Args:
        packages: folders below `lrbench/`, such as `reduction/calibration`.
    """
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((_LRBENCH / package).rglob("*.py")):
            name = path.relative_to(_LRBENCH).as_posix()
            if not name.startswith(_EXCLUDED):
                digest.update(name.encode() + _file_hash(path))
    return digest.hexdigest()


def _file_hash(path: Path) -> bytes:
    content = path.read_bytes()
    return _tree_hash(content) if path.suffix == ".py" else hashlib.sha256(content).digest()  # a compiled module


@lru_cache(maxsize=1024)
def _tree_hash(source: bytes) -> bytes:
    """SHA-256 of Python source as a syntax tree. Raises SyntaxError or ValueError where it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were shown when the file was imported
        tree = ast.parse(source)
    return hashlib.sha256("\n".join(_normal_form(tree)).encode()).digest()


def _normal_form(tree: ast.AST) -> Iterator[str]:
    """The tree's nodes, one line each, so that different trees give different lines.

    Like `ast.dump`, but the same in all versions of Python: what is empty is left out, so that fields that a version
    adds change nothing while they are unused. Without recursion, since a long sum is a deep tree.
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
        else:  # a name, a number of a node's own, or nothing: the key of `**mapping`
            yield ascii(item)


def _is_text(node: Any) -> bool:
    """Whether a statement is a string and no more: a docstring, or a comment written as one."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
