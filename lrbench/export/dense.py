"""Writes an edited model as an ordinary checkpoint: every weight is a matrix."""

from __future__ import annotations

from pathlib import Path

from lrbench.export.card import card
from lrbench.export.exported_model import ExportedModel
from lrbench.export.folder import new_folder
from lrbench.reduction.apply import in_place


def write_dense(exported: ExportedModel, directory: Path) -> None:
    """Writes a checkpoint for `AutoModelForCausalLM.from_pretrained`: safetensors, configuration, tokenizer, card.

    Args:
        directory: must not exist, or be empty.

    Raises:
        InputError: the directory is occupied or cannot be written.
    """
    model, original_config = exported.model, exported.model.config
    with new_folder(directory) as folder:
        try:
            model.config = exported.config()
            with in_place(model, exported.slots, exported.reductions):
                model.save_pretrained(folder)
        finally:
            model.config = original_config
        if exported.tokenizer is not None:
            exported.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(exported, "dense"), encoding="utf-8")
