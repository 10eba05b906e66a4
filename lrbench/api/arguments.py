"""Checks of arguments that several functions take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrbench.errors import InputError


def path_of(name: str, value: Any) -> Path:
    """An argument as a path. Raises InputError if it is none."""
    if not isinstance(value, str | Path):
        raise InputError(f"{name}: must be a path, not {type(value).__name__}")
    return Path(value)


def paths_of(name: str, values: Any) -> list[Path]:
    """An argument, a path or several, as paths. Raises InputError if it is neither."""
    several = [values] if isinstance(values, str | Path) or not isinstance(values, Iterable) else values
    return [path_of(name, value) for value in several]
