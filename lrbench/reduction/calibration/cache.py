"""Statistics on disk as safetensors, addressed by a hash of everything they depend on; writes are atomic."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lrbench.errors import InputError
from lrbench.reducers.source_hash import code_hash
from lrbench.system import files
from lrbench.system.text import one_line

#: Packages that compute statistics; a change of their code invalidates the cache.
_PACKAGES = ("linalg", "reduction/calibration")


@dataclass(frozen=True)
class CacheEntry:
    """One statistic of one input or weight.

    Attributes:
        tensor: (n, n), (m, m) or (n,), float32, on the CPU.
        seconds: the time of collecting it.
        shared: the number of weights that share it.
        tokens: the number of tokens that it is the mean of; 0 for statistics of whole windows.
    """

    tensor: torch.Tensor
    seconds: float
    shared: int
    tokens: int = 0


class Cache:
    """The statistics of one model on one set of windows.

    Weights with the same input share a file; `inputs.json` maps weights to inputs. File names are hashes, since weight
    names may be unsafe as paths.

    Args:
        made_from: everything that the statistics depend on besides lrbench's code; plain JSON data.
        notify: called with one line for each unusable file.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, made_from: Mapping[str, object], notify: Callable[[str], None]) -> None:
        text = json.dumps({**made_from, "code": code_hash(*_PACKAGES)}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = files.cache_root() / "calibration" / self.key[:32]
        self._notify = notify
        self._inputs: dict[str, str] | None = None
        self._written: list[Path] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(
                f"{self.folder}: statistics cannot be stored there: {error.strerror or one_line(error)}; "
                "set LRBENCH_CACHE to a writable folder"
            ) from None

    def inputs(self) -> dict[str, str]:
        """Weight -> its input, named after the first weight that takes it; known weights only."""
        if self._inputs is None:
            self._inputs = self._read_inputs()
        return self._inputs

    def _read_inputs(self) -> dict[str, str]:
        try:
            known = json.loads((self.folder / "inputs.json").read_text(encoding="utf-8"))
            return {str(name): str(value) for name, value in known.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            self._notify(f"{self.folder / 'inputs.json'}: not usable, rebuilt: {one_line(error)}")
            return {}

    def add_inputs(self, inputs: Mapping[str, str]) -> None:
        """Records the inputs of weights."""
        self._inputs = {**self._read_inputs(), **inputs}  # another process may have added some
        self._write("inputs.json", json.dumps(self._inputs, indent=0, sort_keys=True).encode())

    def has(self, kind: str, source: str) -> bool:
        """Whether the file exists; only `read` checks it."""
        return (self.folder / _file(kind, source)).is_file()

    def read(self, kind: str, source: str) -> CacheEntry | None:
        """A statistic; None if there is none. An unusable file is reported and removed.

        Args:
            kind: such as `second_moment`.
            source: the input, or the weight.
        """
        path = self.folder / _file(kind, source)
        try:
            with safe_open(path, "pt") as file:
                about, tensor = file.metadata() or {}, file.get_tensor("statistic").clone()  # no view of the file
            if (about["key"], about["kind"], about["source"]) != (self.key, kind, source):
                raise ValueError("it belongs to another statistic")
            if about["sha256"] != _digest(tensor):
                raise ValueError("its checksum is wrong")
            return CacheEntry(tensor, float(about["seconds"]), int(about["shared"]), int(about["tokens"]))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            self._notify(f"{path}: not usable, collected again: {one_line(error)}")
            path.unlink(missing_ok=True)
            return None

    def write(self, kind: str, source: str, entry: CacheEntry) -> None:
        """Stores a statistic. Raises InputError if it cannot be written."""
        about = {
            "key": self.key, "kind": kind, "source": source, "sha256": _digest(entry.tensor),
            "seconds": repr(entry.seconds), "shared": str(entry.shared), "tokens": str(entry.tokens),
        }  # fmt: skip
        self._write(_file(kind, source), save({"statistic": entry.tensor.contiguous()}, about))

    def remove_written(self) -> None:
        """Removes the files written by this process."""
        while self._written:
            self._written.pop().unlink(missing_ok=True)
        self._inputs = None

    def _write(self, name: str, content: bytes) -> None:
        try:
            files.write(self.folder / name, content)
        except OSError as error:
            raise InputError(
                f"{self.folder / name}: cannot be written: {error.strerror or one_line(error)}; "
                "make room, or set LRBENCH_CACHE to another folder"
            ) from None
        self._written.append(self.folder / name)


def _file(kind: str, source: str) -> str:
    return f"{kind}-{hashlib.sha256(source.encode()).hexdigest()[:32]}.safetensors"


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
