"""An edited model as a checkpoint like any other: every weight a matrix."""

from __future__ import annotations

from pathlib import Path

from lrbench.export.card import card
from lrbench.export.folder import new_folder
from lrbench.export.subject import Subject
from lrbench.reduction.apply import in_place


def write_dense(subject: Subject, directory: Path) -> None:
    """Writes what `AutoModelForCausalLM.from_pretrained` reads: safetensors, configuration, tokenizer, model card.

    Args:
        directory: must not exist, or be empty.

    Raises:
        InputError: it is not, or cannot be written.
    """
    model, own = subject.model, subject.model.config
    with new_folder(directory) as folder:
        try:
            model.config = subject.config()
            with in_place(model, subject.slots, subject.reductions):
                model.save_pretrained(folder)
        finally:
            model.config = own
        if subject.tokenizer is not None:
            subject.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(subject, "dense"), encoding="utf-8")
