"""Finds a model: bundled, in a folder, a GGUF file, on the hub, or random; errors become one line."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrbench.errors import ModelError
from lrbench.models.gguf_checkpoint import GgufCheckpoint, dense_checkpoint
from lrbench.models.loading_errors import failing, quietly
from lrbench.suite.bundled import bundled
from lrbench.system.text import did_you_mean, silent

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec


@dataclass(frozen=True)
class Source:
    """A model's location and configuration, before its weights are loaded.

    Attributes:
        where: folder, hub id or file; a description for a configuration in the suite.
        revision: the suite's revision.
        commit: the hub's commit of that revision, from which everything is read.
        random: whether weights are drawn instead of loaded.
        trusted: whether code in its repository may run.
        config: transformers' configuration.
        gguf: the checkpoint in `where`, if it was made of a GGUF file.
    """

    where: str
    revision: str | None
    commit: str | None
    random: bool
    trusted: bool
    config: PreTrainedConfig
    gguf: GgufCheckpoint | None = None

    @property
    def label(self) -> str:
        """The model's name in messages."""
        name = str(self.gguf.file) if self.gguf is not None else self.where
        return f"{name} at revision {self.revision}" if self.revision else name

    @property
    def pinned(self) -> str | None:
        """The commit to load from `where`, or the revision if the commit is unknown."""
        return None if self.gguf is not None else self.commit or self.revision


def find(spec: ModelSpec, notify: Callable[[str], None] = silent, *, trust_remote_code: bool) -> Source:
    """Finds a model and reads its configuration.

    Args:
        spec: the suite's model entry.
        notify: called with one line before a GGUF file is dequantized.
        trust_remote_code: whether the command line allows code from repositories; the suite must allow it as well.

    Raises:
        ModelError: the name is unknown, the model is missing or cannot be downloaded, it is no causal language model,
            its configuration is invalid, or it needs code that is not trusted; or its GGUF file cannot be converted.
    """
    if spec.gguf is not None:
        return _find_gguf(spec, notify)
    where, revision = _place(spec)
    if spec.trust_remote_code and not trust_remote_code:
        raise ModelError(
            f"{where}: 'trust_remote_code: true' lets the model's repository run its own code on this machine; "
            "that also needs --trust-remote-code on the command line"
        )
    trusted = bool(spec.trust_remote_code)
    with failing(where, revision), quietly():
        if isinstance(spec.config, dict):
            config = _configured(spec.config)
        else:
            config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trusted)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{where}: {config.model_type} is an encoder with a decoder, not a causal language model; "
            "only left-to-right language models are scored"
        )
    return Source(where, revision, _commit(where, revision), spec.config is not None, trusted, config)


def structure(source: Source, attn_implementation: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device.

    Raises:
        ModelError: transformers has no causal language model of that architecture, or not with that attention; or the
            configuration makes the model an encoder.
    """
    refuse_kernels(source.where, source.config, attn_implementation)
    with failing(source.where, source.revision), quietly(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            source.config, trust_remote_code=source.trusted, attn_implementation=attn_implementation
        )
    _refuse_encoder(source, model)
    return model


def refuse_kernels(where: str, config: PreTrainedConfig, attn_implementation: str | None = None) -> None:
    """Refuses attention kernels that transformers would download, since they are code.

    transformers also downloads flash attention if that is not installed but the kernels package is.

    Args:
        where: the model's location, for messages.
        config: its configuration, which applies if `attn_implementation` is None.
        attn_implementation: as in the suite.

    Raises:
        ModelError: the attention is a kernel of the hub, is not installed, or is no name.
    """
    requested = attn_implementation or getattr(config, "_attn_implementation", None) or ""
    if not isinstance(requested, str):
        raise ModelError(f"{where}: its configuration has an attn_implementation that is no name; set sdpa or eager")
    named = requested.removeprefix("paged|")
    if "/" in named:
        raise ModelError(
            f"{where}: its configuration needs the kernel {requested} of the hub, which is untrusted code; "
            "set an 'attn_implementation' of transformers' own (sdpa, eager)"
        )
    number = named.removeprefix("flash_attention_")
    installed = getattr(transformers.utils, f"is_flash_attn_{number}_available", None) if number != named else None
    if installed is not None and not installed():
        raise ModelError(
            f"{where}: {named} is not installed, or has no GPU; set another 'attn_implementation' (sdpa, eager)"
        )


def read_tokenizer(spec: ModelSpec, source: Source) -> PreTrainedTokenizerBase:
    """The suite's tokenizer, else the model's own; for random weights, else the bundled model's.

    Raises:
        ModelError: there is none, or the model's vocabulary is too small for it.
    """
    if source.gguf is not None and source.gguf.no_tokenizer is not None and spec.tokenizer is None:
        raise ModelError(
            f"{source.label}: its tokenizer cannot be read: {source.gguf.no_tokenizer}; name another under 'tokenizer'"
        )
    where, revision = (str(bundled()["almanac"]), None) if source.random else (source.where, source.pinned)
    if spec.tokenizer is not None:
        where, revision = str(bundled().get(spec.tokenizer, spec.tokenizer)), None
    trusted = source.trusted and spec.tokenizer is None  # trust applies to the model's repository only
    tokenizer = load_tokenizer(where, revision, trusted=trusted)
    vocabulary = getattr(source.config.get_text_config(decoder=True), "vocab_size", None)
    own = not source.random and spec.tokenizer is None  # may have unused tokens
    if not own and vocabulary is not None and len(tokenizer) > vocabulary:
        raise ModelError(
            f"{source.label}: its vocabulary of {vocabulary} is too small for the {len(tokenizer)} tokens of "
            f"{Path(where).parent.name if source.random and not spec.tokenizer else where}; "
            "give a larger vocab_size, or another 'tokenizer'"
        )
    return tokenizer


def load_tokenizer(where: str, revision: str | None = None, *, trusted: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or repository. Raises ModelError if there is none, or it cannot be loaded."""
    with failing(where, revision), quietly():
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trusted)
    if not len(tokenizer):
        raise ModelError(f"{where}: cannot be loaded: it has no tokenizer; save one in the same folder")
    return tokenizer


def declared_causality(model: PreTrainedModel) -> set[bool]:
    """The values of `is_causal` in a model's modules; empty if none has it."""
    return {causal for module in model.modules() if isinstance(causal := getattr(module, "is_causal", None), bool)}


def _refuse_encoder(source: Source, model: PreTrainedModel) -> None:
    """Refuses an encoder, of which transformers makes a language model with only a warning.

    Architectures that can be both have `is_decoder` and `add_cross_attention`; without the latter, `is_decoder` may be
    an unused remnant in a configuration.
    """
    config = source.config
    either = isinstance(getattr(config, "add_cross_attention", None), bool)
    if not either or getattr(config, "is_decoder", None) is not False or True in declared_causality(model):
        return
    if source.random:
        remedy = "for a causal model of this architecture write `is_decoder: true` in its configuration"
    else:
        remedy = "name a checkpoint that was trained from left to right, which has `is_decoder: true`"
    raise ModelError(
        f"{source.label}: not a causal language model: {config.model_type} with `is_decoder: false` is an encoder, "
        f"whose output at a token depends on later tokens; {remedy}"
    )


def _place(spec: ModelSpec) -> tuple[str, str | None]:
    folders = bundled()
    if spec.config is not None:
        if isinstance(spec.config, dict):
            return f"a random {spec.config.get('model_type', 'model')}", None
        return str(folders.get(spec.config, spec.config)), None
    if spec.name is not None:
        if spec.name not in folders:
            raise ModelError(
                f"unknown bundled model {spec.name!r}{did_you_mean(spec.name, folders)} "
                f"(bundled: {', '.join(folders)}; for another model write `pretrained:`)"
            )
        return str(folders[spec.name]), None
    assert spec.pretrained is not None
    folder = Path(spec.pretrained)
    if folder.is_file():
        raise ModelError(f"{folder}: a file; 'pretrained' takes a checkpoint folder, and 'gguf' a GGUF file")
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: holds a PEFT adapter; name its base under 'pretrained', and this folder under 'adapter'"
            )
        if not (folder / "config.json").is_file():
            names = sorted(file.name for file in folder.glob("*.gguf"))
            hint = f"; for a GGUF file in it, write `gguf: {names[0]}` too" if names else "; is it a checkpoint folder?"
            raise ModelError(f"{folder}: has no config.json{hint}")
        if spec.revision is not None:
            raise ModelError(f"{folder}: a folder has no revisions; leave 'revision' out")
    return spec.pretrained, spec.revision


def _find_gguf(spec: ModelSpec, notify: Callable[[str], None]) -> Source:
    """The dense checkpoint of a GGUF file: a file by itself, in a folder, or in a repository of the hub."""
    assert spec.gguf is not None
    commit = None
    if spec.pretrained is None or Path(spec.pretrained).is_dir():
        file = Path(spec.pretrained or "", spec.gguf)
        if not file.is_file():
            raise ModelError(f"{file}: no such GGUF file")
        if spec.revision is not None:
            raise ModelError(f"{file}: a local file has no revisions; leave 'revision' out")
    else:
        with failing(spec.pretrained, spec.revision), quietly():
            file = Path(hf_hub_download(spec.pretrained, spec.gguf, revision=spec.revision))
        commit = file.parents[len(Path(spec.gguf).parts) - 1].name
    dtype = getattr(torch, "float32" if spec.dtype == "auto" else spec.dtype)
    with failing(str(file)), quietly():
        gguf = dense_checkpoint(file, dtype, notify)
        config = AutoConfig.from_pretrained(gguf.folder)
    return Source(str(gguf.folder), spec.revision, commit, random=False, trusted=False, config=config, gguf=gguf)


def _commit(where: str, revision: str | None) -> str | None:
    """The hub commit of the configuration just read; None if it is not from the hub."""
    if Path(where).exists() or where.startswith("a random "):
        return None
    cached = try_to_load_from_cache(where, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def _configured(settings: dict[str, Any]) -> PreTrainedConfig:
    """The configuration with these settings. Raises ModelError: the model type or a setting is unknown."""
    settings = dict(settings)
    kind = settings.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        hint = did_you_mean(str(kind), CONFIG_MAPPING) if kind is not None else "; such as 'llama'"
        fault = f"unknown model_type {kind!r}" if kind is not None else "'config' needs a model_type"
        raise ModelError(f"{fault}{hint}")
    config = AutoConfig.for_model(kind, **settings)
    known = [key for key in AutoConfig.for_model(kind).to_dict() if not key.startswith("_")]
    for key in settings:
        # transformers keeps unknown settings. Some are older names with an effect; one without effect is a typo.
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8) if key not in known else []
        if near and key not in config.attribute_map:
            without = AutoConfig.for_model(kind, **{other: settings[other] for other in settings if other != key})
            if {**without.to_dict(), key: settings[key]} == config.to_dict():
                raise ModelError(f"a random {kind}: its configuration has no {key!r}; did you mean {near[0]!r}?")
    return config
