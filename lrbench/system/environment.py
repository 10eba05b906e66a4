"""The hardware and software versions that a row was computed with."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import lrbench.plugins
from lrbench._version import __version__

#: Packages whose code affects scores.
PACKAGES = (
    *("torch", "transformers", "lm-eval", "datasets", "tokenizers", "accelerate", "numpy", "scipy", "safetensors"),
    *("peft", "jinja2", "evaluate", "sacrebleu"),
)

#: Environment variables that can change results: threads and instruction sets (the order of sums), and precision.
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)


def environment(device: Any = None, **execution: Any) -> dict[str, Any]:
    """Hardware and versions, with a short `hash` of them.

    Args:
        device: a torch.device; None for the GPU if there is one, else the CPU.
        execution: further entries, such as the engine and the batch size.
    """
    import torch

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    entry: dict[str, Any] = {
        "lrbench": __version__,
        "git": _git_state(),
        "code": _code_hash(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "blas": _blas(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "numerics": _numerics(torch),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "memory_gib": _memory_gib(),
        "device": _device_name(device),
        **({"cuda": _cuda(torch)} if device.type == "cuda" else {}),
        **execution,
    }
    entry["hash"] = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:12]
    return entry


def in_words(entry: dict[str, Any]) -> str:
    """One line for a caption: device, cores, and the main versions."""
    packages = entry["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "lm-eval"))
    hardware = f"{entry['processor']}, {entry['cores']} cores"
    if entry["device"] != "cpu":
        hardware = f"{entry['device']} ({hardware})"
    return f"{hardware}; lrbench {entry['lrbench']}, {versions}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """The commit that lrbench runs from, and whether files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
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


@functools.cache
def _code_hash() -> str:
    """SHA-256 (short) of lrbench's Python files and the built-in reducers, which may differ from the commit."""
    folder = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in (folder, Path(lrbench.plugins.__file__ or folder).resolve().parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _blas() -> list[str]:
    """BLAS libraries beside torch's own, with their versions and selected kernels."""
    import scipy.linalg  # noqa: F401 - loads scipy's own BLAS, so that it is always listed
    import threadpoolctl

    libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    keys = ("internal_api", "version", "architecture")
    return sorted({" ".join(str(library[key]) for key in keys if library.get(key)) for library in libraries})


def _numerics(torch: Any) -> dict[str, Any]:
    """Settings that let torch compute with lower precision or in a varying order."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "reduced_bfloat16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "reduced_float16": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    }


def _cuda(torch: Any) -> dict[str, Any]:
    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


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
