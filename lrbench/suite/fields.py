"""Types of values in a suite, with their checks."""

from __future__ import annotations

import difflib
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from lrbench.errors import SuiteError
from lrbench.suite.messages import misplaced
from lrbench.suite.roles import ALIASES, GROUPS, ROLES
from lrbench.suite.yaml_reader import Document, KeyPath, describe
from lrbench.system.text import did_you_mean, is_reserved

#: The beginning of a path into an installed Python package.
PACKAGE = "package:"


def one_or_many(value: Any) -> Any:
    """A list unchanged; any other value as a list with this entry."""
    return value if isinstance(value, list) else [value]


def each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses a value listed twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value!r} is listed twice")
    return values


def _known_weight(word: str) -> str:
    """Refuses a word that cannot be a role, group, LASER name, parameter name or glob in any model."""
    known = [*ROLES, *GROUPS, *ALIASES]
    if word in known or any(mark in word for mark in "*?["):
        return word
    # Names of parameters and of roles have dots: `mlp.dwon` is a misspelt role, `lm_head.weight` a parameter.
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if "." not in word or (nearest and word.count(".") == 1 and not word.endswith((".weight", ".bias"))):
        hint = did_you_mean(word, known) or f"; known: {', '.join(known)}, or a glob on parameter names"
        raise ValueError(f"unknown role {word!r}{hint}")
    return word


def directory_name(name: str) -> str:
    """Refuses a name that some operating system does not allow for a directory."""
    if is_reserved(name):
        raise ValueError(f"the suite's name {name!r} is a device on Windows, whatever follows; choose another")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"the suite's name {name!r} also names a directory: at most 64 letters, digits, '.', '_', '-', "
            "a letter or digit first"
        )
    return name


def visible(text: str) -> str:
    """Refuses control characters and characters that change the direction of text."""
    for char in text:
        if unicodedata.category(char) == "Cc" or char in _TURNING:
            raise ValueError(f"{describe(text)[:80]} has the character U+{ord(char):04X} in it; take it out")
    return text


_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _path_text(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a path is a string, not {describe(value)}" if value != "" else "a path must not be empty")
    return visible(value)


Text = Annotated[StrictStr, Field(min_length=1), AfterValidator(visible)]
FilePath = Annotated[Path, BeforeValidator(_path_text)]
Count = Annotated[StrictInt, Field(ge=1, lt=2**63)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Fraction = Annotated[StrictFloat, Field(gt=0, le=1, allow_inf_nan=False)]
Fractions = Annotated[tuple[Fraction, ...], Field(min_length=1), BeforeValidator(one_or_many)]
Weight = Annotated[Text, Field(), BeforeValidator(lambda word: _known_weight(word) if isinstance(word, str) else word)]


def memory(value: Any) -> Any:
    """Checks a memory budget: `auto`, or GiB."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or value == "auto":
        return "auto"
    if number and 0 < value < 2**63:
        return value
    raise ValueError(f"'frontier_memory' takes auto, or GiB as a number above 0, not {describe(value)}")


MOST_SEEDS = 10_000  # each adds a row for each cell of a random method


def seed_list(value: Any) -> int | tuple[int, ...] | None:
    """Checks seeds: their number, or a list of them."""
    if value is None or (type(value) is int and 1 <= value <= MOST_SEEDS):
        return value
    if type(value) is int and value > MOST_SEEDS:
        raise misplaced(f"'seeds' is how many seeds, at most {MOST_SEEDS:,}, not {describe(value)}")
    if isinstance(value, list | tuple) and value:
        for index, seed in enumerate(value):
            if type(seed) is not int or not 0 <= seed < 2**63:
                raise misplaced(f"a seed is a whole number from 0 up to 2**63, not {describe(seed)}", index)
            if seed in value[:index]:
                raise misplaced(f"seed {seed} is listed twice", index)
        return tuple(value)
    raise misplaced(f"'seeds' is how many seeds, or a list of them, not {describe(value) if value != [] else 'none'}")


class Spec(BaseModel):
    """A mapping in a suite, with its place in the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _path: KeyPath = PrivateAttr(default=())
    _document: Document = PrivateAttr()

    @property
    def path(self) -> KeyPath:
        """The keys and indices that lead from the suite to this mapping."""
        return self._path

    def error_at(self, message: str, *keys: str | int) -> SuiteError:
        """A `SuiteError` with the line of this mapping, or of a key in it, for the caller to raise."""
        return self._document.error((*self._path, *keys), message)
