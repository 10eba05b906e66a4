"""Replays the modules of the first edited block that do not depend on the edit, for all cells with the same edit.

The block is known only from a trace of one pass: which module called which, and which operation read which tensor. A
module that computed nothing from an edited parameter does not depend on the edit, so it is skipped and returns its
recorded output. Outputs that nothing reads any more are not recorded. A module that returns the output of the edited
module within it unchanged is skipped as a whole: the edited module is called with its recorded input replacing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lrbench.evaluation.sweep.forward_patching import (
    Call,
    Forward,
    Patch,
    Trace,
    leading,
    replacing,
    returning,
    storages,
)


@dataclass(frozen=True)
class SkippedModule:
    """A module that is skipped, and which of its outputs are read and so must be recorded."""

    module: nn.Module
    read: tuple[bool, ...]


@dataclass(frozen=True)
class Recipe:
    """Which modules of a block are skipped.

    Attributes:
        skipped: modules that return their recorded outputs.
        enclosing, edited: `edited` is called with its recorded input in place of `enclosing`.
        bytes_per_token: size of the recorded tensors in the traced pass.
    """

    skipped: tuple[SkippedModule, ...]
    enclosing: SkippedModule | None
    edited: nn.Module | None
    bytes_per_token: float


@dataclass
class Memo:
    """The recorded tensors of one batch.

    Attributes:
        answers: the outputs of the skipped modules.
        args, kwargs: the arguments of the edited module, if it replaces its enclosing module.
        rest: the enclosing module's further outputs; None if it returned only that of the edited module.
    """

    recipe: Recipe
    answers: dict[nn.Module, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    rest: tuple[Any, ...] | None = None

    @property
    def bytes(self) -> int:
        """Bytes held."""
        held: dict[int, int] = {}
        for tensor in _tensors((list(self.answers.values()), self.args, self.kwargs)):
            if tensor.numel() and any(tensor.stride()):
                held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return sum(held.values())

    def inner(self) -> list[Patch]:
        """The patches that skip modules."""
        patches = [replacing(module, returning(answer)) for module, answer in self.answers.items()]
        enclosing, edited = self.recipe.enclosing, self.recipe.edited
        if enclosing is None or edited is None:
            return patches

        def alone(*_: Any, **__: Any) -> Any:
            output = edited(*self.args, **self.kwargs)
            return (output, *self.rest) if self.rest is not None else output

        return [*patches, replacing(enclosing.module, alone)]


class Recording:
    """Records a memo during a pass that computes everything.

    Other patches of a module are applied between the `inner` and the `outer` ones.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._memo = Memo(recipe)
        self._times: Counter[nn.Module] = Counter()
        self._versions: list[tuple[torch.Tensor, int]] = []
        self._edited_output: torch.Tensor | None = None
        self._returned_unchanged = recipe.enclosing is None

    def inner(self) -> list[Patch]:
        """The patches that record the outputs of the modules to be skipped."""
        recipe = self._memo.recipe
        patches = [(skipped_module.module, self._recording_output(skipped_module)) for skipped_module in recipe.skipped]
        if recipe.enclosing is not None:
            patches.append((recipe.enclosing.module, self._recording_enclosing(recipe.enclosing)))
        return patches

    def outer(self) -> list[Patch]:
        """The patches that record the arguments of the edited module."""
        edited = self._memo.recipe.edited
        if edited is None:
            return []

        def change(forward: Forward) -> Forward:
            def recorded(*args: Any, **kwargs: Any) -> Any:
                self._times[edited] += 1
                self._memo.args, self._memo.kwargs = args, kwargs
                self._watch((args, kwargs))
                output = forward(*args, **kwargs)
                self._edited_output = leading(output)
                return output

            return recorded

        return [(edited, change)]

    def memo(self) -> Memo | None:
        """The recorded memo; None if this pass called modules differently from the traced one."""
        once = all(self._times[module] == 1 for module in _modules(self._memo.recipe))
        untouched = all(tensor._version == version for tensor, version in self._versions)
        return self._memo if once and untouched and self._returned_unchanged else None

    def _recording_output(self, skipped_module: SkippedModule) -> Callable[[Forward], Forward]:
        def change(forward: Forward) -> Forward:
            def recorded(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                self._times[skipped_module.module] += 1
                self._memo.answers[skipped_module.module] = kept = _only_read(output, skipped_module.read)
                self._watch(kept)
                return output

            return recorded

        return change

    def _recording_enclosing(self, skipped_module: SkippedModule) -> Callable[[Forward], Forward]:
        def change(forward: Forward) -> Forward:
            def recorded(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                self._times[skipped_module.module] += 1
                self._returned_unchanged = leading(output) is self._edited_output and self._edited_output is not None
                if isinstance(output, tuple):
                    self._memo.rest = tuple(_only_read(output, skipped_module.read)[1:])
                return output

            return recorded

        return change

    def _watch(self, tree: Any) -> None:
        self._versions += [(tensor, tensor._version) for tensor in _tensors(tree)]


def recipes(trace: Trace, block: nn.Module, edited: Collection[nn.Module], tokens: int) -> list[Recipe]:
    """The possible recipes, largest first: all skippable modules, then only direct children of the block; or none.

    Args:
        trace: of a pass through the block that followed all its modules.
        edited: the edited modules in the block.
        tokens: the number of tokens in the pass.
    """
    whole = next((call for call in trace.calls if call.module is block and call.ended is not None), None)
    calls = [call for call in trace.calls if call.module in edited]
    if whole is None or {call.module for call in calls} != set(edited):
        return []  # a parameter used without a call of its module may be used anywhere
    first = calls[0]
    chain = [first]
    while chain[0] is not whole:
        parent = chain[0].parent
        if parent is None:
            return []
        chain.insert(0, parent)
    times = Counter(call.module for call in trace.calls)
    edit = trace.depending(parameter for module in edited for parameter in module.parameters(recurse=False))
    touched = [value.call for value in trace.operations if value.call is not None and (value.read | value.made) & edit]
    returning_edit = [call for call in trace.calls if storages(call.output) & edit]
    dependent = {ancestor for call in {*touched, *returning_edit, *calls} for ancestor in call.upwards()}

    def skipped(parents: Sequence[Call]) -> list[Call]:
        return [
            call for call in trace.calls
            if call.ended is not None and call not in dependent and times[call.module] == 1
            and any(call.parent is parent for parent in parents) and _returns_tensors(call.output)
        ]  # fmt: skip

    candidates: list[Recipe | None] = []
    enclosing = next((i for i in range(1, len(chain) - 1) if _returns_unchanged(chain[i], first, calls, times)), None)
    if enclosing is not None and not storages((first.args, first.kwargs)) & edit:
        candidates.append(_recipe(trace, whole, skipped(chain[:enclosing]), chain[enclosing], first, tokens))
    if not any(candidates):
        candidates.append(_recipe(trace, whole, skipped(chain), None, first, tokens))
    outermost = [call for call in skipped(chain[:1]) if _costly(call.module)]
    candidates.append(_recipe(trace, whole, outermost, None, first, tokens))
    made = [recipe for recipe in candidates if recipe is not None]
    return made if len(made) < 2 or made[0].bytes_per_token > made[1].bytes_per_token else made[:1]


def _recipe(
    trace: Trace, whole: Call, skipped: list[Call], enclosing: Call | None, first: Call, tokens: int
) -> Recipe | None:
    """Makes a recipe; None if it would save nothing, or would leave an output unset that is read."""

    def computed(call: Call | None) -> bool:
        """Whether a call's own operations are still executed."""
        if call is None or call.within(first):
            return True
        return not any(call.within(gone) for gone in (*skipped, *((enclosing,) if enclosing else ())))

    final = storages(leading(whole.output))  # the only output of the block that later blocks read

    def read(tensor: Any, since: int | None) -> bool:
        """Whether an operation that is still executed reads the tensor after it was returned."""
        tensor_storages = storages(tensor)
        return bool(tensor_storages & final) or any(
            value.when > (since or 0) and tensor_storages & value.read and computed(value.call)
            for value in trace.operations
        )

    def reads(call: Call) -> tuple[bool, ...]:
        return tuple(read(value, call.ended) for value in _several(call.output))

    if enclosing is not None and any(reads(enclosing)[1:]):
        return None
    if not any(_costly(call.module) for call in skipped) and enclosing is None:
        return None
    kept = [SkippedModule(call.module, reads(call)) for call in skipped]
    held: list[Any] = [_only_read(call.output, value.read) for call, value in zip(skipped, kept, strict=True)]
    around = None
    if enclosing is not None:
        around = SkippedModule(enclosing.module, (True,) + (False,) * (len(_several(enclosing.output)) - 1))
        held += [first.args, first.kwargs]
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(held) if any(t.stride())}
    edited = first.module if enclosing is not None else None
    return Recipe(tuple(kept), around, edited, sum(sizes.values()) / tokens)


def _returns_unchanged(call: Call, first: Call, edited: Sequence[Call], times: Counter[nn.Module]) -> bool:
    """Whether a call returned the output of the edited module within it unchanged."""
    return (
        times[call.module] == times[first.module] == 1
        and _returns_tensors(call.output)
        and leading(call.output) is not None
        and leading(call.output) is first.output
        and call.version == first.version
        and not any(other is not first and other.within(call) for other in edited)
    )


def _modules(recipe: Recipe) -> list[nn.Module]:
    modules = [skipped_module.module for skipped_module in recipe.skipped]
    if recipe.enclosing is not None and recipe.edited is not None:
        modules += [recipe.enclosing.module, recipe.edited]
    return modules


def _costly(module: nn.Module) -> bool:
    """Whether the module multiplies by a matrix; anything cheaper is not worth recording."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _several(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _returns_tensors(output: Any) -> bool:
    values = _several(output)
    plain = type(output) is tuple or isinstance(output, torch.Tensor)
    return plain and all(value is None or isinstance(value, torch.Tensor) for value in values)


def _only_read(output: Any, read: tuple[bool, ...]) -> Any:
    """An output in which unread tensors are replaced by placeholders of the same shape that take no memory."""
    kept = tuple(value if wanted else _placeholder(value) for value, wanted in zip(_several(output), read, strict=True))
    return kept if isinstance(output, tuple) else kept[0]


def _placeholder(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.full(
        (), float("nan") if value.is_floating_point() else 0, dtype=value.dtype, device=value.device
    ).expand(value.shape)


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [tensor for value in tree for tensor in _tensors(value)] if isinstance(tree, (tuple, list)) else []
