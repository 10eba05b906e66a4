"""Collects statistics of the inputs of each weight in one forward pass over the calibration windows, block by block.

All windows go through a block before the next one, so that only one block's sums are in memory. If a check finds that
the model's blocks cannot be run one by one, complete passes are made, each for as many weights as memory allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lrbench.evaluation.sweep.batches import Batch
from lrbench.evaluation.sweep.partial_forward import PartialForward
from lrbench.evaluation.sweep.sizes import free_bytes
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reduction.calibration.experts import Routed
from lrbench.reduction.calibration.moments import Moments, bytes_of
from lrbench.system.text import one_line

TOKENS = 4096  # per forward pass; fixed, since other batch sizes round differently
_MEMORY_FRACTION = 1 / 4  # of the free memory, for sums and for hidden states each


@dataclass(frozen=True)
class Input:
    """An input shared by one or several weights.

    Attributes:
        name: of the first weight that takes it.
        layer: the decoder block; None outside the blocks.
        features: the input's size.
        weights: all weights that take it, in the model's order.
    """

    name: str
    layer: int | None
    features: int
    weights: tuple[str, ...]
    module: nn.Module = field(repr=False)
    expert: int | None = None
    parameter: str = "weight"

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return getattr(self.module, self.parameter).device


@dataclass(frozen=True)
class Survey:
    """The inputs of a model's weights, observed on one window.

    Attributes:
        inputs: all observed inputs, by name.
        input_of: weight -> name of its input.
        refused: weight -> why its inputs cannot be observed.
    """

    inputs: dict[str, Input]
    input_of: dict[str, str]
    refused: dict[str, str]


@dataclass(frozen=True)
class Collected:
    """The sums over one input, or the reason why there are none."""

    input: Input
    moments: Moments | None
    seconds: float
    failure: str = ""


class Activations:
    """Collects statistics of a model's inputs.

    Args:
        model: with its original weights.
        windows: (samples, length) token ids.
        notify: called with one line if the blocks cannot be run one by one.

    Attributes:
        survey: which weights take which inputs.
        whole: whether every pass must go through the complete model.
    """

    def __init__(
        self, model: PreTrainedModel, inventory: Inventory, windows: torch.Tensor, notify: Callable[[str], None]
    ) -> None:
        started = time.perf_counter()
        self._device = model.device
        self._passes = PartialForward(model, inventory.blocks)
        rows = max(1, TOKENS // windows.shape[1])
        self._batches = [_batch(part.to(self._device)) for part in windows.split(rows)]
        first = _batch(windows[:1].to(self._device))
        with _surveying(inventory) as (survey, problems):
            self._passes.record(first)
        self.survey = survey()
        self.survey.refused.update(problems)
        self.whole = not self._blocks_run_alone(first)
        if self.whole:
            notify("calibration: this model's blocks cannot be run one by one; making complete passes")
        self._overhead = time.perf_counter() - started

    def collect(self, kinds: Mapping[str, frozenset[str]]) -> Iterator[Collected]:
        """Yields the statistics of inputs block by block.

        The seconds of a pass are divided equally among its inputs, those of the setup among all inputs.

        Args:
            kinds: name of an input -> kinds of statistics.
        """
        inputs = [self.survey.inputs[name] for name in self.survey.inputs if name in kinds]
        common, self._overhead = self._overhead / max(1, len(inputs)), 0.0
        if self.whole:
            for group in self._groups(inputs, kinds):
                yield from self._pass(group, kinds, common, self._complete_pass)
        else:
            yield from self._by_blocks(inputs, kinds, common)

    def _by_blocks(
        self, inputs: list[Input], kinds: Mapping[str, frozenset[str]], common: float
    ) -> Iterator[Collected]:
        states: list[torch.Tensor | None] = [None] * len(self._batches)
        outside = [entry for entry in inputs if entry.layer is None]
        last = len(self._passes.blocks) - 1 if outside else max((entry.layer or 0 for entry in inputs), default=-1)
        idle = 0.0  # seconds of blocks without requested inputs, charged to the next ones
        for block in range(last + 1):
            groups = self._groups([entry for entry in inputs if entry.layer == block], kinds) or [[]]
            for number, group in enumerate(groups, 1):
                moves_on = number == len(groups)

                def step(index: int, batch: Batch, block: int = block, moves_on: bool = moves_on) -> None:
                    out = self._passes.states(batch, block, self._on_device(states[index]), block + 1)
                    if moves_on:
                        states[index] = self._stored(out)

                started = time.perf_counter()
                yield from self._pass(group, kinds, common + idle / max(1, len(group)), step)
                idle = 0.0 if group else idle + time.perf_counter() - started
        blocks = len(self._passes.blocks)
        for group in self._groups(outside, kinds):

            def end(index: int, batch: Batch) -> None:
                self._passes.head_inputs(batch, blocks, self._on_device(states[index]))

            yield from self._pass(group, kinds, common + idle / len(group), end)
            idle = 0.0

    def _complete_pass(self, index: int, batch: Batch) -> None:
        self._passes.head_inputs(batch, 0, None)

    def _pass(
        self,
        group: Sequence[Input],
        kinds: Mapping[str, frozenset[str]],
        common: float,
        step: Callable[[int, Batch], None],
    ) -> Iterator[Collected]:
        """Runs one step on all windows and sums over the inputs of `group`."""
        started = time.perf_counter()
        sums = {entry.name: Moments(entry.features, kinds[entry.name], entry.device) for entry in group}
        failures: dict[str, str] = {}
        with _listening(group, sums, failures):
            for index, batch in enumerate(self._batches):
                step(index, batch)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = common + (time.perf_counter() - started) / max(1, len(group))
        for entry in group:
            failure = failures.get(entry.name, "")
            moments = sums.pop(entry.name)
            yield Collected(entry, None if failure else moments, seconds, failure)

    def _groups(self, inputs: Sequence[Input], kinds: Mapping[str, frozenset[str]]) -> list[list[Input]]:
        """Groups inputs so that each group's sums fit into memory; at least one input per group."""
        budget = free_bytes(self._device) * _MEMORY_FRACTION
        groups: list[list[Input]] = []
        used = 0.0
        for entry in inputs:
            size = sum(bytes_of(kind, entry.features) for kind in kinds[entry.name])
            if not groups or used + size > budget:
                groups.append([])
                used = 0
            groups[-1].append(entry)
            used += size
        return groups

    def _stored(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states, moved to the CPU if those of all windows do not fit on the GPU."""
        size = states.numel() * states.element_size() * len(self._batches)
        if states.is_cuda and size > free_bytes(states.device) * _MEMORY_FRACTION:
            return states.cpu()
        return states

    def _on_device(self, states: torch.Tensor | None) -> torch.Tensor | None:
        return states if states is None else states.to(self._device)

    def _blocks_run_alone(self, first: Batch) -> bool:
        """Whether running the blocks one by one gives the same input of the head."""
        expected = self._passes.head_inputs(first, 0, None)
        states: torch.Tensor | None = None
        try:
            for block in range(len(self._passes.blocks)):
                states = self._passes.states(first, block, states, block + 1)
            result = self._passes.head_inputs(first, len(self._passes.blocks), states)
        except Exception:  # a block that depends on another block's side effects may raise anything
            return False
        return bool((result - expected).abs().max() <= 1e-4 * expected.abs().max())


def _batch(ids: torch.Tensor) -> Batch:
    none = torch.empty(0, dtype=torch.long, device=ids.device)
    scored = torch.arange(ids.numel(), device=ids.device)
    return Batch(ids, None, None, scored=scored, entries=none, targets=none, owners=none, tokens=ids.numel())


def _entering(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


@contextmanager
def _surveying(inventory: Inventory) -> Iterator[tuple[Callable[[], Survey], dict[str, str]]]:
    """Observes one pass: modules called with the same tensors in the same order share their inputs."""
    holders: dict[int, list[WeightSlot]] = {}
    for slot in inventory.slots:
        if slot.about.role != "embed":
            holders.setdefault(id(slot.module), []).append(slot)
    tensors_of: dict[int, list[int]] = {}
    features: dict[int, int] = {}
    numbers: dict[tuple[int, int], int] = {}
    alive: list[torch.Tensor] = []  # keeps ids unique
    count = 0
    problems: dict[str, str] = {}

    def observe(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal count
        x = _entering(args, kwargs)
        if x is None:
            return
        place = (id(x), x._version)
        if place not in numbers:
            numbers[place] = count = count + 1
            alive.append(x)
        tensors_of.setdefault(id(module), []).append(numbers[place])
        features[id(module)] = x.shape[-1]

    def routed(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        try:
            Routed(module, args, kwargs).check(output)
        except (ValueError, AttributeError, RuntimeError) as error:
            for slot in holders[id(module)]:
                problems[slot.name] = f"its experts' inputs cannot be derived from the routing: {one_line(error)}"

    def leave(*_: Any) -> None:
        numbers.clear()
        alive.clear()

    hooks = [block.register_forward_hook(leave) for block in inventory.blocks]
    for slots in holders.values():
        module = slots[0].module
        hooks.append(module.register_forward_pre_hook(observe, with_kwargs=True))
        if slots[0].tensor().ndim == 3:
            hooks.append(module.register_forward_hook(routed, with_kwargs=True))
    try:
        yield lambda: _grouped(holders, tensors_of, features), problems
    finally:
        for hook in hooks:
            hook.remove()
        leave()


def _grouped(
    holders: Mapping[int, list[WeightSlot]], tensors_of: Mapping[int, list[int]], features: Mapping[int, int]
) -> Survey:
    survey = Survey({}, {}, {})
    by_input: dict[tuple[Any, ...], list[WeightSlot]] = {}
    for key, slots in holders.items():
        for slot in slots:
            size = slot.about.shape[1]
            expert = slot.layout.expert
            if key not in tensors_of:
                survey.refused[slot.name] = "its module was never called on the calibration text"
            elif expert is not None:
                place = ("expert", key, expert, "down" if slot.parameter == "down_proj" else "up", size)
                by_input.setdefault(place, []).append(slot)
            elif features[key] != size:
                survey.refused[slot.name] = f"its module takes {features[key]} features, and the weight {size}"
            else:
                by_input.setdefault((*tensors_of[key], size), []).append(slot)
    for slots in by_input.values():
        first = slots[0]
        shared_input = Input(
            first.name, first.about.layer, first.about.shape[1], tuple(slot.name for slot in slots), first.module,
            first.layout.expert, first.parameter,
        )  # fmt: skip
        survey.inputs[shared_input.name] = shared_input
        survey.input_of.update(dict.fromkeys(shared_input.weights, shared_input.name))
    return survey


@contextmanager
def _listening(group: Sequence[Input], sums: Mapping[str, Moments], failures: dict[str, str]) -> Iterator[None]:
    """Adds the inputs of `group` to their sums during forward passes."""
    modules: dict[int, list[Input]] = {}
    for entry in group:
        modules.setdefault(id(entry.module), []).append(entry)

    def observe(inputs: list[Input], module: nn.Module, args: Any, kwargs: Any) -> None:
        routed = None
        for entry in inputs:
            try:
                if entry.expert is None:
                    x = _entering(args, kwargs)
                else:
                    routed = routed or Routed(module, args, kwargs)
                    x = routed.entering(entry.expert, entry.parameter)
                if x is not None:
                    sums[entry.name].add(x)
            except ValueError as error:
                failures[entry.name] = one_line(error)

    def hook(inputs: list[Input]) -> Callable[..., None]:
        return lambda module, args, kwargs: observe(inputs, module, args, kwargs)

    hooks = [inputs[0].module.register_forward_pre_hook(hook(inputs), with_kwargs=True) for inputs in modules.values()]
    try:
        yield
    finally:
        for registered in hooks:
            registered.remove()
