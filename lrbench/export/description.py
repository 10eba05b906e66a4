"""`lrbench.json`: what lies beside the tensors of a factored export, so that they can be put together again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from lrbench.errors import InputError
from lrbench.results.rows import Row, Strict
from lrbench.system.text import one_line

FILE = "lrbench.json"
TENSORS = (
    "factored{suffix}.safetensors"  # not transformers' name: it would load the rest and draw the factors at random
)


class StoredWeight(Strict):
    """One weight that is not stored as the model holds it.

    Attributes:
        weight: the slot's name; `part[...]` of a parameter has it in brackets.
        module, parameter: the module's path, and the name of its parameter.
        shape: (out, in) of W.
        factors: their type, as `lrbench.Factors` has them; `Dense` is the matrix.
        rank: of the factors.
        dtype: of their numbers.
        tensors: each of their fields, and the tensor that holds it.
        settings: their other fields.
        bias: the tensor that holds the layer's bias, where it has one and the factors run as a layer.
        runs_as: `factors` take the layer's place; a `matrix` is multiplied out when the model is loaded, since the
            weight is no linear layer of its own (part of a fused or stacked parameter, or an embedding).
        edited: False for a part of a parameter whose other parts were edited.
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
    """What a factored export holds.

    Attributes:
        base: the baseline.
        plain: whether all factors are low-rank pairs that run as layers: then torch and transformers load it alone.
        weights: what is stored as factors, or in parts.
        matrices: edited weights that are stored in full, under their own names.
        ties: names that share another name's tensor.
        row: what the edit scored and cost.
        suite: what the run was asked.
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
        """Reads it. Raises InputError where it is not there, or not one of these."""
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
