"""Writes edited models: as a dense checkpoint, a factored checkpoint, or a LoRA adapter.

`exported_model` holds the edited model; `dense`, `factored` and `peft_adapter` write it; `card` writes its model card,
and `description` the metadata from which `load` reads a factored checkpoint.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lrbench.export.exported_model import ExportedModel

_WRITERS = {
    "dense": ("dense", "write_dense"), "factored": ("factored", "write_factored"),
    "lora": ("peft_adapter", "write_adapter"),
}  # fmt: skip
#: The values of `--format`, the default first.
FORMATS = tuple(_WRITERS)


def write(exported: ExportedModel, directory: Path, format: str) -> None:
    """Writes an edited model in one of `FORMATS`; raises as the format's function."""
    module, function = _WRITERS[format]
    getattr(importlib.import_module(f"lrbench.export.{module}"), function)(exported, directory)
