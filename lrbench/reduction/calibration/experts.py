"""Inputs and output gradients of experts stacked in one parameter, derived from the routing, since hooks cannot
observe them.

Transformers calls such a module with (hidden states, chosen experts, their weights); the attributes `gate_up_proj` (or
`up_proj`), `down_proj`, `has_gate`, `has_bias`, `is_transposed` and `_apply_gate` describe the computation. It is
checked against the module's own output before use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

_AGREE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Routed:
    """One call of an experts module.

    Raises:
        ValueError: it was not called as expected.
    """

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if len(tensors) != 3 or tensors[1].is_floating_point() or tensors[1].shape != tensors[2].shape:
            raise ValueError("it is not called with hidden states, chosen experts and their weights")
        self._module = module
        self._hidden = tensors[0].detach().reshape(-1, tensors[0].shape[-1])  # (tokens, width)
        self._chosen = tensors[1].reshape(len(self._hidden), -1)  # (tokens, experts a token)
        self._weights = tensors[2].detach().reshape(len(self._hidden), -1)

    def entering(self, expert: int, parameter: str) -> torch.Tensor:
        """The input of one expert's matrix, (tokens routed to it, in).

        Raises:
            ValueError: the module lacks an attribute that describes the computation.
        """
        inputs = self._hidden[(self._chosen == expert).any(1)]
        return inputs if parameter != "down_proj" else self._activated(self._expanded(inputs, expert))

    def gradient(self, expert: int, parameter: str, gradient: torch.Tensor) -> torch.Tensor:
        """The loss's gradient in the output of one expert's matrix, (tokens routed to it, rows of the matrix).

        Args:
            gradient: in the module's output, (..., width).

        Raises:
            ValueError: the module lacks an attribute that describes the computation.
        """
        rows, places = (self._chosen == expert).nonzero(as_tuple=True)
        of_result = gradient.reshape(self._hidden.shape)[rows] * self._weights[rows, places, None]  # (tokens, width)
        if parameter == "down_proj":
            return of_result
        with torch.enable_grad():
            expanded = self._expanded(self._hidden[rows], expert).detach().requires_grad_(True)
            result = self._product(self._activated(expanded), "down_proj", expert)
            return torch.autograd.grad(result, expanded, of_result)[0]

    def check(self, output: Any) -> None:
        """Compares the output computed from routing and weights with the module's. Raises ValueError if they differ."""
        if not isinstance(output, torch.Tensor):
            raise ValueError("it returns more than hidden states")
        expected = torch.zeros_like(self._hidden, dtype=torch.float64)
        for expert in self._chosen.unique().tolist():
            rows, places = (self._chosen == expert).nonzero(as_tuple=True)
            inputs = self.entering(expert, "down_proj")
            result = self._product(inputs, "down_proj", expert)
            expected.index_add_(0, rows, (result * self._weights[rows, places, None]).double())
        distance = float((expected - output.reshape(expected.shape).double()).norm())
        if not distance <= _AGREE.get(output.dtype, 5e-2) * float(expected.norm()):
            raise ValueError("its output does not follow from its routing and its weights")

    def _expanded(self, inputs: torch.Tensor, expert: int) -> torch.Tensor:
        """The output of the expert's first matrix, (tokens, rows of gate and up)."""
        try:
            return self._product(inputs, "gate_up_proj" if self._module.has_gate else "up_proj", expert)
        except AttributeError as error:
            raise ValueError(f"the inputs of its down-projections are unknown: {error}") from None

    def _activated(self, expanded: torch.Tensor) -> torch.Tensor:
        """The input of the expert's down-projection, (tokens, inner)."""
        try:
            activation: Any = self._module._apply_gate if self._module.has_gate else self._module.act_fn
            return activation(expanded)
        except AttributeError as error:
            raise ValueError(f"the inputs of its down-projections are unknown: {error}") from None

    def _product(self, x: torch.Tensor, parameter: str, expert: int) -> torch.Tensor:
        matrix = getattr(self._module, parameter)[expert]
        y = x @ matrix if self._module.is_transposed else x @ matrix.T
        return y + getattr(self._module, f"{parameter}_bias")[expert] if self._module.has_bias else y
