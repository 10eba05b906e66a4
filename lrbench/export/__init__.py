"""Edited models out: a dense checkpoint, a factored one, or a LoRA adapter.

`subject` is what is exported, `dense`, `factored` and `adapter` write it, `card` describes it, `description` is the JSON
beside factors, `load` reads a factored one back.
"""

from __future__ import annotations

#: What `--format` chooses from, the default first.
FORMATS = ("dense", "factored", "lora")
