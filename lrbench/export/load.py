"""Reads a factored export: a transformers model whose edited layers run on their factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from lrbench.errors import InputError, ModelError
from lrbench.export.description import TENSORS, Description, StoredWeight
from lrbench.models.factored_layers import install
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import write_slot
from lrbench.models.source import refuse_kernels
from lrbench.reducers.factors import Factors
from lrbench.system.device import choose_device
from lrbench.system.text import one_line


def load(directory: str | Path, device: str | None = "cpu") -> PreTrainedModel:
    """Loads a model written by `lrbench export --format factored`, in evaluation mode.

    Layers stored as factors become `FactoredLinear`; parts of fused or stacked parameters are multiplied out.
    `transformers.AutoTokenizer.from_pretrained(directory)` gives its tokenizer.

    Args:
        directory: the export's folder.
        device: of the model; None: the GPU if available.

    Raises:
        InputError: the folder holds no factored export, or its files are inconsistent.
        ModelError: transformers cannot build the model, or the device is not available.
    """
    folder = Path(directory)
    description = Description.read(folder)
    target = choose_device(device)
    tensors = _read(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        refuse_kernels(str(folder), config)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    except ModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, ...
        raise ModelError(f"{folder}: transformers cannot build this model: {one_line(error)}") from error
    try:
        _fill(model, description, tensors)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{folder}: its files are inconsistent: {one_line(error)}") from error
    return model.to(target).eval()


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the export, memory-mapped."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob(TENSORS.format(suffix="*"))):
        try:
            with safe_open(str(file), framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a safetensors file ({one_line(error)})") from None
    if not tensors:
        raise InputError(f"{folder}: {TENSORS.format(suffix='')} is missing")
    return tensors


def _fill(model: PreTrainedModel, description: Description, tensors: dict[str, torch.Tensor]) -> None:
    slots = {slot.name: slot for slot in find_slots(model).slots}
    rest, multiplied = dict(tensors), []
    filled: set[str] = set()  # names in the model's state that factors fill
    for stored in description.weights:
        factors = _factors(stored, rest)
        if stored.runs_as == "factors":
            bias = rest.pop(stored.bias) if stored.bias is not None else None
            layer = factors.module(bias)
            install(model, stored.module, layer)
            filled.update(f"{stored.module}.{name}" for name in layer.state_dict())
        else:
            filled.add(f"{stored.module}.{stored.parameter}")
            multiplied.append((slots[stored.weight], factors))
    rest |= {name: rest[other] for name, other in description.ties.items()}
    result = model.load_state_dict(rest, strict=False, assign=True)
    missing = {name for name in result.missing_keys if name not in filled and not _is_copy(model, name, filled)}
    if result.unexpected_keys or missing:
        raise ValueError(f"{len(result.unexpected_keys)} tensors too many, {len(missing)} missing")
    for name, other in description.ties.items():  # restores parameters with two names
        _set(model, name, _get(model, other))
    for slot, factors in multiplied:
        if tuple(slot.about.shape) != factors.shape:
            raise ValueError(f"{slot.name} is {slot.about.shape}, its factors {factors.shape}")
        if slot.tensor().dtype != factors.dtype:
            _set(model, slot.name.partition("[")[0], nn.Parameter(slot.tensor().detach().to(factors.dtype)))
        wide = factors.to(dtype=torch.float64 if factors.dtype == torch.float64 else torch.float32)
        write_slot(slot, wide.dense())


def _factors(stored: StoredWeight, tensors: dict[str, torch.Tensor]) -> Factors:
    fields = {name: tensors.pop(place) for name, place in stored.tensors.items()}
    return Factors.made(stored.factors, fields, stored.settings)


def _is_copy(model: nn.Module, name: str, filled: set[str]) -> bool:
    """Whether a name is another path to a module that factors fill."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    others = (other for other, candidate in model.named_modules(remove_duplicate=False) if candidate is module)
    return any(f"{other}.{own}" in filled for other in others)


def _get(model: nn.Module, name: str) -> Any:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)


def _set(model: nn.Module, name: str, value: Any) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, value)
