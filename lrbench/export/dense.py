"""An edited model as a checkpoint like any other: every weight a matrix."""

from __future__ import annotations

from pathlib import Path

from lrbench.export.card import card
from lrbench.export.exported_model import ExportedModel
from lrbench.export.folder import new_folder
from lrbench.reduction.apply import in_place


def write_dense(exported: ExportedModel, directory: Path) -> None:
    """Writes what `AutoModelForCausalLM.from_pretrained` reads: safetensors, configuration, tokenizer, model card.

    Args:
        directory: must not exist, or be empty.

    Raises:
        InputError: it is not, or cannot be written.
    """
    model, own = exported.model, exported.model.config
    with new_folder(directory) as folder:
        try:
            model.config = exported.config()
            with in_place(model, exported.slots, exported.reductions):
                model.save_pretrained(folder)
        finally:
            model.config = own
        if exported.tokenizer is not None:
            exported.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(exported, "dense"), encoding="utf-8")
