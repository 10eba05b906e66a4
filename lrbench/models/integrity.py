"""Detects changes to a loaded model's modules and tensors, and undoes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lrbench.errors import ModelError, SpoiltModelError
from lrbench.models.load import weight_hash


class ModelIntegrity:
    """Records the objects of a model and the version counters of its weights.

    A check reads no weights. It detects a module, parameter or persistent buffer that was replaced or written to by
    torch, but not writes past torch (`.data`, a shared array); these change `lrbench.models.load.weight_hash`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = [(name, module, dict(module._modules)) for name, module in model.named_modules()]
        self._tensors = [(name, module, _tensors(module)) for name, module, _ in self._modules]
        self._owners = [(module, dict(module._parameters), dict(module._buffers)) for _, module, _ in self._modules]
        self._versions = self._current_versions()

    def change(self) -> str | None:
        """A description of the first change; None if there is none."""
        for where, module, children in self._modules:
            for name in [*children, *module._modules]:
                if module._modules.get(name) is not children.get(name):
                    return f"{_joined(where, name)} was replaced"
        for where, module, tensors in self._tensors:
            current = _tensors(module)
            for name in [*tensors, *current]:
                tensor = tensors.get(name)
                if current.get(name) is not tensor:
                    return f"{_joined(where, name)} was replaced"
                if tensor is not None and self._versions[id(tensor)] != tensor._version:
                    return f"{_joined(where, name)} was written to"
        return None

    def check(self, cell: str, when: str) -> None:
        """Raises SpoiltModelError with the cell's name if the model has changed."""
        change = self.change()
        if change is not None:
            raise _of_cell(SpoiltModelError(f"{change} {when}"), cell)

    @contextmanager
    def guarded(self, cell: str) -> Iterator[None]:
        """Checks that the model is unchanged before and after a cell is scored.

        Raises:
            SpoiltModelError: the model has changed, or an edit could not be undone; names the cell.
        """
        self.check(cell, "before the cell was scored")
        try:
            yield
        except SpoiltModelError as error:
            raise _of_cell(error, cell) from None
        self.check(cell, "while the cell was scored")

    @torch.no_grad()
    def restore(self, fresh: nn.Module, expected: str) -> None:
        """Restores all objects, and copies the weights of a freshly loaded model into them.

        Args:
            fresh: the same model, loaded again, on any device.
            expected: the `weight_hash` of the restored model.

        Raises:
            ModelError: the checkpoint has changed.
        """
        for _, module, children in self._modules:
            module._modules.clear()
            module._modules.update(children)
        for module, parameters, buffers in self._owners:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.update({name: buffers[name] for name in buffers.keys() & _tensors(module).keys()})
        values = fresh.state_dict()
        for name, tensor in self._model.state_dict().items():
            if name not in values or values[name].shape != tensor.shape:
                raise ModelError(f"{name}: the checkpoint has changed since the run began; restore it")
            tensor.copy_(values[name])
        if weight_hash(self._model) != expected:
            raise ModelError("the checkpoint's weights have changed since the run began; restore them")
        self._versions = self._current_versions()

    def _current_versions(self) -> dict[int, int]:
        tensors = (tensor for _, _, tensors in self._tensors for tensor in tensors.values() if tensor is not None)
        return {id(tensor): tensor._version for tensor in tensors}


def _of_cell(error: SpoiltModelError, cell: str) -> SpoiltModelError:
    error.cell = cell
    return error


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _tensors(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """A module's own parameters and persistent buffers."""
    kept = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}
    return {**module._parameters, **kept}
