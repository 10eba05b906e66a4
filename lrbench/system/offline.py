"""The folder of `lrbench fetch`, which holds all that suites need from the Hugging Face hub; runs without network.

manifest.json                     what came from where
hub/                              models, tokenizers and adapters, as in the cache of huggingface_hub
datasets/ORG/NAME/CONFIG/SPLIT    data sets saved by `save_to_disk`
modules/                          code of metrics
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrbench.errors import InputError

#: The environment variable with the folder of all commands that are to use no network.
OFFLINE = "LRBENCH_OFFLINE"
MANIFEST, DATASETS, PARTIAL = "manifest.json", "datasets", ".partial"


_being_filled: Path | None = None


def offline_folder() -> Path | None:
    """The folder that replaces the hub; None if the hub may be asked."""
    setting = os.environ.get(OFFLINE)
    return Path(setting) if setting else None


def fetched_folder() -> Path | None:
    """The folder that replaces the hub, or is being filled; None if there is neither."""
    return _being_filled or offline_folder()


@contextmanager
def without_network(folder: str | Path | None) -> Iterator[None]:
    """Makes models, data sets and metrics come from a folder of `lrbench fetch` alone.

    Libraries that are not imported yet read environment variables, which processes started inside inherit; in imported
    ones, the values read from these are replaced.

    Args:
        folder: None for that of the environment variable, if it is set; otherwise nothing changes.

    Raises:
        InputError: the folder is missing, or is no folder of `lrbench fetch`.
    """
    folder = folder if folder is not None else offline_folder()
    if folder is None:
        yield
        return
    folder = Path(folder).expanduser().absolute()
    if not (folder / MANIFEST).is_file():
        fault = f"no {MANIFEST} in it" if folder.is_dir() else "no such folder"
        raise InputError(f"--offline {folder}: {fault}; give a folder that `lrbench fetch SUITE --to DIR` has filled")
    with _settings(
        folder,
        {
            OFFLINE: str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1",
            "EVALUATE_VERBOSITY": "error",
        },
        {
            "huggingface_hub.constants": {"HF_HUB_OFFLINE": True},
            "datasets.config": {"HF_HUB_OFFLINE": True, "HF_DATASETS_OFFLINE": True},
            "evaluate.config": {"HF_EVALUATE_OFFLINE": True},
        },
    ):  # fmt: skip
        yield


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Makes the libraries put what they load from the hub into a folder. Raises InputError if the hub is excluded."""
    global _being_filled
    if offline_folder() is not None:
        raise InputError(f"{OFFLINE} is set, which excludes the hub; unset it to fetch")
    partial = folder / PARTIAL
    _being_filled = folder
    with _settings(
        folder,
        {"HF_DATASETS_CACHE": str(partial), "HF_EVALUATE_CACHE": str(partial)},
        {
            "datasets.config": {
                "HF_DATASETS_CACHE": partial,
                "DOWNLOADED_DATASETS_PATH": partial / "downloads",
                "EXTRACTED_DATASETS_PATH": partial / "downloads" / "extracted",
            },
            "evaluate.config": {"HF_EVALUATE_CACHE": partial, "DOWNLOADED_EVALUATE_PATH": partial / "downloads"},
        },
    ):
        try:
            yield
        finally:
            _being_filled = None


@contextmanager
def _settings(folder: Path, variables: Mapping[str, str], constants: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Sets environment variables, and constants of imported modules; restores both."""
    hub, modules = folder / "hub", folder / "modules"
    variables = {
        "HF_HUB_CACHE": str(hub),
        "HF_MODULES_CACHE": str(modules),
        "HF_HUB_DISABLE_SYMLINKS": "1",  # so that any program can copy the folder
        **variables,
    }
    everywhere: dict[str, dict[str, Any]] = {
        "huggingface_hub.constants": {"HF_HUB_CACHE": str(hub), "HF_HUB_DISABLE_SYMLINKS": True},
        "evaluate.config": {"HF_MODULES_CACHE": modules},
    }
    for module, values in constants.items():
        everywhere[module] = {**everywhere.get(module, {}), **values}
    before = {name: os.environ.get(name) for name in variables}
    replaced = [
        (sys.modules[module], name, getattr(sys.modules[module], name), value)
        for module, values in everywhere.items()
        if module in sys.modules
        for name, value in values.items()
    ]
    os.environ.update(variables)
    for loaded, name, _, value in replaced:
        setattr(loaded, name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old
        for loaded, name, old, _ in replaced:
            setattr(loaded, name, old)
