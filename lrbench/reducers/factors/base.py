"""The base class of factors, which counts, checks, casts, saves and loads them by their fields."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lrbench.reducers.factors.layer import FactoredLinear

#: Bytes per stored position, in `stored_bytes` and in files.
INDEX_BYTES = 4


class Factors(ABC):
    """The result of a reducer. A subclass is a frozen dataclass of tensors and plain values that JSON can hold.

    It defines `shape`, `rank`, `apply` and, if fields can contradict each other, `_check`.
    """

    _types: ClassVar[dict[str, type[Factors]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Factors._types[cls.__name__] = cls

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the approximated matrix."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """An upper bound of the rank of `dense()`, from the shapes of the factors."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """`x @ dense().T` through the factors, without forming `dense()`.

        Args:
            x: (..., in), of the factors' dtype and on their device.

        Returns:
            (..., out).
        """

    def _check(self) -> None:  # noqa: B027  (types with one field need no check)
        """Raises ValueError if fields contradict each other. Their types and dimensions are already checked."""

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds to apply the factors to one token: one per stored parameter."""
        return self.stored_numbers

    def dense(self) -> Tensor:
        """(out, in): the matrix itself, in the factors' dtype."""
        dtype, device = self.dtype, self.device
        return self.apply(torch.eye(self.shape[1], dtype=dtype, device=device)).T

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: floating tensors hold parameters, integer tensors positions."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def _parameters(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors().values() if tensor.is_floating_point()]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the floating tensors."""
        return self._parameters()[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self._parameters()[0].device

    @property
    def stored_numbers(self) -> int:
        """The number of stored parameters; positions are not counted."""
        return sum(tensor.numel() for tensor in self._parameters())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parameters in their dtype, and of all positions at `INDEX_BYTES` each."""
        return sum(
            tensor.numel() * (tensor.element_size() if tensor.is_floating_point() else INDEX_BYTES)
            for tensor in self.tensors().values()
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Factors:
        """The same factors in another floating dtype or on another device; positions keep their integer dtype."""
        moved = {
            name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
            for name, tensor in self.tensors().items()
        }
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]

    def check(self) -> Factors:
        """Returns the factors if they are consistent.

        Raises:
            ValueError: a tensor has the wrong number of dimensions, dtype or device; shapes contradict each other;
                positions repeat or are out of range. The message names the type and the field.
        """
        name = type(self).__name__
        for declared in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, declared.name)
            if "Tensor" in str(declared.type) and not isinstance(value, Tensor):
                raise ValueError(f"{name}.{declared.name} must be a torch.Tensor, not a {type(value).__name__}")
        for field, tensor in self.tensors().items():
            floating, dimensions = tensor.is_floating_point(), tensor.dim()
            is_positions = field in self._positions()
            declared_dimensions = self._dimensions().get(field, 1 if is_positions else 2)
            if is_positions and (floating or tensor.dtype == torch.bool or tensor.is_complex()):
                raise ValueError(f"{name}.{field} must be positions of an integer dtype, not {tensor.dtype}")
            if not is_positions and not floating:
                raise ValueError(f"{name}.{field} must be of a floating dtype, not {tensor.dtype}")
            if dimensions != declared_dimensions:
                raise ValueError(f"{name}.{field} must have {declared_dimensions} dimensions, not {dimensions}")
            if tensor.device != self.device:
                raise ValueError(f"{name}.{field} is on {tensor.device}, the other tensors on {self.device}")
            if floating and tensor.dtype != self.dtype:
                raise ValueError(f"{name}.{field} is {tensor.dtype}, the other tensors {self.dtype}")
        self._check()
        return self

    def _positions(self) -> frozenset[str]:
        """The names of the tensors that hold positions."""
        return frozenset()

    def _dimensions(self) -> dict[str, int]:
        """Numbers of dimensions by field, if not 2 for parameters and 1 for positions."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The fields other than tensors: plain values that JSON can hold."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Tensor)}

    @staticmethod
    def made(kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Factors:
        """Factors from stored `tensors()` and `settings()`; positions become int64.

        Raises:
            ValueError: an unknown type, or fields that do not fit it.
        """
        if kind not in Factors._types:
            raise ValueError(f"unknown factors {kind!r}")
        wide = {name: t if t.is_floating_point() else t.to(torch.int64) for name, t in tensors.items()}
        try:
            return Factors._types[kind](**wide, **settings).check()
        except TypeError as error:
            raise ValueError(str(error)) from error

    def module(self, bias: Tensor | None = None) -> FactoredLinear:
        """An `nn.Module` whose forward is `apply` plus `bias` (out,), if not None."""
        from lrbench.reducers.factors.layer import FactoredLinear

        return FactoredLinear(self, bias)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file whose header has the type and settings; positions take `INDEX_BYTES` each."""
        from safetensors.torch import save_file

        tensors = {
            name: (tensor if tensor.is_floating_point() else tensor.to(torch.int32)).detach().cpu().contiguous().clone()
            for name, tensor in self.tensors().items()
        }
        header = {"version": 1, "type": type(self).__name__, **self.settings()}
        save_file(tensors, str(path), metadata={"lrbench": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Factors:
        """Reads factors of any type from a file written by `save`.

        Raises:
            ValueError: the file is not safetensors, not from `save`, of an unknown type, or inconsistent.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("lrbench", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
        if not isinstance(header, dict) or header.get("type") not in Factors._types:
            kind = header.get("type") if isinstance(header, dict) else None
            raise ValueError(f"{path}: " + (f"unknown factors {kind!r}" if kind else "holds no lrbench factors"))
        settings = {name: value for name, value in header.items() if name not in ("type", "version")}
        try:
            return Factors.made(header["type"], tensors, settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) if the condition is false."""
    if not condition:
        raise ValueError(message)


def check_positions(name: str, positions: Tensor, count: int, size: int) -> None:
    """Raises ValueError unless `positions` holds `count` distinct positions below `size`."""
    require(len(positions) == count, f"{name} has {len(positions)} entries for {count} rows or columns")
    if count:
        low, high = int(positions.min()), int(positions.max())
        require(low >= 0 and high < size, f"{name} holds {low if low < 0 else high}, out of range 0..{size - 1}")
        require(len(positions.unique()) == count, f"{name} holds a position twice")
