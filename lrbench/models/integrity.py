"""The very modules and tensors of a model, by which it is known that it is still the one that was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lrbench.errors import ModelError, SpoiltModelError
from lrbench.models.load import weight_hash


class Originals:
    """Remembers which objects a model is made of, and the version counters of its weights.

    To look costs no pass over the numbers. What is seen: a module, parameter or persistent buffer that is another
    object, or that torch knows to have been written to. What is not: writing past torch (`.data`, a shared array);
    that changes the hash (`lrbench.models.load.weight_hash`).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = [(name, module, dict(module._modules)) for name, module in model.named_modules()]
        self._tensors = [(name, module, _tensors(module)) for name, module, _ in self._modules]
        self._places = [(module, dict(module._parameters), dict(module._buffers)) for _, module, _ in self._modules]
        self._versions = self._counted()

    def spoilt(self) -> str | None:
        """What is not what it was, in words; None where nothing is seen."""
        for where, module, children in self._modules:
            for name in [*children, *module._modules]:
                if module._modules.get(name) is not children.get(name):
                    return f"{_joined(where, name)} was replaced"
        for where, module, tensors in self._tensors:
            now = _tensors(module)
            for name in [*tensors, *now]:
                tensor = tensors.get(name)
                if now.get(name) is not tensor:
                    return f"{_joined(where, name)} was replaced"
                if tensor is not None and self._versions[id(tensor)] != tensor._version:
                    return f"{_joined(where, name)} was written to"
        return None

    def check(self, cell: str, when: str) -> None:
        """Raises SpoiltModelError, which names the cell, where the model is seen to be another."""
        found = self.spoilt()
        if found is not None:
            raise _of_cell(SpoiltModelError(f"{found} {when}"), cell)

    @contextmanager
    def guarded(self, cell: str) -> Iterator[None]:
        """Holds the model to be the same before and after what one cell does to it.

        Raises:
            SpoiltModelError: it is not, or what was done could not be undone; names the cell.
        """
        self.check(cell, "before the cell was scored")
        try:
            yield
        except SpoiltModelError as error:
            raise _of_cell(error, cell) from None
        self.check(cell, "while the cell was scored")

    @torch.no_grad()
    def restore(self, fresh: nn.Module, expected: str) -> None:
        """Puts every object back in its place, and the numbers of a model just loaded into it.

        Args:
            fresh: the same model, loaded again; anywhere.
            expected: what its `weight_hash` must be.

        Raises:
            ModelError: it is another model by now.
        """
        for _, module, children in self._modules:
            module._modules.clear()
            module._modules.update(children)
        for module, parameters, buffers in self._places:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.update({name: buffers[name] for name in buffers.keys() & _tensors(module).keys()})
        values = fresh.state_dict()
        for name, tensor in self._model.state_dict().items():
            if name not in values or values[name].shape != tensor.shape:
                raise ModelError(f"{name}: the checkpoint no longer holds it as it was; bring the run's model back")
            tensor.copy_(values[name])
        if weight_hash(self._model) != expected:
            raise ModelError("the checkpoint's weights are not what they were when the run began; bring them back")
        self._versions = self._counted()

    def _counted(self) -> dict[int, int]:
        found = (tensor for _, _, tensors in self._tensors for tensor in tensors.values() if tensor is not None)
        return {id(tensor): tensor._version for tensor in found}


def _of_cell(error: SpoiltModelError, cell: str) -> SpoiltModelError:
    error.cell = cell
    return error


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _tensors(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """A module's own parameters and those of its buffers that belong to a checkpoint."""
    kept = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}
    return {**module._parameters, **kept}
