"""Factors as a layer of a model."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import Tensor, nn


class Structured(Protocol):
    """What the layer asks of `Factors`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def rank(self) -> int:
        """Of the matrix."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by the name of its field."""

    def apply(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""


class FactoredLinear(nn.Module):
    """A linear layer that stores factors, as copies: numbers are parameters, positions are buffers."""

    bias: nn.Parameter | None

    def __init__(self, factors: Structured, bias: Tensor | None = None) -> None:
        super().__init__()
        for name, tensor in factors.tensors().items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor.clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self._factors = factors  # never read before it is made of this module's own tensors

    @property
    def factors(self) -> Structured:
        """The factors as they are now, made of this module's own parameters and buffers."""
        held = {name: getattr(self, name) for name in self._factors.tensors()}
        # `nn.Module.to` replaces buffers, and in some settings parameters too; what is derived from them is then stale.
        if any(tensor is not getattr(self._factors, name) for name, tensor in held.items()):
            self._factors = dataclasses.replace(self._factors, **held)  # type: ignore[type-var]
        return self._factors

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # Positions were overwritten in place, and what was derived from them must go.
        self._factors = dataclasses.replace(self._factors)  # type: ignore[type-var]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.factors.apply(x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        out_features, in_features = self._factors.shape
        return f"{in_features} -> {out_features}, {type(self._factors).__name__}, rank={self._factors.rank}"
