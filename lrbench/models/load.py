"""Loading a model as a suite names it, and knowing it by its content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from lrbench.errors import ModelError, did_you_mean, one_line
from lrbench.models.slots import Inventory, find_slots

if TYPE_CHECKING:
    from lrbench.suite import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer and its slots.

    Attributes:
        label: how tables name it.
        source: bundled name, path or hub id, with revision, for the manifest.
        weight_hash: SHA-256 of names, shapes, dtypes and bytes of all parameters and persistent buffers.
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


def bundled() -> dict[str, Path]:
    """Names and folders of the bundled models."""
    return {"almanac": Path(__file__).parent / "almanac" / "checkpoint"}


def load(spec: ModelSpec, device: str | None = None) -> LoadedModel:
    """Loads a model, its tokenizer and its slots.

    Args:
        spec: what the suite says.
        device: from the command line; it wins over the suite's.

    Raises:
        ModelError: the name is unknown, nothing loadable is there, the hub cannot be reached, or the device is not.
    """
    where, revision = _place(spec)
    target = choose_device(device or spec.device)
    try:
        with _quietly():
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
            model = AutoModelForCausalLM.from_pretrained(
                where, revision=revision, dtype="auto" if spec.dtype == "auto" else DTYPES[spec.dtype]
            )
        if not len(tokenizer):
            raise ValueError("there is no tokenizer; save the model's beside it")
        model = model.to(target).eval()  # type: ignore[arg-type]
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, ...
        raise ModelError(_cannot_load(where, error)) from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return LoadedModel(
        label=spec.display_name,
        source={"pretrained": str(spec.name or spec.pretrained), "revision": revision},
        model=model,
        tokenizer=tokenizer,
        inventory=find_slots(model),
        weight_hash=weight_hash(model),
        config_hash=config_hash(model),
        device=target,
        dtype=model.dtype,
    )


def load_structure(spec: ModelSpec) -> Inventory:
    """The slots of a model without its weights (on the meta device): enough to plan.

    Raises:
        ModelError: as `load`.
    """
    where, revision = _place(spec)
    try:
        with _quietly():
            config = AutoConfig.from_pretrained(where, revision=revision)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ModelError(_cannot_load(where, error)) from error
    return find_slots(model)


def has_chat_template(spec: ModelSpec) -> bool:
    """Whether a model's tokenizer can be asked in its chat template.

    Raises:
        ModelError: there is no tokenizer to be had.
    """
    where, revision = _place(spec)
    try:
        with _quietly():
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
    except Exception as error:  # as in `load`
        raise ModelError(_cannot_load(where, error)) from error
    return bool(getattr(tokenizer, "chat_template", None))


def choose_device(name: str | None) -> torch.device:
    """The device asked for, else the GPU where there is one, else the CPU. Raises ModelError where it is not there."""
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used here: {one_line(error)}") from error
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


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars (a run has its own) and the hub's retries (one line says how they ended)."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
        if shown:
            hf_logging.enable_progress_bar()


def _place(spec: ModelSpec) -> tuple[str, str | None]:
    if spec.name is not None:
        folders = bundled()
        if spec.name not in folders:
            raise ModelError(
                f"unknown bundled model {spec.name!r}{did_you_mean(spec.name, folders)} "
                f"(bundled: {', '.join(folders)}; for another model write `pretrained:`)"
            )
        return str(folders[spec.name]), None
    assert spec.pretrained is not None
    if Path(spec.pretrained).is_dir() and not (Path(spec.pretrained) / "config.json").is_file():
        raise ModelError(f"{spec.pretrained}: no config.json there; is it a checkpoint folder?")
    return spec.pretrained, spec.revision


def _cannot_load(where: str, error: Exception) -> str:
    text = one_line(error)
    if Path(where).exists():
        return f"{where}: cannot be loaded: {text}"
    if where.startswith((".", "/", "~")):
        return f"{where}: no such folder"
    return f"{where}: not a local folder, and the Hugging Face hub did not give it: {text}"
