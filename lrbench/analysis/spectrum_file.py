"""Reads files written by `lrbench spectrum --format json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrbench.errors import InputError
from lrbench.results.directory import RunDirectory
from lrbench.system.text import one_line

#: The name of a spectrum in a run's directory, which is included automatically.
IN_A_RUN = "spectrum.json"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ClaimRecord(_Read):
    """A claim and this model's verdict."""

    statement: str
    criterion: str
    numbers: str
    verdict: str


class SlotRecord(_Read):
    """The figures of one weight and of a random matrix of its shape; None for a zero matrix."""

    weight: str
    layer: int | None
    role: str | None
    shape: tuple[int, int]
    values: dict[str, float | None]
    random: dict[str, float | None]


class RoleRecord(_Read):
    """Mean, minimum and maximum figures of a role."""

    role: str
    count: int
    mean: dict[str, float | None]
    min: dict[str, float | None]
    max: dict[str, float | None]
    random: dict[str, float | None]


class SpectrumRecord(_Read):
    """A model's spectrum.

    Attributes:
        text: the file's content, for download.
    """

    model: str
    dtype: str
    weight_hash: str
    environment: dict[str, Any]
    claims: list[ClaimRecord]
    roles: list[RoleRecord]
    slots: list[SlotRecord]
    text: str = Field(repr=False)


def read(path: Path) -> SpectrumRecord:
    """Reads a file written by `lrbench spectrum --format json`.

    Raises:
        InputError: it cannot be read, or has other content.
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
        return SpectrumRecord.model_validate(
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
        raise InputError(_not_a_spectrum(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(_not_a_spectrum(path, one_line(error))) from None


def read_all(paths: Iterable[Path], runs: Iterable[RunDirectory]) -> list[SpectrumRecord]:
    """Reads the given files and those in runs' directories, each once. Raises as `read`."""
    in_runs = [run.path / IN_A_RUN for run in runs]
    existing = [*paths, *(path for path in in_runs if path.is_file())]
    return [read(path) for path in dict.fromkeys(path.resolve() for path in existing)]


def _not_a_spectrum(path: Path, reason: str) -> str:
    return f"--spectrum: {path} is not a file of `lrbench spectrum MODEL --format json` ({reason}); create it again"
