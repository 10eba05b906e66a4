"""A model's slots from the cache folder, for models whose structure follows from files on this machine.

A structure that is in the cache is read without importing transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrbench.models.layouts import MatrixLayout, Rows
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reducers.base import Slot
from lrbench.suite.bundled import bundled
from lrbench.system.cache import cached, installation
from lrbench.system.text import silent

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec

#: Marks of configurations whose model depends on more: other files, or packages and devices of this machine.
_DEPENDS_ON_MORE = (b"auto_map", b"configuration_files", b"attn_implementation", b"quantization_config")
_LRBENCH = Path(__file__).parent.parent
#: The code that finds slots and their roles.
_CODE = (*_LRBENCH.glob("models/*.py"), _LRBENCH / "suite" / "roles.py", _LRBENCH / "reducers" / "base.py")


def cached_structure(
    spec: ModelSpec, notify: Callable[[str], None] = silent, *, trust_remote_code: bool = False
) -> Inventory:
    """As `load_structure`, which is called if a model's configuration, transformers, torch or lrbench have changed.

    Modules hold parameters on the meta device, and cannot run. A structure is not cached if the model is on the hub, or
    has an adapter or its own code.

    Raises:
        ModelError: as `load_structure`.
    """

    def load() -> Inventory:
        from lrbench.models.load import load_structure

        return load_structure(spec, notify, trust_remote_code=trust_remote_code)

    key = _key(spec)
    content = None if key is None else cached("structures", key[0], key[1], lambda: _described(load()))
    return load() if content is None else _restored(content)


def _key(spec: ModelSpec) -> tuple[str, bytes] | None:
    """The name of a model, and all that its structure depends on; None if that is not known."""
    if (
        spec.attn_implementation not in (None, "eager", "sdpa")
        or spec.adapter
        or spec.trust_remote_code
        or spec.revision
    ):
        return None
    source = None
    with contextlib.suppress(OSError):
        source = _source(spec)
    if source is None or any(mark in source for mark in _DEPENDS_ON_MORE):
        return None
    packages = ["transformers", "torch", *(["gguf"] if spec.gguf is not None else [])]
    installed = [installation(package) for package in packages]
    name, code = repr(spec.model_dump()), [path.read_bytes() for path in sorted(_CODE)]
    return None if None in installed else (name, repr((name, source, installed, code)).encode())


def _source(spec: ModelSpec) -> bytes | None:
    """The configuration, or the GGUF file's path, size and time; None if it is not on this machine, or not valid."""
    if spec.gguf is not None:
        file = Path(spec.pretrained or "", spec.gguf)
        if not file.is_file() or (spec.pretrained is not None and not Path(spec.pretrained).is_dir()):
            return None
        status = file.stat()
        return repr((str(file.resolve()), status.st_size, status.st_mtime_ns)).encode()
    if isinstance(spec.config, dict):
        return json.dumps(spec.config, sort_keys=True, default=repr).encode()
    named = spec.name or spec.config
    folder = Path(spec.pretrained) if spec.pretrained is not None else bundled().get(named, Path(named))
    if not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return None
    return (folder / "config.json").read_bytes()


def _described(inventory: Inventory) -> dict[str, Any] | None:
    """An inventory as JSON; None if a slot is no parameter of the model."""
    model = inventory.slots[0].model if inventory.slots else None
    if model is None:
        return None
    modules = {id(module): name for name, module in model.named_modules()}
    tensors: dict[int, tuple[int, list[int], str]] = {}
    parameters = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        dtype = str(parameter.dtype).removeprefix("torch.")
        parameters[name] = tensors.setdefault(id(parameter), (len(tensors), list(parameter.shape), dtype))[0]
    if any(slot.tensor_name not in parameters for slot in inventory.slots):
        return None
    return {
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "tensors": [[shape, dtype] for _, shape, dtype in tensors.values()],
        "parameters": parameters,
        "blocks": [modules[id(block)] for block in inventory.blocks],
        "slots": [
            {
                "about": dataclasses.asdict(slot.about), "module": modules[id(slot.module)],
                "parameter": slot.parameter, "layout": dataclasses.asdict(slot.layout), "part": slot.part,
                "users": slot.users,
            }
            for slot in inventory.slots
        ],
        "left_out": inventory.left_out,
        "unnamed": inventory.unnamed,
    }  # fmt: skip


def _restored(content: dict[str, Any]) -> Inventory:
    model = nn.Module()
    model.config = SimpleNamespace(model_type=content["model_type"])  # type: ignore[assignment]
    tensors = [
        nn.Parameter(torch.empty(shape, dtype=getattr(torch, dtype), device="meta"), requires_grad=False)
        for shape, dtype in content["tensors"]
    ]
    for name, index in content["parameters"].items():
        path, _, own = name.rpartition(".")
        _module(model, path).register_parameter(own, tensors[index])
    slots = []
    for slot in content["slots"]:
        about = Slot(**{**slot["about"], "shape": tuple(slot["about"]["shape"])})
        rows = slot["layout"]["rows"]
        layout = MatrixLayout(**{**slot["layout"], "rows": None if rows is None else Rows(**rows)})
        module = _module(model, slot["module"])
        slots.append(WeightSlot(about, module, slot["parameter"], layout, slot["part"], slot["users"], model))
    return Inventory(
        tuple(slots),
        tuple(_module(model, path) for path in content["blocks"]),
        tuple((name, reason) for name, reason in content["left_out"]),
        tuple((name, reason) for name, reason in content["unnamed"]),
    )


def _module(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, made with those above it if it is missing."""
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root
