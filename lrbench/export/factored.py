"""Writes an edited model with factors in place of the edited weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from lrbench._version import __version__
from lrbench.export.card import card
from lrbench.export.description import TENSORS, Description, StoredWeight
from lrbench.export.exported_model import ExportedModel
from lrbench.export.folder import new_folder
from lrbench.models.edit import edited
from lrbench.models.factored_layers import runs_as_factors
from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Dense, Factors, LowRank

SHARD = "5GB"


def write_factored(exported: ExportedModel, directory: Path) -> None:
    """Writes a checkpoint for `lrbench.load`: factors and other weights as safetensors, and `lrbench.json`.

    A low-rank pair of a layer `path` is stored as two linear layers: `path.0.weight` (k, in) and `path.1.weight`
    (out, k), with the bias in `path.1.bias`. Fields of other factors are `path.FIELD`.

    Args:
        directory: must not exist, or be empty.

    Raises:
        InputError: the directory is occupied or cannot be written.
    """
    with new_folder(directory) as folder:
        stored = _stored(exported)
        _save(stored.tensors, folder)
        config = exported.config()
        config.save_pretrained(folder)
        if exported.model.can_generate() and exported.model.generation_config is not None:
            exported.model.generation_config.save_pretrained(folder)
        if exported.tokenizer is not None:
            exported.tokenizer.save_pretrained(folder)
        description = Description(
            lrbench=__version__,
            base=exported.base,
            plain=all(weight.factors == "LowRank" and weight.runs_as == "factors" for weight in stored.weights),
            weights=stored.weights,
            matrices=stored.matrices,
            ties=stored.ties,
            row=exported.row,
            suite=dict(exported.suite),
        )
        description.write(folder)
        (folder / "README.md").write_text(card(exported, "factored", description), encoding="utf-8")


@dataclass
class _StoredModel:
    """A model's tensors to store, and the entries of its description."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: list[StoredWeight] = field(default_factory=list)
    matrices: list[str] = field(default_factory=list)
    ties: dict[str, str] = field(default_factory=dict)


def _stored(exported: ExportedModel) -> _StoredModel:
    model, stored = exported.model, _StoredModel()
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    of_slot = {id(slot): done.factors for slot, done in zip(exported.slots, exported.reductions, strict=True)}
    replaced: set[str] = set()  # names in the model's state that factors and parts replace
    whole: dict[WeightSlot, torch.Tensor] = {}
    split: set[tuple[int, str]] = set()  # parameters stored in parts
    for slot, reduction in zip(exported.slots, exported.reductions, strict=True):
        factors, key = reduction.factors, (id(slot.module), slot.parameter)
        first = paths[id(slot.module)][0]
        if runs_as_factors(slot, factors):
            stored.weights.append(_add_layer(stored, slot, factors, first))
            replaced.update(f"{path}.{name}" for path in paths[id(slot.module)] for name in ("weight", "bias"))
        elif parts := _parts(exported.inventory.slots, slot, of_slot):
            replaced.update(f"{path}.{slot.parameter}" for path in paths[id(slot.module)])
            if key not in split:
                stored.weights += [_add_part(stored, part, of_slot.get(id(part)), first) for part in parts]
            split.add(key)
        else:
            whole[slot] = reduction.matrix()
            stored.matrices.append(slot.name)
    with edited(whole):
        rest = {name: tensor for name, tensor in model.state_dict().items() if name not in replaced}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in rest.items():
        place = (tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            stored.ties[name] = seen[place]
        else:
            seen[place] = name
            stored.tensors[name] = tensor
    return stored


def _parts(slots: Iterable[WeightSlot], slot: WeightSlot, of_slot: dict[int, Factors]) -> list[WeightSlot]:
    """The slots of a parameter if they cover it and take less space when stored separately; else none."""
    parts = [other for other in slots if other.module is slot.module and other.parameter == slot.parameter]
    numbers = [part.about.shape[0] * part.about.shape[1] for part in parts]
    stored = sum(
        of_slot[id(part)].stored_numbers if id(part) in of_slot else size
        for part, size in zip(parts, numbers, strict=True)
    )
    return parts if sum(numbers) == slot.tensor().numel() and stored < sum(numbers) else []


def _add_layer(stored: _StoredModel, slot: WeightSlot, factors: Factors, path: str) -> StoredWeight:
    names = {name: f"{path}.{name}" for name in factors.tensors()}
    bias_name = f"{path}.bias"
    if isinstance(factors, LowRank):
        names = {"right": f"{path}.0.weight", "left": f"{path}.1.weight"}
        bias_name = f"{path}.1.bias"
    bias = getattr(slot.module, "bias", None)
    if bias is not None:
        stored.tensors[bias_name] = bias.detach()
    return _add(stored, slot, factors, path, names, bias_name if bias is not None else None, "factors")


def _add_part(stored: _StoredModel, slot: WeightSlot, factors: Factors | None, path: str) -> StoredWeight:
    kept = factors if factors is not None else Dense(slot.read().clone())
    names = {name: f"{slot.name}.{name}" for name in kept.tensors()}
    about = _add(stored, slot, kept, path, names, None, "matrix")
    return about.model_copy(update={"edited": factors is not None})


def _add(
    stored: _StoredModel,
    slot: WeightSlot,
    factors: Factors,
    path: str,
    names: dict[str, str],
    bias: str | None,
    runs_as: Literal["factors", "matrix"],
) -> StoredWeight:
    for field_name, tensor in factors.tensors().items():
        stored.tensors[names[field_name]] = tensor if tensor.is_floating_point() else tensor.to(torch.int32)
    return StoredWeight(
        weight=slot.name, module=path, parameter=slot.parameter, layer=slot.about.layer, role=slot.about.role,
        shape=slot.about.shape, factors=type(factors).__name__, rank=factors.rank,
        dtype=str(factors.dtype).removeprefix("torch."), tensors=names, settings=factors.settings(), bias=bias,
        runs_as=runs_as,
    )  # fmt: skip


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes one file, or shards with an index, as transformers does."""
    plan = split_torch_state_dict_into_shards(tensors, filename_pattern=TENSORS, max_shard_size=SHARD)
    for file, names in plan.filename_to_tensors.items():
        # cloned, because a view of a larger tensor would be refused or saved with all of it
        part = {name: tensors[name].detach().cpu().contiguous().clone() for name in names}
        save_file(part, str(folder / file), metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        name = TENSORS.format(suffix="") + ".index.json"
        (folder / name).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
