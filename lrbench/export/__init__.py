"""Edited models out: a dense checkpoint, a factored one, or a LoRA adapter.

`subject` is what is exported; `dense`, `factored` and `peft_adapter` write it; `card` describes it to people and
`description` to `load`, which reads a factored one back.
"""

from __future__ import annotations

#: What `--format` chooses from, the default first.
FORMATS = ("dense", "factored", "lora")
