"""The suite's `model` and `delta`: a model, and the base of a fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)

from lrbench.suite.bundled import bundled
from lrbench.suite.fields import Count, Spec, Text
from lrbench.suite.messages import misplaced
from lrbench.suite.yaml_reader import describe
from lrbench.system.text import did_you_mean


def _configuration(value: Any) -> Any:
    if isinstance(value, dict):
        if not isinstance(value.get("model_type"), str):
            raise misplaced("a 'config' needs a model_type: {model_type: llama, hidden_size: 64, ...}")
        if not all(isinstance(key, str) for key in value):
            raise misplaced("the keys of a 'config' are strings")
        return value
    if value is not None and (not isinstance(value, str) or not value):
        raise misplaced(f"'config' takes settings, or the name of a model or file with settings, not {describe(value)}")
    return value


def _device_map(value: Any) -> Any:
    if value is None or value in ("auto", "balanced"):
        return value
    if isinstance(value, str):
        hint = did_you_mean(value, ("auto", "balanced")) or "; known: auto, balanced, or a mapping {module: device}"
        raise misplaced(f"unknown device_map {value!r}{hint}")
    if not isinstance(value, dict) or not value:
        raise misplaced(f"'device_map' takes auto, balanced or a mapping of modules to devices, not {describe(value)}")
    for module, device in value.items():
        if not isinstance(module, str) or isinstance(device, bool) or not isinstance(device, int | str) or device == "":
            raise misplaced(
                f"'device_map' maps modules to devices, as in {{model.layers.0: 1}}, not {module!r} to {device!r}"
            )
    return value


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSpec(Spec):
    """One model: bundled (`name`), any other (`pretrained`, `gguf`), or with random weights (`config`).

    Attributes:
        name: a bundled model.
        pretrained: a folder (made absolute if relative to the suite) or a hub id.
        gguf: a GGUF file to dequantize: its name in `pretrained`, or a path (made absolute likewise).
        revision: of the hub id.
        config: an architecture for random weights: settings with `model_type`, or the file, folder, hub id or bundled
            model to read them from.
        seed: of the random weights; None for 0.
        tokenizer: a folder, hub id or bundled model; None for the model's own (random weights: the bundled one's).
        adapter: a PEFT adapter (folder or hub id) to merge into the weights.
        dtype: of the loaded weights; `auto` is that of the checkpoint, and float32 for a GGUF file.
        device: None for the engine's choice.
        device_map: for models larger than one GPU: `auto`, `balanced`, or module -> device; instead of `device`.
        attn_implementation: of transformers; None for the model's default.
        trust_remote_code: whether the model's repository may run its own code; the command line must allow it too.
        chat_template: whether the tokenizer's chat template is applied to prompts.
        max_length: in tokens; None for the model's own.
        add_bos: whether to prepend a BOS token; None for the tokenizer's default.
        label: the model's name in tables; None for the name or path.
    """

    name: Text | None = None
    pretrained: Text | None = None
    gguf: Text | None = None
    revision: Text | None = None
    config: Annotated[Any, BeforeValidator(_configuration)] = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    tokenizer: Text | None = None
    adapter: Text | None = None
    dtype: Dtype = "auto"
    device: Text | None = None
    device_map: Annotated[Any, BeforeValidator(_device_map)] = None
    attn_implementation: Text | None = None
    trust_remote_code: StrictBool | None = None
    chat_template: StrictBool = False
    max_length: Count | None = None
    add_bos: StrictBool | None = None
    label: Text | None = None
    _as_written: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if [self.name, self.pretrained or self.gguf, self.config].count(None) != 2:
            raise misplaced(
                "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id), or 'config' for "
                "random weights, or 'gguf' (a file)"
            )
        if self.revision is not None and self.pretrained is None:
            kind = "bundled model" if self.name else "random model" if self.config else "GGUF file without 'pretrained'"
            raise misplaced(f"a {kind} has no 'revision'", "revision")
        if self.trust_remote_code and self.gguf is not None:
            raise misplaced("a GGUF file has no code; leave 'trust_remote_code' out", "trust_remote_code", key=True)
        if self.seed is not None and self.config is None:
            raise misplaced("a model's 'seed' draws random weights; it goes with 'config'", "seed")
        if self.attn_implementation is not None and "/" in self.attn_implementation:
            raise misplaced(
                "a kernel of the hub is untrusted code; name an implementation of transformers' own (sdpa, eager)",
                "attn_implementation",
            )
        if self.device is not None and self.device_map is not None:
            raise misplaced("a model has 'device' or 'device_map', not both", "device_map", key=True)
        if self.device_map is not None and self.config is not None:
            raise misplaced(
                "random weights go to one 'device'; 'device_map' is for checkpoints", "device_map", key=True
            )
        return self

    @property
    def display_name(self) -> str:
        """The label, else the model's name in the suite."""
        if isinstance(self.config, dict):
            return self.label or f"random {self.config['model_type']}"
        random = f"random {self._as_written.get('config', self.config)}" if self.config is not None else ""
        gguf = Path(self.gguf).name.removesuffix(".gguf") if self.gguf is not None else None
        return self.label or self.name or gguf or self._as_written.get("pretrained", self.pretrained) or random

    def resolved(self) -> dict[str, Any]:
        """Plain data, with paths as written in the suite."""
        return (
            self.model_dump()
            | {"label": self.display_name, "trust_remote_code": self.trust_remote_code or None}
            | self._as_written
        )


class DeltaSpec(Spec):
    """Reduces updates: the differences between fine-tuned weights and those of `base`.

    Attributes:
        base: the model before fine-tuning: a model's mapping, or just a bundled name, path or hub id. Only its weights
            are read, in the dtype of the fine-tuned model.
    """

    base: ModelSpec

    @field_validator("base", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"name" if value in bundled() else "gguf" if value.endswith(".gguf") else "pretrained": value}

    @model_validator(mode="after")
    def _weights_alone(self) -> DeltaSpec:
        defaults = {name: field.default for name, field in ModelSpec.model_fields.items()}
        for key in _EXECUTION_KEYS:
            if getattr(self.base, key) != defaults[key]:
                raise misplaced(
                    f"{key!r} does not go with a base, which is never run; leave it out", "base", key, key=True
                )
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain data, with paths as written in the suite."""
        return {"base": {key: value for key, value in self.base.resolved().items() if key not in _EXECUTION_KEYS}}


#: Keys of a model that only matter when it runs, which a base does not.
_EXECUTION_KEYS = (
    *("tokenizer", "dtype", "device", "device_map", "attn_implementation", "chat_template", "max_length", "add_bos"),
)
