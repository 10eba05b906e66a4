"""Statistics of the loss's gradients: one forward and backward pass per calibration window.

fisher                  Σ_i E[(∂loss/∂W_ij)²] of the inputs j, from the gradients of the weights
output_gradient_moment  E[g gᵀ], g the gradient in the weight's output, token by token
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluation.sweep.sizes import free_bytes
from lrbench.models.slots import WeightSlot
from lrbench.reduction.calibration.experts import Routed
from lrbench.reduction.calibration.labels import Labels
from lrbench.reduction.calibration.moments import Moments, bytes_of
from lrbench.system.text import one_line

_MEMORY_FRACTION = 1 / 4  # of the free memory, for sums
_NO_LABELS = Labels()


def fisher(
    model: PreTrainedModel, slots: Sequence[WeightSlot], windows: torch.Tensor, labels: Labels = _NO_LABELS
) -> tuple[Mapping[str, torch.Tensor], float]:
    """F_j = Σ_i E[(∂loss/∂W_ij)²] for the inputs j of every slot, averaged over windows.

    The loss is the mean negative log-likelihood of a window's labels. Each window has its own backward pass, so that
    gradients of single samples are squared. A gradient is freed as soon as it is summed.

    Args:
        model: with its original weights; left unchanged.
        slots: none of them on a parameter that several modules use.
        windows: (samples, length) token ids.

    Returns:
        Slot's name -> (in,) float32 on the CPU; and the seconds per slot.
    """
    started = time.perf_counter()
    sums = {
        slot.name: torch.zeros(slot.about.shape[1], dtype=torch.float64, device=slot.tensor().device) for slot in slots
    }
    parameters = {id(slot.tensor()): slot.tensor() for slot in slots}

    def accumulate(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is None:
            return
        for slot in slots:
            if slot.tensor() is parameter:
                part = slot.layout.read(gradient)  # (out, in)
                sums[slot.name] += part.float().square().sum(0, dtype=torch.float64)

    with _differentiated(model, parameters.values()):
        hooks = [parameter.register_post_accumulate_grad_hook(accumulate) for parameter in parameters.values()]
        try:
            for number, window in enumerate(windows):
                loss = labels.loss(model, window, number) / max(1, len(window) - 1)
                if loss.requires_grad:  # else it depends on none of the slots
                    loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
    means = {name: (total / len(windows)).float().cpu() for name, total in sums.items()}
    return means, (time.perf_counter() - started) / max(1, len(slots))


@dataclass(frozen=True)
class OutputGradients:
    """The sums over one slot's output gradients, or the reason why there are none.

    Attributes:
        moments: of the gradient of a window's summed loss, over all tokens that reached the weight.
    """

    slot: WeightSlot
    moments: Moments | None
    seconds: float
    failure: str = ""


def output_gradients(
    model: PreTrainedModel, slots: Sequence[WeightSlot], windows: torch.Tensor, labels: Labels = _NO_LABELS
) -> Iterator[OutputGradients]:
    """Sums g gᵀ over tokens for each slot, with g = ∂loss/∂y of its output y and the summed loss of a window.

    Gradients flow from the loss to the embeddings' output, and none of a weight is computed. If the sums of all slots
    would take more than a quarter of the free memory, the windows are passed over once per group of slots.

    Args:
        model: with its original weights; left unchanged.
        slots: no embedding, whose input is not differentiable.
        windows: (samples, length) token ids.
    """
    for group in _groups(slots, free_bytes(model.device) * _MEMORY_FRACTION):
        started = time.perf_counter()
        sums = {slot.name: Moments(slot.about.shape[0], ["second_moment"], slot.tensor().device) for slot in group}
        failures: dict[str, str] = {}
        with _differentiated(model), _listening(group, sums, failures):
            for number, window in enumerate(windows):
                loss = labels.loss(model, window, number)
                if not loss.requires_grad:
                    failures.update({slot.name: "the model's loss has no gradient" for slot in group})
                    break
                loss.backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds = (time.perf_counter() - started) / len(group)
        for slot in group:
            failure, moments = failures.get(slot.name, ""), sums.pop(slot.name)
            yield OutputGradients(slot, None if failure else moments, seconds, failure)


def _groups(slots: Sequence[WeightSlot], budget: float) -> Iterator[list[WeightSlot]]:
    """Groups slots so that each group's sums fit a budget in bytes; at least one slot per group."""
    group: list[WeightSlot] = []
    used = 0
    for slot in slots:
        size = bytes_of("second_moment", slot.about.shape[0])
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(slot)
        used += size
    if group:
        yield group


@contextmanager
def _differentiated(model: PreTrainedModel, parameters: Any = ()) -> Iterator[None]:
    """Lets gradients flow to `parameters`, or to the embeddings' output if there are none; to no other parameter."""
    wanted = list(parameters)
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def leaf(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_(True).clone()  # no leaf, which a model may not change in place

    hook = None if wanted else model.get_input_embeddings().register_forward_hook(leaf)
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        if hook is not None:
            hook.remove()
        for parameter, required in before.items():
            parameter.requires_grad_(required)
        for parameter in wanted:
            parameter.grad = None


@contextmanager
def _listening(slots: Sequence[WeightSlot], sums: Mapping[str, Moments], failures: dict[str, str]) -> Iterator[None]:
    """Adds the gradients in the slots' outputs to their sums during backward passes."""
    holders: dict[int, list[WeightSlot]] = {}
    for slot in slots:
        holders.setdefault(id(slot.module), []).append(slot)
    checked: set[int] = set()

    def plain(module: nn.Module, output: torch.Tensor) -> None:
        def add(gradient: torch.Tensor) -> None:
            for slot in holders[id(module)]:
                sums[slot.name].add(slot.layout.of_output(gradient))

        output.register_hook(add)

    def experts(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        routed = Routed(module, args, kwargs)
        if id(module) not in checked:
            checked.add(id(module))
            with torch.no_grad():
                routed.check(output)

        def add(gradient: torch.Tensor) -> None:
            for slot in holders[id(module)]:
                if slot.name not in failures:
                    each = routed.gradient(slot.layout.expert or 0, slot.parameter, gradient)
                    sums[slot.name].add(slot.layout.of_output(each))

        output.register_hook(add)

    def observe(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        stacked = holders[id(module)][0].layout.expert is not None
        try:
            if isinstance(output, torch.Tensor) and output.requires_grad:
                if stacked:
                    experts(module, args, kwargs, output)
                else:
                    plain(module, output)
        except (ValueError, AttributeError, RuntimeError) as error:
            for slot in holders[id(module)]:
                failures[slot.name] = f"its output's gradient cannot be observed: {one_line(error)}"

    hooks = [held[0].module.register_forward_hook(observe, with_kwargs=True) for held in holders.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
