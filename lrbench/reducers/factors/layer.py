"""A linear layer that stores factors."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import Tensor, nn


class FactorsLike(Protocol):
    """The part of `Factors` that the layer uses."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def rank(self) -> int:
        """An upper bound of the rank of the matrix."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field."""

    def apply(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""


class FactoredLinear(nn.Module):
    """A linear layer with copies of factors: floating tensors are parameters, positions are buffers."""

    bias: nn.Parameter | None

    def __init__(self, factors: FactorsLike, bias: Tensor | None = None) -> None:
        super().__init__()
        for name, tensor in factors.tensors().items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor.clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self._factors = factors  # replaced by the module's own tensors on first use

    @property
    def factors(self) -> FactorsLike:
        """Factors of the module's current parameters and buffers."""
        held = {name: getattr(self, name) for name in self._factors.tensors()}
        # `nn.Module.to` replaces buffers, and in some settings parameters; cached properties of factors become stale.
        if any(tensor is not getattr(self._factors, name) for name, tensor in held.items()):
            self._factors = dataclasses.replace(self._factors, **held)  # type: ignore[type-var]
        return self._factors

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # Positions were overwritten in place, so cached properties of factors are stale.
        self._factors = dataclasses.replace(self._factors)  # type: ignore[type-var]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.factors.apply(x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """The text in `print(model)`."""
        out_features, in_features = self._factors.shape
        return f"{in_features} -> {out_features}, {type(self._factors).__name__}, rank={self._factors.rank}"
