"""Results kept in the cache folder, each with a checksum of all that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from lrbench.errors import InputError
from lrbench.system import files


def cached(folder: str, name: str, key: bytes, compute: Callable[[], Any]) -> Any:
    """`compute()`, or the stored result if that was computed for the same `key`.

    A damaged result is computed again; one that cannot be stored is computed every time.

    Args:
        folder: in the cache folder.
        name: what is computed; its last result is kept.
        key: all that the result depends on.
        compute: returns a JSON value.
    """
    with contextlib.suppress(OSError, InputError):  # InputError: there is no cache folder
        checksum, _, content = _file(folder, name).read_bytes().partition(b"\n")
        if checksum == _checksum(key, content):
            return json.loads(content)
    content = json.dumps(compute(), default=str).encode()
    with contextlib.suppress(OSError, InputError):
        _file(folder, name).parent.mkdir(parents=True, exist_ok=True)
        files.write(_file(folder, name), _checksum(key, content) + b"\n" + content)
    return json.loads(content)


def installation(package: str) -> str | None:
    """SHA-256 of the list of a package's files and their hashes; None if it is missing, or may be edited in place."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    record = distribution.read_text("RECORD")
    editable = '"editable": true' in (distribution.read_text("direct_url.json") or "")
    return None if record is None or editable else hashlib.sha256(record.encode()).hexdigest()


def _file(folder: str, name: str) -> Path:
    return files.cache_root() / folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _checksum(key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(key + b"\n" + content).hexdigest().encode()
