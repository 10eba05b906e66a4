"""Merges a PEFT adapter into a model's weights."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from lrbench.errors import ModelError
from lrbench.models.loading_errors import failing, quietly
from lrbench.system.text import one_line

FILES = ("adapter_config.json", "adapter_model.safetensors")


def find_adapter(where: str) -> Path:
    """The folder of an adapter, downloaded if `where` is a hub id.

    Raises:
        ModelError: the peft package or the adapter is missing, or the adapter is not stored as safetensors.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"adapter {where}: needs the peft package; pip install 'lrbench[peft]'")
    folder = Path(where)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            with failing(where), quietly():
                folder = Path(snapshot_download(where, allow_patterns=list(FILES)))
        except ModelError as error:
            raise ModelError(f"adapter {error}") from error
    for name in FILES:
        if not (folder / name).is_file():
            raise ModelError(f"adapter {where}: no file {name}; save it with PEFT's save_pretrained")
    return folder


def merge_adapter(model: PreTrainedModel, where: str) -> PreTrainedModel:
    """The model with the adapter's change added to its weights.

    Args:
        model: the adapter's base model; its parameters are overwritten.
        where: a folder or a hub id.

    Raises:
        ModelError: as `find_adapter`; or the adapter does not fit the model, or its kind cannot be merged.
    """
    folder = find_adapter(where)
    from peft import PeftConfig, PeftModel

    label = f"adapter {where}"
    with warnings.catch_warnings(), _failing_to_fit(label):
        warnings.simplefilter("ignore")  # missing weights become an error below
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ModelError(f"{label}: {config.peft_type.value} learns a prompt, and cannot be merged into weights")
        config.inference_mode = True
        with quietly():
            wrapped = PeftModel(model, config)
            mapping = getattr(model, "_checkpoint_conversion_mapping", None) or {}
            result = wrapped.load_adapter(str(folder), "default", key_mapping=mapping)
        for fault, names in (
            ("lacks weights for", result.missing_keys),
            ("has weights for no", result.unexpected_keys),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ModelError(f"{label}: does not fit the model: it {fault} {names[0]}{more}")
        return wrapped.merge_and_unload(safe_merge=True)


@contextmanager
def _failing_to_fit(label: str) -> Iterator[None]:
    """Converts any exception of PEFT to a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # RuntimeError for shapes, ValueError for missing modules, ...
        raise ModelError(f"{label}: does not fit the model: {one_line(error)}") from error
