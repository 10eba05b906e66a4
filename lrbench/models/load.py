"""Loading a model as a suite names it, and knowing it by its content."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import ModelError
from lrbench.models.adapter import find_adapter, merge_adapter
from lrbench.models.slots import Inventory, count_numbers, find_slots
from lrbench.models.source import Source, failing, find, quietly, read_tokenizer, says_causal, structure
from lrbench.suite.bundled import bundled
from lrbench.system.device import check_room
from lrbench.system.text import one_line

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec

__all__ = [
    "LoadedModel", "bundled", "choose_device", "config_hash", "first_non_finite", "has_chat_template", "load",
    "load_structure", "load_weights", "weight_hash",
]  # fmt: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer and its slots.

    Attributes:
        label: how tables name it.
        source: bundled name, path or hub id, with revision, and what else the suite says of it, for the manifest.
        weight_hash: SHA-256 of names, shapes, dtypes and bytes of all parameters and persistent buffers.
        device: where its input goes; with a device map, its weights may be on others.
        config_hash: SHA-256 of what else makes the model compute what it does: its configuration, and its generation's.
    """

    label: str
    source: dict[str, Any]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    inventory: Inventory
    weight_hash: str
    config_hash: str
    device: torch.device
    dtype: torch.dtype


def load(spec: ModelSpec, device: str | None = None, *, trust_remote_code: bool = False) -> LoadedModel:
    """Loads a model, its tokenizer and its slots.

    Args:
        spec: what the suite says.
        device: from the command line; it wins over the suite's, and over its device map.
        trust_remote_code: from the command line; it needs the suite's word as well.

    Raises:
        ModelError: the name is unknown, nothing loadable is there, the hub does not give it, it is no causal language
            model, memory will not do, the adapter does not fit, or the device is not there.
    """
    source = find(spec, trust_remote_code=trust_remote_code)
    device_map = spec.device_map if device is None else None
    target = choose_device(device or spec.device)
    numbers = count_numbers(structure(source, spec.attn_implementation))
    tokenizer = read_tokenizer(spec, source)
    model = load_weights(spec, source, numbers, target, device_map)
    _refuse_foresight(source, model)
    return LoadedModel(
        label=spec.display_name,
        source=described(spec, source, device_map),
        model=model,
        tokenizer=tokenizer,
        inventory=find_slots(model),
        weight_hash=weight_hash(model),
        config_hash=config_hash(model),
        device=model.device,
        dtype=model.dtype,
    )


def load_weights(
    spec: ModelSpec,
    source: Source,
    numbers: int,
    target: torch.device,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A model without its tokenizer, its adapter merged; in evaluation mode, without gradients.

    Args:
        numbers: of its parameters.
        target: where it goes, without a device map.

    Raises:
        ModelError: as `load`.
    """
    dtype = _dtype(spec, source)
    if getattr(source.config, "quantization_config", None) is None:  # else numbers do not tell the bytes
        devices = _devices(device_map, target)
        for together in ([torch.device("cpu")], devices) if source.random else (devices,):
            check_room(source.label, numbers, dtype or torch.bfloat16, together)
    with failing(source.where, source.revision), quietly():
        if source.random:
            model = _drawn(spec, source, dtype)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.where, revision=source.pinned, trust_remote_code=source.trusted, dtype=dtype or "auto",
                attn_implementation=spec.attn_implementation, device_map=device_map, output_loading_info=True,
                use_safetensors=True,  # a pickle is a program
            )  # fmt: skip
            model, found = loaded
            _refuse_gaps(source, found)
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ModelError(f"{source.label}: holds an adapter beside the model; give it under 'adapter'")
        if device_map is None:
            model = model.to(target)  # type: ignore[arg-type]
    _refuse_offloaded(source, model)
    if spec.adapter is not None:
        model = merge_adapter(model, spec.adapter)
    model = model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def load_structure(spec: ModelSpec, *, trust_remote_code: bool = False) -> Inventory:
    """The slots of a model without its weights (on the meta device): enough to plan.

    Raises:
        ModelError: as `load`, as far as it can be known.
    """
    source = find(spec, trust_remote_code=trust_remote_code)
    if spec.adapter is not None:
        find_adapter(spec.adapter)
    return find_slots(structure(source, spec.attn_implementation))


def has_chat_template(spec: ModelSpec, *, trust_remote_code: bool = False) -> bool:
    """Whether a model's tokenizer can be asked in its chat template.

    Raises:
        ModelError: there is no tokenizer to be had.
    """
    tokenizer = read_tokenizer(spec, find(spec, trust_remote_code=trust_remote_code))
    return bool(getattr(tokenizer, "chat_template", None))


def choose_device(name: str | None) -> torch.device:
    """The device asked for, else the GPU where there is one, else the CPU. Raises ModelError where it is not there."""
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used here: {one_line(error)}; cpu always can") from error
    return device


def weight_hash(model: torch.nn.Module) -> str:
    """SHA-256 (hex) over every parameter and persistent buffer: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for chunk in flat.split(1 << 28):  # a quarter of a GiB at a time, so that no second model is made on the CPU
            digest.update(chunk.cpu().numpy())
    return digest.hexdigest()


def first_non_finite(model: torch.nn.Module) -> str | None:
    """Which parameter holds the first NaN or infinity, and where, in words; None where all numbers are finite."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            place = (~parameter.isfinite()).nonzero()[0].tolist()
            return f"{name} holds {float(parameter[tuple(place)])} at {place}"
    return None


def config_hash(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of the configuration: position encodings, norms, windows, scalings, and how text is generated."""
    names = ("_name_or_path", "architectures", "dtype", "transformers_version")
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in names}
    generation = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    generation.pop("transformers_version", None)
    return hashlib.sha256(json.dumps([config, generation], sort_keys=True, default=str).encode()).hexdigest()


def _dtype(spec: ModelSpec, source: Source) -> torch.dtype | None:
    """What the weights are loaded as; None where the checkpoint's configuration does not say."""
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    stated = source.config.dtype or getattr(source.config.get_text_config(decoder=True), "dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    return stated if isinstance(stated, torch.dtype) else torch.float32 if source.random else None


def _devices(device_map: str | dict[str, Any] | None, target: torch.device) -> list[torch.device]:
    """Where the weights may go."""
    if isinstance(device_map, dict):
        if "disk" in device_map.values():
            raise ModelError("device_map: weights on 'disk' come and go, and cannot be edited; name devices")
        return [choose_device(f"cuda:{where}" if isinstance(where, int) else where) for where in device_map.values()]
    if device_map is None:
        return [target]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]


def _drawn(spec: ModelSpec, source: Source, dtype: torch.dtype | None) -> PreTrainedModel:
    """Random weights by the architecture's own rule; drawn on the CPU, so that a seed means the same everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed or 0)
        return AutoModelForCausalLM.from_config(
            source.config, trust_remote_code=source.trusted, dtype=dtype, attn_implementation=spec.attn_implementation
        )


def _refuse_gaps(source: Source, found: dict[str, Any]) -> None:
    """transformers fills what a checkpoint lacks with random numbers, and only warns."""
    missing, wrong = sorted(found["missing_keys"]), sorted(str(key[0]) for key in found["mismatched_keys"])
    for names, what in ((missing, "has no"), (wrong, "has another shape of")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{source.label}: the checkpoint {what} {names[0]}{more}; is it one of a causal language model?"
            )


def _refuse_offloaded(source: Source, model: PreTrainedModel) -> None:
    """Weights that accelerate has put aside come and go with each forward pass, and cannot be edited."""
    aside = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if aside:
        raise ModelError(
            f"{source.label}: its devices do not hold it: {aside[0]} and {len(aside) - 1} more were put aside "
            "(offloaded), where they cannot be edited; choose a smaller dtype, or a device_map without 'disk'"
        )


def _refuse_foresight(source: Source, model: PreTrainedModel) -> None:
    """An encoder may pass for a language model; its answers at a token change with the tokens after it.

    A model whose attention says of itself that it is causal is believed; any other is tried on two short texts.
    """
    if says_causal(model) == {True}:
        return
    # A token that pads or ends a text may be masked, and then nothing depends on it.
    special = {value for key, value in model.config.to_dict().items() if key.endswith(("_id", "_index"))}
    *prefix, last, other = itertools.islice((token for token in itertools.count() if token not in special), 5)
    tokens = torch.tensor([[*prefix, last], [*prefix, other]], device=model.device)
    with torch.no_grad(), failing(source.where, source.revision):
        logits = model(tokens, use_cache=False).logits.float()
    early, late = (float(part.max()) for part in (logits[0] - logits[1]).abs().split([3, 1]))
    rounding = 2 * torch.finfo(model.dtype).eps * float(logits.abs().max())
    if early > 8 * rounding or early > max(rounding, 0.05 * late):
        raise ModelError(
            f"{source.label}: not a causal language model: what {type(model).__name__} says at a token depends on "
            "the tokens after it (an encoder); name a model that was trained from left to right"
        )


def described(spec: ModelSpec, source: Source, device_map: str | dict[str, Any] | None = None) -> dict[str, Any]:
    """What the manifest says of where a model came from; what is not there is left out."""
    given = spec.resolved()
    described: dict[str, Any] = {"pretrained": given["name"] or given["pretrained"], "revision": source.revision}
    optional = {
        "commit": source.commit, "config": given["config"], "seed": (spec.seed or 0) if source.random else None,
        "tokenizer": given["tokenizer"], "adapter": given["adapter"], "device_map": device_map,
        "attn_implementation": spec.attn_implementation, "trust_remote_code": source.trusted or None,
    }  # fmt: skip
    return described | {key: value for key, value in optional.items() if value is not None}
