"""One forward pass over the calibration windows: statistics of what enters each weight, a block at a time.

All windows go through a block before any goes through the next, so that only one block's sums are in memory. The blocks
below stand aside and return what they returned; a model that does not allow that is told by a check, and then goes
through whole passes, each for as many weights as memory allows.
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

TOKENS = 4096  # of a forward pass; fixed, since other batches would round otherwise
_SHARE = 1 / 4  # of free memory, for sums and for hidden states each


@dataclass(frozen=True)
class Input:
    """What enters one or several weights.

    Attributes:
        name: of the first weight that it enters.
        layer: the decoder block; None outside.
        features: its size.
        weights: all that it enters, in the model's order.
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
        """Where it is."""
        return getattr(self.module, self.parameter).device


@dataclass(frozen=True)
class Survey:
    """What one window shows of a model's inputs.

    Attributes:
        inputs: all that were seen, by name.
        entered: weight -> the input that enters it.
        refused: weight -> why its inputs cannot be had.
    """

    inputs: dict[str, Input]
    entered: dict[str, str]
    refused: dict[str, str]


@dataclass(frozen=True)
class Collected:
    """The sums over one input, or why there are none."""

    input: Input
    moments: Moments | None
    seconds: float
    failure: str = ""


class Activations:
    """Collects statistics of a model's inputs.

    Args:
        model: as it was loaded; nothing edited.
        windows: (samples, length) token ids.
        notify: told in one line where a model does not allow a trick.

    Attributes:
        survey: which weights take which inputs.
        whole: whether every pass must be a whole one.
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
        self.whole = not self._may_stand_aside(first)
        if self.whole:
            notify("calibration: this model's blocks cannot stand aside; each pass is a whole one")
        self._overhead = time.perf_counter() - started

    def collect(self, wanted: Mapping[str, frozenset[str]]) -> Iterator[Collected]:
        """Statistics of inputs as they are done, block by block.

        Seconds of a pass are shared equally by the statistics that it gives; what serves them all is shared by all.

        Args:
            wanted: name of an input -> kinds.
        """
        inputs = [self.survey.inputs[name] for name in self.survey.inputs if name in wanted]
        common, self._overhead = self._overhead / max(1, len(inputs)), 0.0
        if self.whole:
            for group in self._groups(inputs, wanted):
                yield from self._pass(group, wanted, common, self._whole)
        else:
            yield from self._by_blocks(inputs, wanted, common)

    def _by_blocks(
        self, inputs: list[Input], wanted: Mapping[str, frozenset[str]], common: float
    ) -> Iterator[Collected]:
        states: list[torch.Tensor | None] = [None] * len(self._batches)
        outside = [one for one in inputs if one.layer is None]
        last = len(self._passes.blocks) - 1 if outside else max((one.layer or 0 for one in inputs), default=-1)
        idle = 0.0  # of blocks in which nothing is wanted, charged to what comes next
        for block in range(last + 1):
            groups = self._groups([one for one in inputs if one.layer == block], wanted) or [[]]
            for number, group in enumerate(groups, 1):
                moves_on = number == len(groups)

                def step(index: int, batch: Batch, block: int = block, moves_on: bool = moves_on) -> None:
                    out = self._passes.states(batch, block, self._here(states[index]), block + 1)
                    if moves_on:
                        states[index] = self._kept(out)

                started = time.perf_counter()
                yield from self._pass(group, wanted, common + idle / max(1, len(group)), step)
                idle = 0.0 if group else idle + time.perf_counter() - started
        blocks = len(self._passes.blocks)
        for group in self._groups(outside, wanted):

            def end(index: int, batch: Batch) -> None:
                self._passes.asked(batch, blocks, self._here(states[index]))

            yield from self._pass(group, wanted, common + idle / len(group), end)
            idle = 0.0

    def _whole(self, index: int, batch: Batch) -> None:
        self._passes.asked(batch, 0, None)

    def _pass(
        self,
        group: Sequence[Input],
        wanted: Mapping[str, frozenset[str]],
        common: float,
        step: Callable[[int, Batch], None],
    ) -> Iterator[Collected]:
        """All windows through one step, with sums over the inputs of `group`."""
        started = time.perf_counter()
        sums = {one.name: Moments(one.features, wanted[one.name], one.device) for one in group}
        failures: dict[str, str] = {}
        with _listening(group, sums, failures):
            for index, batch in enumerate(self._batches):
                step(index, batch)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = common + (time.perf_counter() - started) / max(1, len(group))
        for one in group:
            failure = failures.get(one.name, "")
            moments = sums.pop(one.name)
            yield Collected(one, None if failure else moments, seconds, failure)

    def _groups(self, inputs: Sequence[Input], wanted: Mapping[str, frozenset[str]]) -> list[list[Input]]:
        """Inputs whose sums fit into memory together; one at least in each."""
        budget = free_bytes(self._device) * _SHARE
        groups: list[list[Input]] = []
        used = 0.0
        for one in inputs:
            size = sum(bytes_of(kind, one.features) for kind in wanted[one.name])
            if not groups or used + size > budget:
                groups.append([])
                used = 0
            groups[-1].append(one)
            used += size
        return groups

    def _kept(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states where there is room for those of all windows."""
        size = states.numel() * states.element_size() * len(self._batches)
        if states.is_cuda and size > free_bytes(states.device) * _SHARE:
            return states.cpu()
        return states

    def _here(self, states: torch.Tensor | None) -> torch.Tensor | None:
        return states if states is None else states.to(self._device)

    def _may_stand_aside(self, first: Batch) -> bool:
        """Whether blocks can be run one by one: what enters the head is the same."""
        expected = self._passes.asked(first, 0, None)
        states: torch.Tensor | None = None
        try:
            for block in range(len(self._passes.blocks)):
                states = self._passes.states(first, block, states, block + 1)
            found = self._passes.asked(first, len(self._passes.blocks), states)
        except Exception:  # a block that misses what another one leaves behind may raise anything
            return False
        return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


def _batch(ids: torch.Tensor) -> Batch:
    none = torch.empty(0, dtype=torch.long, device=ids.device)
    asked = torch.arange(ids.numel(), device=ids.device)
    return Batch(ids, None, None, asked=asked, entries=none, targets=none, owners=none, tokens=ids.numel())


def _entering(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


@contextmanager
def _surveying(inventory: Inventory) -> Iterator[tuple[Callable[[], Survey], dict[str, str]]]:
    """Watches one pass: modules that are given the same tensors, in the same order, share their inputs."""
    holders: dict[int, list[WeightSlot]] = {}
    for slot in inventory.slots:
        if slot.about.role != "embed":
            holders.setdefault(id(slot.module), []).append(slot)
    given: dict[int, list[int]] = {}
    features: dict[int, int] = {}
    numbers: dict[tuple[int, int], int] = {}
    kept: list[torch.Tensor] = []  # no id is used twice while its tensor lives
    count = 0
    problems: dict[str, str] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal count
        x = _entering(args, kwargs)
        if x is None:
            return
        place = (id(x), x._version)
        if place not in numbers:
            numbers[place] = count = count + 1
            kept.append(x)
        given.setdefault(id(module), []).append(numbers[place])
        features[id(module)] = x.shape[-1]

    def routed(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        try:
            Routed(module, args, kwargs).check(output)
        except (ValueError, AttributeError, RuntimeError) as error:
            for slot in holders[id(module)]:
                problems[slot.name] = f"its experts' inputs cannot be told from the routing: {one_line(error)}"

    def leave(*_: Any) -> None:
        numbers.clear()
        kept.clear()

    hooks = [block.register_forward_hook(leave) for block in inventory.blocks]
    for slots in holders.values():
        module = slots[0].module
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if slots[0].tensor().ndim == 3:
            hooks.append(module.register_forward_hook(routed, with_kwargs=True))
    try:
        yield lambda: _grouped(holders, given, features), problems
    finally:
        for hook in hooks:
            hook.remove()
        leave()


def _grouped(
    holders: Mapping[int, list[WeightSlot]], given: Mapping[int, list[int]], features: Mapping[int, int]
) -> Survey:
    survey = Survey({}, {}, {})
    same: dict[tuple[Any, ...], list[WeightSlot]] = {}
    for key, slots in holders.items():
        for slot in slots:
            size = slot.about.shape[1]
            expert = slot.layout.expert
            if key not in given:
                survey.refused[slot.name] = "its module was never called on the calibration text"
            elif expert is not None:
                place = ("expert", key, expert, "down" if slot.parameter == "down_proj" else "up", size)
                same.setdefault(place, []).append(slot)
            elif features[key] != size:
                survey.refused[slot.name] = f"its module takes {features[key]} features, and the weight {size}"
            else:
                same.setdefault((*given[key], size), []).append(slot)
    for slots in same.values():
        first = slots[0]
        one = Input(
            first.name, first.about.layer, first.about.shape[1], tuple(slot.name for slot in slots), first.module,
            first.layout.expert, first.parameter,
        )  # fmt: skip
        survey.inputs[one.name] = one
        survey.entered.update(dict.fromkeys(one.weights, one.name))
    return survey


@contextmanager
def _listening(group: Sequence[Input], sums: Mapping[str, Moments], failures: dict[str, str]) -> Iterator[None]:
    """Adds what enters the modules of `group` to its sums."""
    modules: dict[int, list[Input]] = {}
    for one in group:
        modules.setdefault(id(one.module), []).append(one)

    def hear(inputs: list[Input], module: nn.Module, args: Any, kwargs: Any) -> None:
        routed = None
        for one in inputs:
            try:
                if one.expert is None:
                    x = _entering(args, kwargs)
                else:
                    routed = routed or Routed(module, args, kwargs)
                    x = routed.entering(one.expert, one.parameter)
                if x is not None:
                    sums[one.name].add(x)
            except ValueError as error:
                failures[one.name] = one_line(error)

    def hook(inputs: list[Input]) -> Callable[..., None]:
        return lambda module, args, kwargs: hear(inputs, module, args, kwargs)

    hooks = [inputs[0].module.register_forward_pre_hook(hook(inputs), with_kwargs=True) for inputs in modules.values()]
    try:
        yield
    finally:
        for registered in hooks:
            registered.remove()
