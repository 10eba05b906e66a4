"""Where a model comes from: a bundled one, a folder, the hub, or a configuration alone; and why it cannot be had."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from lrbench.errors import ModelError
from lrbench.suite.bundled import bundled
from lrbench.system.text import did_you_mean, one_line

if TYPE_CHECKING:
    from lrbench.suite.load import ModelSpec


@dataclass(frozen=True)
class Source:
    """A model before its weights.

    Attributes:
        where: folder, hub id or file; for a configuration given in the suite, words for it.
        revision: as the suite gives it.
        commit: where the hub's revision led; what is read after the configuration is read from there.
        random: there are no weights to load; they are drawn.
        trusted: its repository's own code may run.
        config: of transformers.
    """

    where: str
    revision: str | None
    commit: str | None
    random: bool
    trusted: bool
    config: PreTrainedConfig

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.where} at revision {self.revision}" if self.revision else self.where

    @property
    def pinned(self) -> str | None:
        """The commit, or the revision where that is not known."""
        return self.commit or self.revision


def find(spec: ModelSpec, *, trust_remote_code: bool) -> Source:
    """Finds a model and reads its configuration.

    Args:
        spec: what the suite says.
        trust_remote_code: whether the command line lets repositories run their own code; the suite must as well.

    Raises:
        ModelError: the name is unknown, nothing is there, the hub does not give it, it is no causal language model,
            its configuration is wrong, or it would have to run code that is not trusted.
    """
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
            "only models that go on with a text from left to right are scored"
        )
    return Source(where, revision, _commit(where, revision), spec.config is not None, trusted, config)


def structure(source: Source, attn_implementation: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device.

    Raises:
        ModelError: transformers has no causal language model of that architecture, or not with that attention, or
            configured as it is, the model is an encoder.
    """
    refuse_kernels(source.where, source.config, attn_implementation)
    with failing(source.where, source.revision), quietly(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            source.config, trust_remote_code=source.trusted, attn_implementation=attn_implementation
        )
    _refuse_encoder(source, model)
    return model


def refuse_kernels(where: str, config: PreTrainedConfig, attn_implementation: str | None = None) -> None:
    """Refuses attention that transformers would download: code.

    Where flash attention is not installed, it does so too, if the kernels package is there.

    Args:
        where: the model is, for the message.
        config: what it says counts where no `attn_implementation` is given.

    Raises:
        ModelError: it is a kernel of the hub, or not installed, or no name at all.
    """
    asked = attn_implementation or getattr(config, "_attn_implementation", None) or ""
    if not isinstance(asked, str):
        raise ModelError(f"{where}: its configuration has an attn_implementation that is no name; give sdpa or eager")
    named = asked.removeprefix("paged|")
    if "/" in named:
        raise ModelError(
            f"{where}: its configuration asks for the kernel {asked} of the hub, code that nobody here has "
            "read; give an 'attn_implementation' of transformers' own (sdpa, eager)"
        )
    number = named.removeprefix("flash_attention_")
    installed = getattr(transformers.utils, f"is_flash_attn_{number}_available", None) if number != named else None
    if installed is not None and not installed():
        raise ModelError(
            f"{where}: {named} is not installed here, or there is no GPU for it; give another "
            "'attn_implementation' (sdpa, eager)"
        )


def read_tokenizer(spec: ModelSpec, source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that the suite names, else the model's own; of random weights, else the bundled model's.

    Raises:
        ModelError: there is none, or the model has no embedding for some of its tokens.
    """
    where, revision = (str(bundled()["almanac"]), None) if source.random else (source.where, source.pinned)
    if spec.tokenizer is not None:
        where, revision = str(bundled().get(spec.tokenizer, spec.tokenizer)), None
    trusted = source.trusted and spec.tokenizer is None  # the model's repository is trusted, not another one
    with failing(where, revision), quietly():
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trusted)
    if not len(tokenizer):
        raise ModelError(f"{where}: cannot be loaded: there is no tokenizer; save the model's beside it")
    vocabulary = getattr(source.config.get_text_config(decoder=True), "vocab_size", None)
    own = not source.random and spec.tokenizer is None  # may have tokens that no text comes to
    if not own and vocabulary is not None and len(tokenizer) > vocabulary:
        raise ModelError(
            f"{source.label}: its vocabulary of {vocabulary} is too small for the {len(tokenizer)} tokens of "
            f"{Path(where).parent.name if source.random and not spec.tokenizer else where}; "
            "give a larger vocab_size, or another 'tokenizer'"
        )
    return tokenizer


@contextmanager
def failing(where: str, revision: str | None = None) -> Iterator[None]:
    """Whatever transformers raises inside (OSError, ValueError, KeyError, ImportError, ...) becomes one line.

    Raises:
        ModelError: in place of any other exception.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_reason(where, revision, error)) from error


@contextmanager
def quietly() -> Iterator[None]:
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


def says_causal(model: PreTrainedModel) -> set[bool]:
    """What a model's attention says of itself: that it is causal, that it is not, or nothing."""
    return {causal for module in model.modules() if isinstance(causal := getattr(module, "is_causal", None), bool)}


def _refuse_encoder(source: Source, model: PreTrainedModel) -> None:
    """transformers makes a language model of an encoder, and only warns that it should have been made a decoder.

    Architectures that may be either have a switch, and with it one for the cross-attention of a decoder; where the
    first alone stands in a configuration it may be a remnant that nothing reads.
    """
    config = source.config
    either = isinstance(getattr(config, "add_cross_attention", None), bool)
    if not either or getattr(config, "is_decoder", None) is not False or True in says_causal(model):
        return
    if source.random:
        remedy = "for a causal model of this architecture write `is_decoder: true` in its configuration"
    else:
        remedy = "name a checkpoint that was trained from left to right; of this architecture, such have it true"
    raise ModelError(
        f"{source.label}: not a causal language model: {config.model_type} with `is_decoder: false` is an encoder, "
        f"and what it says at a token depends on the tokens after it; {remedy}"
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
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: holds a PEFT adapter; write its base model under 'pretrained', and it under 'adapter'"
            )
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: no config.json there; is it a checkpoint folder?")
        if spec.revision is not None:
            raise ModelError(f"{folder}: a folder has no revisions; leave 'revision' out")
    return spec.pretrained, spec.revision


def _commit(where: str, revision: str | None) -> str | None:
    """The commit from which a configuration has just been read; None for what is not from the hub."""
    if Path(where).exists() or where.startswith("a random "):
        return None
    cached = try_to_load_from_cache(where, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def _configured(settings: dict[str, Any]) -> PreTrainedConfig:
    """The configuration with these settings. Raises ModelError for a model type or a setting that is not known."""
    settings = dict(settings)
    kind = settings.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        hint = did_you_mean(str(kind), CONFIG_MAPPING) if kind is not None else "; such as 'llama'"
        what = f"unknown model_type {kind!r}" if kind is not None else "'config' needs a model_type"
        raise ModelError(f"{what}{hint}")
    config = AutoConfig.for_model(kind, **settings)
    known = [key for key in AutoConfig.for_model(kind).to_dict() if not key.startswith("_")]
    for key in settings:
        # transformers keeps whatever it is given. Older names still act; one that only looks like another is a slip.
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8) if key not in known else []
        if near and key not in config.attribute_map:
            without = AutoConfig.for_model(kind, **{other: settings[other] for other in settings if other != key})
            if {**without.to_dict(), key: settings[key]} == config.to_dict():
                raise ModelError(f"a random {kind}: its configuration has no {key!r}; did you mean {near[0]!r}?")
    return config


def _reason(where: str, revision: str | None, error: Exception) -> str:
    """One line for what went wrong, by the exceptions that led to it."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    text = one_line(error)
    local = Path(where).exists()
    if not local and where.startswith((".", "/", "~")):
        return f"{where}: no such folder"
    if "trust_remote_code" in text:
        return (
            f"{where}: its architecture is code in its own repository, which runs only with 'trust_remote_code: true' "
            "in the suite and --trust-remote-code on the command line"
        )
    if "for this kind of AutoModel" in text:
        return f"{where}: not a causal language model: {text.partition('Model type should')[0].strip()}"
    if "safetensors" in text and "no file named" in text:
        return (
            f"{where}: its weights are not stored as safetensors, and pickles (.bin, .pt) are not read: they can "
            "run any code; convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    if local or where.startswith("a random "):
        return f"{where}: cannot be loaded: {text}"

    def led(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if led(GatedRepoError):
        return (
            f"{where}: gated on the Hugging Face hub; accept its terms at https://huggingface.co/{where}, "
            "then `hf auth login`"
        )
    if led(RevisionNotFoundError):
        return f"{where}: the Hugging Face hub has no revision {revision or 'main'!r} of it"
    if led(RepositoryNotFoundError):
        return (
            f"{where}: not a local folder, and the Hugging Face hub has no such model, or not for you "
            "(`hf auth login` where it is private)"
        )
    if led(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) or "couldn't connect" in text:
        what = f"{where} at revision {revision}" if revision else where
        return (
            f"{what}: not a local folder, and the Hugging Face hub cannot be reached, nor is it in the cache; "
            f"go online, or download it and give its folder: {text}"
        )
    return f"{where}: not a local folder, and the Hugging Face hub did not give it: {text}"
