"""`lrbench.json`: the description from which `load` rebuilds a factored export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from lrbench.errors import InputError
from lrbench.results.rows import Row, Strict
from lrbench.system.text import one_line

FILE = "lrbench.json"
TENSORS = "factored{suffix}.safetensors"  # not transformers' name: it would load these files with random factors


class StoredWeight(Strict):
    """A weight that is stored as factors, or in parts.

    Attributes:
        weight: the slot's name; part of a parameter has its range in brackets.
        module, parameter: the module's path, and the name of its parameter.
        shape: (out, in) of W.
        factors: the name of their class; `Dense` is a matrix.
        rank: of the factors.
        dtype: of the factors.
        tensors: field of the factors -> name of its stored tensor.
        settings: the other fields of the factors.
        bias: the name of the layer's stored bias; None without a bias, and if the factors do not run as a layer.
        runs_as: `factors` replace the layer; a `matrix` is multiplied out when the model is loaded, because the weight
            is no linear layer of its own (part of a fused or stacked parameter, or an embedding).
        edited: False for an original part of a parameter with other parts edited.
    """

    weight: str
    module: str
    parameter: str
    layer: int | None
    role: str | None
    shape: tuple[int, int]
    factors: str
    rank: int
    dtype: str
    tensors: dict[str, str]
    settings: dict[str, Any] = Field(default_factory=dict)
    bias: str | None = None
    runs_as: Literal["factors", "matrix"]
    edited: bool = True


class Description(Strict):
    """The contents of a factored export.

    Attributes:
        base: the baseline's name.
        plain: whether all factors are low-rank pairs that run as layers, which torch and transformers load without
            lrbench.
        weights: the weights stored as factors, or in parts.
        matrices: the edited weights stored in full, under their own names.
        ties: name -> the name whose stored tensor it shares.
        row: the cell's scores, sizes and times; None if it was not scored.
        suite: the suite as plain data.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    format: Literal["factored"] = "factored"
    lrbench: str
    base: str
    plain: bool
    weights: list[StoredWeight]
    matrices: list[str] = Field(default_factory=list)
    ties: dict[str, str] = Field(default_factory=dict)
    row: Row | None = None
    suite: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", populate_by_name=True, ser_json_inf_nan="constants")

    def write(self, folder: Path) -> None:
        """Writes the file."""
        text = self.model_dump_json(by_alias=True)
        (folder / FILE).write_text(json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Reads the file. Raises InputError if it is missing or invalid."""
        file = folder / FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{file}: not a factored model: {where}: {first['msg']}") from None
        except OSError as error:
            if not folder.is_dir():
                raise InputError(f"{folder}: {_no_folder(folder)}") from None
            hint = "a dense export is loaded by AutoModelForCausalLM.from_pretrained"
            raise InputError(f"{file}: {error.strerror or one_line(error)}; {hint}") from None


def _no_folder(folder: Path) -> str:
    if folder.exists():
        return f"a file; give the folder of a factored export, {folder.parent}"
    return "no such folder; give one that `lrbench export --format factored` wrote"
