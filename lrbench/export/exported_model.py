"""The edited model to export, with its scores and provenance."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import InputError, ModelError
from lrbench.models.base_model import Base
from lrbench.models.load import bundled
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reduction.reduced_weight import Reduction
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Edit, Row
from lrbench.run.recompute import RecomputedCell
from lrbench.suite.load import ModelSpec, Suite


@dataclass(frozen=True)
class DeltaBase:
    """The base model of reduced updates.

    Attributes:
        name: a hub id, a bundled name, or a folder's name.
        folder: the local folder; None for a hub id.
        revision: of a hub id; the commit if it is known.
        base: the base's weights.
    """

    name: str
    folder: Path | None
    revision: str | None
    base: Base


@dataclass(frozen=True)
class ExportedModel:
    """An edited model.

    Attributes:
        base: the baseline's name: a hub id, a bundled name, or a folder's name.
        base_folder: the baseline's local folder; None for a hub id.
        model: the model with its original weights; edits are applied while it is written.
        tokenizer: None if the model has none.
        inventory: all slots of the model.
        slots, reductions: the edited weights, and the reduction of each.
        delta: the base, if the reductions replace updates; None if they replace weights.
        row: the cell's row; None if it was not scored.
        suite: the suite as plain data; empty if there was none.
        environment: the hardware and versions of the scoring; empty if it was not scored.
        made: the command or call that made the export, in one line.
        stored: how the GGUF file of the baseline stores its matrices, as `Q4_1`; None if it comes of another file.
        license: of the baseline, as its GGUF file names it.
    """

    base: str
    base_folder: Path | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    inventory: Inventory
    slots: Sequence[WeightSlot]
    reductions: Sequence[Reduction]
    row: Row | None = None
    suite: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    made: str = ""
    delta: DeltaBase | None = None
    stored: str | None = None
    license: str | None = None

    @property
    def edits(self) -> list[Edit]:
        """The edit of each slot."""
        return [reduction.edit for reduction in self.reductions]

    @classmethod
    def of_cell(cls, again: RecomputedCell, run: RunDirectory, made: str) -> ExportedModel:
        """The edited model of a recomputed cell."""
        name, folder = _place(again.spec)
        delta = None
        if again.base is not None and again.suite.delta is not None:
            spec, source = again.suite.delta.base, again.base.source
            revision = source.get("commit") or source.get("revision")
            delta = DeltaBase(*_place(spec), revision, again.base)
        return cls(
            base=name,
            delta=delta,
            base_folder=folder,
            model=again.loaded.model,
            tokenizer=again.loaded.tokenizer,
            inventory=again.loaded.inventory,
            slots=again.cell.slots,
            reductions=again.reductions,
            row=again.row,
            suite=again.resolved_suite,
            environment=run.environments().get(again.row.environment, {}),
            made=made,
            stored=again.loaded.source.get("stored"),
            license=again.loaded.source.get("license"),
        )

    def config(self) -> PreTrainedConfig:
        """The edited model's configuration: untied if the head or the embedding of a tied pair was edited.

        Loading a copy with a tied head would tie it to the embedding again, and undo the edit.
        """
        config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        config.dtype = self.model.dtype
        edited = {(id(slot.module), slot.parameter) for slot in self.slots}
        tied = {id(slot.tensor()) for slot in self.slots if slot.users > 1}
        users = {(id(slot.module), slot.parameter) for slot in self.inventory.slots if id(slot.tensor()) in tied}
        if users & edited:
            for part in (config, config.get_text_config()):
                part.tie_word_embeddings = False
        return config


def check_format(format: str, suite: Suite, spec: ModelSpec) -> None:
    """Checks that a suite's cells of a model can be exported in a format.

    Raises:
        InputError: `factored` cannot hold the factors of updates.
        ModelError: `lora` needs a base that PEFT can load by name.
    """
    if format == "factored" and suite.delta is not None:
        raise InputError(
            "factors of an update are added to the base's weight and cannot replace it; export lora or dense"
        )
    if format != "lora":
        return
    if suite.delta is None and spec.gguf is not None:
        raise ModelError(f"{_place(spec)[0]}: a GGUF file, which PEFT cannot load as a base; export dense or factored")
    base = suite.delta.base if suite.delta is not None else spec
    if suite.delta is not None and (base.adapter is not None or base.config is not None or base.gguf is not None):
        raise ModelError(
            f"{_place(base)[0]}: the base has a merged adapter or random weights, or is a GGUF file, so that PEFT "
            "cannot load it by name; save it as a checkpoint, or export dense"
        )


def _place(spec: ModelSpec) -> tuple[str, Path | None]:
    """A model's name, and its local folder (of a GGUF file by itself, the file) if it has one."""
    folder = None
    if spec.name is not None:
        folder = bundled()[spec.name]
    elif spec.pretrained is not None and Path(spec.pretrained).is_dir():
        folder = Path(spec.pretrained)
    elif spec.gguf is not None and spec.pretrained is None:
        folder = Path(spec.gguf)
    return spec.name or (
        Path(spec.gguf or folder).name if folder is not None else spec.pretrained or spec.display_name
    ), folder
