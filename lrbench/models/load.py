"""Loads a suite's model, and hashes its content."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lrbench.errors import ModelError
from lrbench.models.adapter import find_adapter, merge_adapter
from lrbench.models.loading_errors import failing, quietly, refuse_gaps
from lrbench.models.slot_search import find_slots
from lrbench.models.slots import Inventory, count_parameters
from lrbench.models.source import Source, declared_causality, find, read_tokenizer, structure
from lrbench.suite.bundled import bundled
from lrbench.system.device import check_room, choose_device
from lrbench.system.text import silent

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec

__all__ = [
    "LoadedModel", "bundled", "config_hash", "first_non_finite", "has_chat_template", "load",
    "load_structure", "load_weights", "weight_hash",
]  # fmt: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer and slots.

    Attributes:
        label: its name in tables.
        source: bundled name, path or hub id, revision and further keys of the suite, for the manifest.
        weight_hash: SHA-256 of names, shapes, dtypes and bytes of all parameters and persistent buffers.
        device: the device of its inputs; with a device map, weights may be on others.
        config_hash: SHA-256 of its configuration and generation configuration.
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


def load(
    spec: ModelSpec,
    device: str | None = None,
    notify: Callable[[str], None] = silent,
    *,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Loads a model and its tokenizer, and finds its slots.

    Args:
        spec: the suite's model entry.
        device: from the command line; overrides the suite's device and device map.
        notify: called with one line before a slow step.
        trust_remote_code: from the command line; the suite must set it as well.

    Raises:
        ModelError: the name is unknown, the model cannot be loaded, it is no causal language model, memory does not
            suffice, the adapter does not fit, or the device does not exist.
    """
    source = find(spec, notify, trust_remote_code=trust_remote_code)
    device_map = spec.device_map if device is None else None
    target = choose_device(device or spec.device)
    parameters = count_parameters(structure(source, spec.attn_implementation))
    tokenizer = read_tokenizer(spec, source)
    model = load_weights(spec, source, parameters, target, device_map)
    _refuse_non_causal(source, model)
    return LoadedModel(
        label=spec.display_name,
        source=describe_source(spec, source, device_map),
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
    parameters: int,
    target: torch.device,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Loads a model without its tokenizer, with its adapter merged, in evaluation mode and without gradients.

    Args:
        spec: the suite's model entry.
        source: the model's source, as `find` returns it.
        parameters: the number of its parameters.
        target: its device, if there is no device map.
        device_map: as in the suite.

    Raises:
        ModelError: as `load`.
    """
    dtype = _dtype(spec, source)
    if getattr(source.config, "quantization_config", None) is None:  # else bytes are unknown
        devices = _devices(device_map, target)
        for group in ([torch.device("cpu")], devices) if source.random else (devices,):
            check_room(source.label, parameters, dtype or torch.bfloat16, group)
    with failing(source.where, source.revision), quietly():
        if source.random:
            model = _random_weights(spec, source, dtype)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.where, revision=source.pinned, trust_remote_code=source.trusted, dtype=dtype or "auto",
                attn_implementation=spec.attn_implementation, device_map=device_map, output_loading_info=True,
                use_safetensors=True,  # pickles can run code
            )  # fmt: skip
            model, loading_info = loaded
            refuse_gaps(source.label, loading_info)
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ModelError(f"{source.label}: holds an adapter beside the model; name it under 'adapter'")
        if device_map is None:
            model = model.to(target)  # type: ignore[arg-type]
    _refuse_offloaded(source, model)
    if spec.adapter is not None:
        model = merge_adapter(model, spec.adapter)
    model = model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def load_structure(
    spec: ModelSpec, notify: Callable[[str], None] = silent, *, trust_remote_code: bool = False
) -> Inventory:
    """The slots of a model on the meta device, without its weights, for planning.

    `notify` is called with one line before a slow step.

    Raises:
        ModelError: as `load`, except for faults of the weights.
    """
    source = find(spec, notify, trust_remote_code=trust_remote_code)
    if spec.adapter is not None:
        find_adapter(spec.adapter)
    return find_slots(structure(source, spec.attn_implementation))


def has_chat_template(spec: ModelSpec, *, trust_remote_code: bool = False) -> bool:
    """Whether a model's tokenizer has a chat template.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    tokenizer = read_tokenizer(spec, find(spec, trust_remote_code=trust_remote_code))
    return bool(getattr(tokenizer, "chat_template", None))


def weight_hash(model: torch.nn.Module) -> str:
    """SHA-256 (hex) over every parameter and persistent buffer: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for chunk in flat.split(1 << 28):  # 256 MiB at a time, which limits memory on the CPU
            digest.update(chunk.cpu().numpy())
    return digest.hexdigest()


def first_non_finite(model: torch.nn.Module) -> str | None:
    """A message with the first parameter that holds NaN or infinity, and the position; None if all are finite."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            place = (~parameter.isfinite()).nonzero()[0].tolist()
            return f"{name} holds {float(parameter[tuple(place)])} at {place}"
    return None


def config_hash(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of the configuration (position encodings, norms, windows, ...) and of generation settings."""
    names = ("_name_or_path", "architectures", "dtype", "transformers_version")
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in names}
    generation = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    generation.pop("transformers_version", None)
    return hashlib.sha256(json.dumps([config, generation], sort_keys=True, default=str).encode()).hexdigest()


def _dtype(spec: ModelSpec, source: Source) -> torch.dtype | None:
    """The dtype to load weights in; None if the checkpoint's configuration has none."""
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    stated = source.config.dtype or getattr(source.config.get_text_config(decoder=True), "dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    return stated if isinstance(stated, torch.dtype) else torch.float32 if source.random else None


def _devices(device_map: str | dict[str, Any] | None, target: torch.device) -> list[torch.device]:
    """The devices for the weights."""
    if isinstance(device_map, dict):
        if "disk" in device_map.values():
            raise ModelError("device_map: weights on 'disk' come and go, and cannot be edited; name devices")
        return [choose_device(f"cuda:{where}" if isinstance(where, int) else where) for where in device_map.values()]
    if device_map is None:
        return [target]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]


def _random_weights(spec: ModelSpec, source: Source, dtype: torch.dtype | None) -> PreTrainedModel:
    """A model with random weights from the architecture's initialization, drawn on the CPU: equal on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed or 0)
        return AutoModelForCausalLM.from_config(
            source.config, trust_remote_code=source.trusted, dtype=dtype, attn_implementation=spec.attn_implementation
        )


def _refuse_offloaded(source: Source, model: PreTrainedModel) -> None:
    """Refuses offloaded weights: accelerate loads them anew in each forward pass, so they cannot be edited."""
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:
        raise ModelError(
            f"{source.label}: does not fit its devices: {offloaded[0]} and {len(offloaded) - 1} more were "
            "offloaded and cannot be edited; choose a smaller dtype, or a device_map without 'disk'"
        )


def _refuse_non_causal(source: Source, model: PreTrainedModel) -> None:
    """Refuses a model whose output at a token depends on later tokens, such as an encoder.

    Models whose attention modules declare themselves causal pass; others are tested on two short texts.
    """
    if declared_causality(model) == {True}:
        return
    # Special tokens may be masked, so that no output depends on them.
    special = {value for key, value in model.config.to_dict().items() if key.endswith(("_id", "_index"))}
    *prefix, last, other = itertools.islice((token for token in itertools.count() if token not in special), 5)
    tokens = torch.tensor([[*prefix, last], [*prefix, other]], device=model.device)
    with torch.no_grad(), failing(source.where, source.revision):
        logits = model(tokens, use_cache=False).logits.float()
    early, late = (float(part.max()) for part in (logits[0] - logits[1]).abs().split([3, 1]))
    rounding = 2 * torch.finfo(model.dtype).eps * float(logits.abs().max())
    if early > 8 * rounding or early > max(rounding, 0.05 * late):
        raise ModelError(
            f"{source.label}: not a causal language model: the output of {type(model).__name__} at a token depends "
            "on later tokens (an encoder); name a model that was trained from left to right"
        )


def describe_source(spec: ModelSpec, source: Source, device_map: str | dict[str, Any] | None = None) -> dict[str, Any]:
    """The model's source for the manifest, without absent entries."""
    resolved = spec.resolved()
    description: dict[str, Any] = {
        "pretrained": resolved["name"] or resolved["pretrained"],
        "revision": source.revision,
    }
    optional = {
        "gguf": resolved["gguf"], "stored": source.gguf.stored if source.gguf is not None else None,
        "license": source.gguf.license if source.gguf is not None else None,
        "commit": source.commit, "config": resolved["config"], "seed": (spec.seed or 0) if source.random else None,
        "tokenizer": resolved["tokenizer"], "adapter": resolved["adapter"], "device_map": device_map,
        "attn_implementation": spec.attn_implementation, "trust_remote_code": source.trusted or None,
    }  # fmt: skip
    return description | {key: value for key, value in optional.items() if value is not None}
