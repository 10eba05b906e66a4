"""One matrix from a .npy, .npz or .safetensors file. Pickles are never read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lrbench.errors import InputError
from lrbench.system.text import did_you_mean, one_line

SUFFIXES = (".npy", ".npz", ".safetensors")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_BEGINNINGS = {".npy": b"\x93NUMPY", ".npz": b"PK"}
_SHOWN = 8


@dataclass(frozen=True)
class Matrix:
    """A matrix read from a file.

    Attributes:
        name: the key within the file; for .npy the file's name.
        values: (m, n), finite, of dtype float64, float32, float16 or bfloat16.
    """

    name: str
    values: torch.Tensor


def read_matrix(path: Path, key: str | None = None) -> Matrix:
    """Reads one matrix W (out, in), not transposed.

    Args:
        path: .npy, .npz or .safetensors.
        key: the array's name; required if the file holds several.

    Raises:
        InputError: no such file or key, no array that can be read without unpickling, not two-dimensional, empty, not
            of a floating dtype, or with NaN or Inf in it.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: not one of {', '.join(SUFFIXES)}; pickles (.pt, .pth, .bin, .pkl) are not read: convert the file"
        )
    if suffix == ".npy" and key is not None:
        raise InputError(f"{path}: --key is for .npz and .safetensors; a .npy holds one array")
    try:
        name, tensor = _safetensors(path, key) if suffix == ".safetensors" else _numpy(path, key)
    except InputError:
        raise
    except Exception as error:  # damaged files raise OSError, ValueError, EOFError, BadZipFile, SafetensorError, ...
        raise InputError(f"{path}: cannot be read as {suffix}: {one_line(error)}") from None
    where = f"{path}[{name}]" if suffix != ".npy" else str(path)
    return Matrix(name, _checked(tensor, where))


def _numpy(path: Path, key: str | None) -> tuple[str, torch.Tensor]:
    with path.open("rb") as file:  # numpy treats every other format as a pickle
        start = file.read(6)
    if not start.startswith(_BEGINNINGS[path.suffix.lower()]):
        raise InputError(f"{path}: is no {path.suffix.lower()} file despite its name")
    try:
        loaded = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error):
            raise InputError(_pickled(path)) from None
        raise
    if isinstance(loaded, np.ndarray):
        return path.name, _from_numpy(loaded, str(path))
    with loaded:
        name = _choose(path, loaded.files, key)
        try:
            array = loaded[name]
        except (ValueError, zipfile.BadZipFile) as error:
            if "pickle" in str(error):
                raise InputError(_pickled(path)) from None
            raise
    return name, _from_numpy(array, f"{path}[{name}]")


def _safetensors(path: Path, key: str | None) -> tuple[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        name = _choose(path, list(file.keys()), key)
        tensor: torch.Tensor = file.get_tensor(name)
    return name, tensor


def _choose(path: Path, keys: Sequence[str], key: str | None) -> str:
    if key is None:
        if len(keys) == 1:
            return keys[0]
        raise InputError(f"{path}: holds {len(keys)} arrays; choose one with --key{_listed(keys)}")
    if key not in keys:
        raise InputError(f"{path}: no array {key!r}{did_you_mean(key, keys) or _listed(keys)}")
    return key


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})" if names else ""


def _from_numpy(array: np.ndarray, where: str) -> torch.Tensor:
    if array.dtype.hasobject:
        raise InputError(f"{where}: holds Python objects, which only a pickle can; save a plain array")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(_wrong_dtype(where, str(array.dtype)))
    native = array.astype(array.dtype.newbyteorder("="), copy=True)  # a copy: torch wants it writable
    return torch.from_numpy(native)


def _checked(tensor: torch.Tensor, where: str) -> torch.Tensor:
    if tensor.dtype not in _DTYPES:
        raise InputError(_wrong_dtype(where, str(tensor.dtype).removeprefix("torch.")))
    shape = tuple(tensor.shape)
    if len(shape) != 2:
        raise InputError(f"{where}: has shape {shape}; a matrix has two dimensions: save one slice, or reshape it")
    if not tensor.numel():
        raise InputError(f"{where}: has shape {shape}; it is empty")
    finite = tensor.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise InputError(f"{where}: holds {float(tensor[row, column])} at [{row}, {column}]; repair or mask it first")
    return tensor


def _wrong_dtype(where: str, dtype: str) -> str:
    return f"{where}: holds {dtype}; reducers take float64, float32, float16 or bfloat16: convert it first"


def _pickled(path: Path) -> str:
    return f"{path}: holds pickled objects, which are not read; save a plain array of numbers"
