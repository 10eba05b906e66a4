"""On what machine and with which versions a row was made."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import lrbench

PACKAGES = ("torch", "transformers", "lm-eval", "datasets", "tokenizers", "accelerate", "numpy", "scipy", "safetensors")


def environment(device: Any = None, **execution: Any) -> dict[str, Any]:
    """Hardware and versions, with a short `hash` of them.

    Args:
        device: a torch.device; None asks for the default one (the GPU where there is one).
        execution: how cells are scored there: engine, batch size.
    """
    import torch

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    entry: dict[str, Any] = {
        "lrbench": lrbench.__version__,
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "device": _device_name(device),
        **execution,
    }
    entry["hash"] = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:12]
    return entry


def in_words(entry: dict[str, Any]) -> str:
    """One line for a caption: device, cores, versions that matter."""
    packages = entry["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "lm-eval"))
    where = f"{entry['processor']}, {entry['cores']} cores"
    if entry["device"] != "cpu":
        where = f"{entry['device']} ({where})"
    return f"{where}; lrbench {entry['lrbench']}, {versions}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """The commit that lrbench runs from, and whether files differ from it; None outside a checkout."""
    folder = Path(lrbench.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        status = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or no commit yet
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
