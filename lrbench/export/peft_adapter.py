"""Writes low-rank updates W + B A as LoRA adapters (Hu et al., arXiv 2106.09685) for PEFT."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrbench.errors import ModelError
from lrbench.export.card import card
from lrbench.export.exported_model import ExportedModel
from lrbench.export.folder import new_folder
from lrbench.models.base_model import Base
from lrbench.models.factored_layers import is_whole_layer
from lrbench.models.slots import WeightSlot
from lrbench.reducers.factors import Factors, LowRank

#: The largest residual of an adapter over the norm of the weight: rounding in single precision.
TOLERANCE = 1e-6


def write_lora(
    directory: Path,
    updates: Mapping[str, tuple[Tensor, Tensor]],
    base_model_name: str,
    *,
    transposed: bool = False,
    saved: Mapping[str, nn.Module] | None = None,
    revision: str | None = None,
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` for `peft.PeftModel.from_pretrained`.

    Ranks may differ from layer to layer. The scaling is 1, so that B A is added to each W.

    Args:
        directory: must exist.
        updates: weight name (`model.layers.3.mlp.down_proj.weight`) -> (A (r, in), B (out, r)).
        base_model_name: the hub id or folder that PEFT loads by default.
        transposed: whether the layers store W transposed (Conv1D).
        saved: path -> module without children that replaces the base's (`modules_to_save`).
        revision: of the base.

    Raises:
        ValueError: there are no updates, a name is no layer's weight, or the shapes of A and B disagree.
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
    for path, saved_module in (saved or {}).items():
        for name, tensor in saved_module.state_dict().items():
            tensors[f"base_model.model.{path}.{name}"] = tensor.detach().cpu().contiguous().clone()
    largest = max(ranks.values())
    smaller = {module: rank for module, rank in ranks.items() if rank != largest}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
        **({"modules_to_save": sorted(saved)} if saved else {}),
        **({"revision": revision} if revision else {}),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})


def write_adapter(exported: ExportedModel, directory: Path) -> None:
    """Writes the difference between the edited model and the base as a LoRA adapter, if it has low rank.

    Reduced updates are written as their factors, for their own base. Modules that were fine-tuned without being edited
    are saved whole, so that base and adapter together give the edited model.

    Args:
        directory: must not exist, or be empty.

    Raises:
        InputError: the directory is occupied or cannot be written.
        ModelError: a weight is no layer of its own, its difference has too high a rank to save space, or an adapter
            cannot express the base or another fine-tuned module.
    """
    delta = exported.delta
    updates = {
        slot.name: _of_update(slot, reduction.factors) if delta is not None else _difference(slot, reduction.matrix())
        for slot, reduction in zip(exported.slots, exported.reductions, strict=True)
    }
    if len({isinstance(slot.module, Conv1D) for slot in exported.slots}) > 1:
        raise ModelError("an adapter holds either transposed layers or others, not both; export dense or factored")
    name, base_folder = (exported.base, exported.base_folder) if delta is None else (delta.name, delta.folder)
    saved = {} if delta is None else _fine_tuned_beside(exported, delta.base)
    transposed = isinstance(exported.slots[0].module, Conv1D)
    revision = None if delta is None or base_folder is not None else delta.revision
    with new_folder(directory) as folder:
        write_lora(
            folder, updates, str(base_folder) if base_folder is not None else name, transposed=transposed, saved=saved,
            revision=revision,
        )  # fmt: skip
        if exported.tokenizer is not None:
            exported.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(exported, "lora"), encoding="utf-8")


def _of_update(slot: WeightSlot, factors: Factors) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of an update: its factors if low-rank, else computed to single precision."""
    _refuse_part(slot)
    if isinstance(factors, LowRank):
        return factors.right, factors.left
    update = factors.to(dtype=torch.float64).dense()
    return _truncated(slot, update, update)


def _difference(slot: WeightSlot, edited: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with B A = Ŵ - W to single precision, r being the least possible."""
    _refuse_part(slot)
    weight = slot.read().double()
    return _truncated(slot, edited.double() - weight, weight)


def _refuse_part(slot: WeightSlot) -> None:
    if not is_whole_layer(slot):
        raise ModelError(
            f"{slot.name}: not a linear layer of its own, so an adapter cannot change it; export dense or factored"
        )


def _fine_tuned_beside(exported: ExportedModel, base: Base) -> dict[str, nn.Module]:
    """Path -> module that was fine-tuned without being edited. Raises ModelError if an adapter cannot hold one."""
    modules = dict(exported.model.named_modules())
    places = Counter(id(tensor) for _, tensor in exported.model.named_parameters(remove_duplicate=False))
    edited = {slot.module_name for slot in exported.slots}
    fine_tuned = {}
    for piece in base.not_replaced(exported.slots):
        path, _, own = piece.parameter.rpartition(".")
        module = modules[path]
        if path in edited or any(True for _ in module.children()) or places[id(getattr(module, own))] > 1:
            raise ModelError(f"{piece.parameter}: was fine-tuned too, and an adapter cannot hold it; export dense")
        fine_tuned[path] = module
    return fine_tuned


def _truncated(slot: WeightSlot, difference: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with B A = `difference` (out, in), up to `TOLERANCE` times the norm of `reference`."""
    U, sigma, Vh = torch.linalg.svd(difference, full_matrices=False)
    residuals = sigma.square().flip(0).cumsum(0).flip(0).sqrt()  # of a truncation before each value
    rank = int((residuals > TOLERANCE * torch.linalg.vector_norm(reference)).sum())
    m, n = difference.shape
    if rank * (m + n) >= m * n:
        raise ModelError(
            f"{slot.name}: the edit differs from the base by rank {rank} of {min(m, n)}, so an adapter would store "
            "more than the weight; lora is for low-rank updates: export dense or factored"
        )
    rank = max(rank, 1)
    root = sigma[:rank].sqrt()
    dtype = torch.float64 if slot.tensor().dtype == torch.float64 else torch.float32
    return (root[:, None] * Vh[:rank]).to(dtype), (U[:, :rank] * root).to(dtype)
