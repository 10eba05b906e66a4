"""Low-rank updates as LoRA adapters in the layout of PEFT (Hu et al., LoRA, arXiv 2106.09685): W + B A."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lrbench.errors import ModelError
from lrbench.export.card import card
from lrbench.export.folder import new_folder
from lrbench.export.subject import Subject
from lrbench.models.factored import is_whole_layer
from lrbench.models.slots import WeightSlot

#: What may be left of a difference, over the norm of the weight: single precision's rounding.
LEFT = 1e-6


def write_lora(
    directory: Path, updates: Mapping[str, tuple[Tensor, Tensor]], base_model_name: str, *, transposed: bool = False
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` reads.

    Ranks may differ from layer to layer. The scaling is 1: what is added to each W is B A.

    Args:
        directory: there already.
        updates: weight name (`model.layers.3.mlp.down_proj.weight`) -> (A (r, in), B (out, r)).
        base_model_name: a hub id or a folder, which PEFT loads where it is not given a model.
        transposed: whether the layers store W transposed (Conv1D).

    Raises:
        ValueError: there are no updates, one is no weight of a layer, or A and B do not fit.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, (A, B) in updates.items():
        module = name.removesuffix(".weight")
        if module == name or A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise ValueError(f"{name}: not a layer's weight with A (r, in) and B (out, r)")
        ranks[module] = A.shape[0]
        tensors[f"base_model.model.{module}.lora_A.weight"] = A.detach().cpu().contiguous().clone()
        tensors[f"base_model.model.{module}.lora_B.weight"] = B.detach().cpu().contiguous().clone()
    if not ranks:
        raise ValueError("no updates to write")
    usual = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})


def write_adapter(subject: Subject, directory: Path) -> None:
    """Writes an edit as the LoRA adapter of its difference from the base, where that difference is of low rank.

    Args:
        directory: must not exist, or be empty.

    Raises:
        InputError: it is not, or cannot be written.
        ModelError: a weight is no layer of its own, or its difference is of so high a rank that the adapter would
            store more than the weight.
    """
    updates = {
        slot.name: _difference(slot, reduction.matrix())
        for slot, reduction in zip(subject.slots, subject.reductions, strict=True)
    }
    if len({isinstance(slot.module, Conv1D) for slot in subject.slots}) > 1:
        raise ModelError("an adapter holds either transposed layers or others, not both; export dense or factored")
    base = str(subject.base_folder) if subject.base_folder is not None else subject.base
    with new_folder(directory) as folder:
        write_lora(folder, updates, base, transposed=isinstance(subject.slots[0].module, Conv1D))
        if subject.tokenizer is not None:
            subject.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(subject, "lora"), encoding="utf-8")


def _difference(slot: WeightSlot, edited: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with B A = Ŵ - W to single precision, at the least r."""
    if not is_whole_layer(slot):
        raise ModelError(
            f"{slot.name}: not a linear layer of its own, so it takes no adapter; export dense or factored"
        )
    weight = slot.read().double()
    U, sigma, Vh = torch.linalg.svd(edited.double() - weight, full_matrices=False)
    left = sigma.square().flip(0).cumsum(0).flip(0).sqrt()  # what a cut before each value leaves
    rank = int((left > LEFT * torch.linalg.vector_norm(weight)).sum())
    m, n = weight.shape
    if rank * (m + n) >= m * n:
        raise ModelError(
            f"{slot.name}: the edit differs from the base by rank {rank} of {min(m, n)}, so an adapter would store "
            "more than the weight; lora is for low-rank updates: export dense or factored"
        )
    rank = max(rank, 1)
    root = sigma[:rank].sqrt()
    dtype = torch.float64 if slot.tensor().dtype == torch.float64 else torch.float32
    return (root[:, None] * Vh[:rank]).to(dtype), (U[:, :rank] * root).to(dtype)
