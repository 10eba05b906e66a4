"""What `lrbench spectrum --format json` wrote, read back for a page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory
from lrbench.system.text import one_line

#: Of a run's directory, taken along wherever spectra are asked for.
IN_A_RUN = "spectrum.json"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Claim(_Read):
    """A claim, and what this model says of it."""

    statement: str
    criterion: str
    numbers: str
    verdict: str


class Slot(_Read):
    """One weight's figures, and those of a random matrix of its shape; None of a zero matrix."""

    weight: str
    layer: int | None
    role: str | None
    shape: tuple[int, int]
    values: dict[str, float | None]
    random: dict[str, float | None]


class OfRole(_Read):
    """Mean, least and greatest figures of a role."""

    role: str
    count: int
    mean: dict[str, float | None]
    min: dict[str, float | None]
    max: dict[str, float | None]
    random: dict[str, float | None]


class Spectrum(_Read):
    """A model's spectrum.

    Attributes:
        text: the file as it was, to be downloaded.
    """

    model: str
    dtype: str
    weight_hash: str
    environment: dict[str, Any]
    claims: list[Claim]
    roles: list[OfRole]
    slots: list[Slot]
    text: str = Field(repr=False)


def read(path: Path) -> Spectrum:
    """A file that `lrbench spectrum --format json` wrote.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        about = data["model"]
        slots = [
            {
                **{key: slot[key] for key in ("weight", "layer", "role", "shape", "random")},
                "values": {key: value for key, value in slot.items() if isinstance(value, float | int | None)
                           and key not in ("layer", "role")},
            }
            for slot in data["slots"]
        ]  # fmt: skip
        return Spectrum.model_validate(
            {
                **{key: data[key] for key in ("environment", "claims", "roles")},
                "model": about["label"], "dtype": about["dtype"], "weight_hash": about["weight_hash"],
                "slots": slots, "text": text,
            }
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"--spectrum: cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(_other(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(_other(path, one_line(error))) from None


def read_all(paths: Iterable[Path], runs: Iterable[RunDirectory]) -> list[Spectrum]:
    """The files given, and those that lie in runs' directories, each once.

    Raises:
        InputError: one cannot be read, or holds something else.
    """
    lying = [run.path / IN_A_RUN for run in runs]
    found = [*paths, *(path for path in lying if path.is_file())]
    return [read(path) for path in dict.fromkeys(path.resolve() for path in found)]


def _other(path: Path, why: str) -> str:
    return f"--spectrum: {path} is not what `lrbench spectrum MODEL --format json` writes ({why}); make it again"
