"""Writes edited models: as a dense checkpoint, a factored checkpoint, or a LoRA adapter.

`exported_model` holds the edited model; `dense`, `factored` and `peft_adapter` write it; `card` writes its model card,
and `description` the metadata from which `load` reads a factored checkpoint.
"""

from __future__ import annotations

#: The values of `--format`, the default first.
FORMATS = ("dense", "factored", "lora")
