"""What is exported: an edited model, and how it came to be."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lrbench.models.base_model import Base
from lrbench.models.load import bundled
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reduction.reduced_weight import Reduction
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Edit, Row
from lrbench.run.recompute import CellAgain
from lrbench.suite.load import ModelSpec


@dataclass(frozen=True)
class UpdateOf:
    """The base of updates.

    Attributes:
        name: a hub id, a bundled name, or a folder's name.
        folder: where it lies, for a model of this machine.
        revision: of a hub id: the commit where it is known.
        base: its weights.
        whole: whether these are what loading it by name gives: not a merged adapter, nor drawn at random.
    """

    name: str
    folder: Path | None
    revision: str | None
    base: Base
    whole: bool


@dataclass(frozen=True)
class Subject:
    """An edited model.

    Attributes:
        base: the baseline's name: a hub id, a bundled name, or a folder's name.
        base_folder: where it lies, for a model of this machine.
        model: with its original weights; edits are put in place while they are written.
        tokenizer: None where there is none to go with it.
        inventory: all slots of the model.
        slots, reductions: one of each for each edited weight.
        delta: what the reductions are updates of; None where they stand in for the weights.
        row: what the edit scored and cost; None where it was not scored.
        suite: the suite as plain data; empty where there was none.
        environment: where and with what it was scored; empty where it was not.
        made: how, in one line: a command or a call.
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
    delta: UpdateOf | None = None

    @property
    def edits(self) -> list[Edit]:
        """The record of each edited weight."""
        return [reduction.edit for reduction in self.reductions]

    @classmethod
    def of_cell(cls, again: CellAgain, run: RunDirectory, made: str) -> Subject:
        """A run's cell."""
        name, folder = _place(again.spec)
        delta = None
        if again.base is not None and again.suite.delta is not None:
            spec, source = again.suite.delta.base, again.base.source
            revision = source.get("commit") or source.get("revision")
            delta = UpdateOf(*_place(spec), revision, again.base, spec.adapter is None and spec.config is None)
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
            suite=again.asked,
            environment=run.environments().get(again.row.environment, {}),
            made=made,
        )

    def config(self) -> PreTrainedConfig:
        """The model's configuration as its edited copy needs it: untied where one of a tied pair was edited.

        A tied head would be tied to the embedding again when the copy is loaded, and the edit undone.
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


def _place(spec: ModelSpec) -> tuple[str, Path | None]:
    """A model's name, and the folder where it lies."""
    folder = None
    if spec.name is not None:
        folder = bundled()[spec.name]
    elif spec.pretrained is not None and Path(spec.pretrained).is_dir():
        folder = Path(spec.pretrained)
    return spec.name or (folder.name if folder is not None else spec.pretrained or spec.display_name), folder
