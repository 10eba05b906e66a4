"""A GGUF file as a dense checkpoint in lrbench's cache folder; transformers dequantizes the file once.

The folder is an ordinary checkpoint for the rest of lrbench. Its name is a hash of the file's content, the dtype, and
the converting code: the versions of transformers and gguf, and this module.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrbench.errors import ModelError
from lrbench.models.gguf_header import Header, check_magic, read_header
from lrbench.models.loading_errors import refuse_gaps
from lrbench.models.slots import count_parameters
from lrbench.system import files
from lrbench.system.device import check_room
from lrbench.system.text import one_line

_ABOUT = "gguf.json"

#: llama.cpp's names of pre-tokenizers that split as GPT-2 does, which transformers does for all it does not know.
_AS_GPT2 = {"gpt-2", "olmo", "mpt", "phi-2", "jais"}
#: The same, with each digit apart, which transformers does not know.
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r"}


@dataclass(frozen=True)
class GgufCheckpoint:
    """A dense checkpoint made from a GGUF file.

    Attributes:
        file: the GGUF file.
        folder: the checkpoint.
        stored: the types in which the file stores matrices, such as `Q4_1, Q8_0`.
        no_tokenizer: the reason why the folder has no tokenizer; None if it has a tokenizer.
        license: of the model, as the file names it; None if it names none.
    """

    file: Path
    folder: Path
    stored: str
    no_tokenizer: str | None
    license: str | None


def dense_checkpoint(file: Path, dtype: torch.dtype, notify: Callable[[str], None]) -> GgufCheckpoint:
    """The dense checkpoint of a GGUF file, from the cache folder or made now.

    Args:
        notify: called with one line before the checkpoint is made.

    Raises:
        ModelError: a package is missing, transformers cannot read the whole file, or memory
            or the cache folder does not suffice.
    """
    check_magic(file)
    try:
        import gguf  # noqa: F401
        from transformers import GgufConfig  # noqa: F401
    except ImportError:
        raise ModelError(
            f"{file}: reading GGUF needs the package gguf and transformers 5.23 or newer; pip install 'lrbench[gguf]'"
        ) from None
    try:
        folder = _folder(file, dtype)
        if not folder.exists():
            with files.locked(folder.with_suffix(".lock"), wait=True):
                files.remove_leftovers(folder.parent)
                if not folder.exists():
                    _make(file, dtype, folder, notify)
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except OSError as error:
        if error.errno is None:  # one of transformers'
            raise
        raise ModelError(
            f"{file}: its dense checkpoint cannot be kept: {one_line(error)}; make room, or set LRBENCH_CACHE to "
            "another folder"
        ) from None
    return GgufCheckpoint(file, folder, **about)


def _folder(file: Path, dtype: torch.dtype) -> Path:
    """The folder of the checkpoint, which need not exist; makes its parent."""
    versions = f"{transformers.__version__} {importlib.metadata.version('gguf')}"
    made_from = (_digest(file), str(dtype), versions, Path(__file__).read_text(encoding="utf-8"))
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]
    folder = files.cache_root() / "gguf" / key / "checkpoint"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(file: Path) -> str:
    """SHA-256 of a file, cached until the file's size or modification time changes."""
    path, status = str(file.resolve()), file.stat()
    seen = [path, status.st_size, status.st_mtime_ns]
    note = files.cache_root() / "gguf" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        *known, digest = json.loads(note.read_text(encoding="utf-8"))
        if known == seen:
            return str(digest)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    note.parent.mkdir(parents=True, exist_ok=True)
    files.write(note, json.dumps([*seen, digest]))
    return digest


def _make(file: Path, dtype: torch.dtype, folder: Path, notify: Callable[[str], None]) -> None:
    """Writes the dense checkpoint of a file, durably: the folder is whole or missing."""
    header = read_header(file)
    notify(f"dequantizing {file.name}; the dense checkpoint is kept in {folder.parents[1]}")
    # The folder is empty, so that transformers reads the file alone.
    with files.temporary_folder(folder) as new, _parsed_once():
        config = _read_config(file, header, new)
        _check_nothing_is_dropped(file, header, config, dtype)
        model = _read_model(file, new, config, dtype)
        no_tokenizer = None
        try:
            tokenizer = _read_tokenizer(file, header, new)
        except Exception as error:  # transformers raises any; another tokenizer may be named
            no_tokenizer = one_line(error)
        model.save_pretrained(new)
        if no_tokenizer is None:
            tokenizer.save_pretrained(new)
        licence = header.metadata.get("general.license")
        about = {
            "stored": header.stored, "no_tokenizer": no_tokenizer,
            "license": licence if isinstance(licence, str) else None,
        }  # fmt: skip
        (new / _ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
        files.sync_folder(new)
        files.replace_folder(folder, new)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Makes transformers parse a file once, not for configuration, tokenizer and weights each.

    The names of gguf's tensors are also computed once, not for every module of the model.
    """
    import gguf

    with (
        mock.patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield


def _read_config(file: Path, header: Header, folder: Path) -> PreTrainedConfig:
    """The configuration that the header describes. Raises ModelError if transformers does not know the architecture."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer", "t5", "t5encoder", "umt5"})
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=str(file.resolve()))
    except ValueError as error:
        if "not supported" not in str(error) and header.architecture:
            raise
        raise ModelError(
            f"{file}: transformers {transformers.__version__} cannot read the architecture "
            f"{header.architecture or '(none)'!r} from GGUF; it reads {', '.join(known)}"
        ) from None
    if config.is_encoder_decoder or header.architecture.startswith("t5"):
        raise ModelError(f"{file}: {config.model_type} is not a causal language model; only those are scored")
    _restore_rotation(file, header, config)
    window = header.of_architecture("attention.sliding_window")
    if window and config.get_text_config().to_dict().get("sliding_window", window) is None:
        config.sliding_window = window
    return config


def _restore_rotation(file: Path, header: Header, config: PreTrainedConfig) -> None:
    """Adds Llama 3's scaling of rotary frequencies to the configuration, which transformers does not read from GGUF.

    llama.cpp stores the divisor of each frequency as the tensor `rope_freqs.weight`.

    Raises:
        ModelError: the frequencies are scaled in another way, which transformers does not read either.
    """
    from gguf import GGUFReader
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.get_text_config().to_dict().get("rope_parameters") or {}
    scaling = header.of_architecture("rope.scaling.type") or "none"
    dropped = scaling != "none" and parameters.get("rope_type", "default") == "default"
    tensor = next((tensor for tensor in header.tensors if tensor.name == "rope_freqs.weight"), None)
    if tensor is not None and config.model_type == "llama":
        stored = next(
            tensor.data for tensor in GGUFReader(str(file.resolve())).tensors if tensor.name == "rope_freqs.weight"
        )
        divisors = torch.tensor(stored.astype("float64"))
        settings: dict[str, Any] = {
            "rope_type": "llama3", "rope_theta": config.rope_parameters["rope_theta"], "factor": float(divisors.max()),
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        plain = settings["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim).double()
        config.rope_parameters = settings
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        dropped = scaled.shape != divisors.shape or not torch.allclose(scaled.double() * divisors, plain, rtol=1e-4)
    elif tensor is not None:
        dropped = True
    if dropped:
        raise ModelError(
            f"{file}: its rotary positions are scaled ({scaling}), which transformers {transformers.__version__} does "
            "not read from GGUF; give the original checkpoint under 'pretrained'"
        )


def _check_nothing_is_dropped(file: Path, header: Header, config: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Compares the file's parameters with the model's before weights are read. Raises ModelError if they differ."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    needed = count_parameters(model)
    check_room(str(file), needed, dtype, [torch.device("cpu")])
    text = config.get_text_config()
    beyond = text.num_hidden_layers  # llama.cpp stores blocks for predicting several tokens there
    unused = {"rope_freqs.weight"} | ({"output.weight"} if text.tie_word_embeddings else set())
    read = [
        tensor
        for tensor in header.tensors
        if tensor.name not in unused and not tensor.name.startswith(f"blk.{beyond}.")
    ]
    stored = sum(tensor.size for tensor in read)
    if stored > needed:
        raise ModelError(
            f"{file}: holds {stored - needed:,} parameters more than the {type(model).__name__} that transformers "
            f"{transformers.__version__} makes of it, which would drop them; give the original checkpoint under "
            "'pretrained'"
        )


def _read_model(file: Path, folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The dense model. Raises ModelError if a weight is missing in the file, or cannot be dequantized."""
    from transformers import GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, gguf_file=str(file.resolve()), dtype=dtype, output_loading_info=True,
            use_safetensors=True, quantization_config=GgufConfig(dequantize=True), ignore_mismatched_sizes=True,
        )  # fmt: skip
    model, loading_info = loaded
    refuse_gaps(str(file), loading_info)
    packed = next((name for name, weight in model.named_parameters() if weight.dtype != dtype), None)
    if packed is not None:
        raise ModelError(f"{file}: transformers {transformers.__version__} does not dequantize {packed}")
    return model


def _read_tokenizer(file: Path, header: Header, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the file. Raises ModelError if transformers would split text in another way than its model."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=str(file.resolve()))
    splits = header.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if header.metadata.get("tokenizer.ggml.model") != "gpt2" or splits in {*GGUF_PRE_TOKENIZER_SPLITS, *_AS_GPT2}:
        return tokenizer
    if splits not in _DIGITS_APART:
        raise ModelError(f"its pre-tokenizer {splits!r} is unknown to transformers {transformers.__version__}")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
