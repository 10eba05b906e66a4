"""Errors of transformers and of the hub while a model is loaded, each as one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as hf_logging

from lrbench.errors import ModelError
from lrbench.system.offline import offline_folder
from lrbench.system.text import one_line


@contextmanager
def failing(where: str, revision: str | None = None) -> Iterator[None]:
    """Converts any exception of transformers (OSError, ValueError, ImportError, ...) to a ModelError of one line.

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
    """Hides transformers' progress bars and tables of faulty weights, and the hub's messages on retries."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    hub, loading = logging.getLogger("huggingface_hub"), logging.getLogger("transformers.modeling_utils")
    level = hub.level
    hub.setLevel(logging.ERROR)
    loading.addFilter(_no_report)  # at another level it would tell more
    try:
        yield
    finally:
        hub.setLevel(level)
        loading.removeFilter(_no_report)
        if shown:
            hf_logging.enable_progress_bar()


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def refuse_gaps(label: str, loading_info: dict[str, Any]) -> None:
    """Refuses a checkpoint that lacks weights; transformers would draw them at random and only warn.

    Args:
        label: the model's name in the message.
        loading_info: of transformers' `from_pretrained`.

    Raises:
        ModelError: a weight is missing, or has another shape.
    """
    missing = sorted(loading_info["missing_keys"])
    wrong = sorted(str(key[0]) for key in loading_info["mismatched_keys"])
    for names, fault in ((missing, "has no"), (wrong, "has another shape of")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{label}: the checkpoint {fault} {names[0]}{more}; is it one of a causal language model?")


def unreachable(error: BaseException) -> bool:
    """Whether an error comes from a hub that cannot be reached, or is excluded."""
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return any(
        isinstance(step, kinds) or any(kind.__name__ == "TransportError" for kind in type(step).__mro__)  # of httpx
        for step in _chain(error)
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error, followed by its causes."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain


def _reason(where: str, revision: str | None, error: Exception) -> str:
    """One line that explains an error, by its chain of exceptions."""
    chain = _chain(error)
    text = one_line(error)
    local = Path(where).exists()
    if not local and where.startswith((".", "/", "~")):
        return f"{where}: no such folder"
    if "trust_remote_code" in text:
        return (
            f"{where}: its architecture is code in its repository, which runs only with 'trust_remote_code: true' "
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

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(step, kinds) for step in chain)

    if caused_by(GatedRepoError):
        return (
            f"{where}: gated on the Hugging Face hub; accept its terms at https://huggingface.co/{where}, "
            "then `hf auth login`"
        )
    if caused_by(RevisionNotFoundError):
        return f"{where}: the Hugging Face hub has no revision {revision or 'main'!r} of it"
    if caused_by(RepositoryNotFoundError):
        return (
            f"{where}: not a local folder, and the Hugging Face hub has no such model, or not for you "
            "(`hf auth login` where it is private)"
        )
    if unreachable(error) or "couldn't connect" in text:
        label = f"{where} at revision {revision}" if revision else where
        if (folder := offline_folder()) is not None:
            return f"{label}: not a local folder, and not in {folder} of --offline; fetch it where the hub is: {text}"
        return (
            f"{label}: not a local folder, and the Hugging Face hub cannot be reached, nor is it in the cache; "
            f"go online, or download it and give its folder: {text}"
        )
    return f"{where}: not a local folder, and the Hugging Face hub did not give it: {text}"
