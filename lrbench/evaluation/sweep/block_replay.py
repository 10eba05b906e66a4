"""What the first edited block computes apart from its edited matrices: the same for every cell that edits them.

Nothing is known of the block but one pass through it: which module called which, and which operation read what. A
module in which nothing was computed from an edited parameter cannot depend on the edit: it stands aside and returns
what it returned before. One whose output nothing reads any more need not even be remembered. And a module that hands
on, untouched, what the edited one within it returned is left out as a whole: the edited one is called with the input
that it had.
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
    Change,
    Forward,
    Trace,
    answering,
    instead,
    leading,
    storages,
)


@dataclass(frozen=True)
class Aside:
    """A module that stands aside, and which of the things it returns are read and so must be remembered."""

    module: nn.Module
    read: tuple[bool, ...]


@dataclass(frozen=True)
class Recipe:
    """What of a block stands aside.

    Attributes:
        asides: modules that are not called.
        enclosing, edited: the enclosing module is not called, but the edited one in its place, with its former input.
        bytes_per_token: what has to be remembered, in the pass that was followed.
    """

    asides: tuple[Aside, ...]
    enclosing: Aside | None
    edited: nn.Module | None
    bytes_per_token: float


@dataclass
class Memo:
    """What is remembered of one batch.

    Attributes:
        answers: of the modules that stand aside.
        args, kwargs: what the edited module was called with, where it stands for the one that encloses it.
        rest: what that one returned beside the edited module's output; None where it returned nothing else.
    """

    recipe: Recipe
    answers: dict[nn.Module, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    rest: tuple[Any, ...] | None = None

    @property
    def bytes(self) -> int:
        """What is held."""
        held: dict[int, int] = {}
        for tensor in _tensors((list(self.answers.values()), self.args, self.kwargs)):
            if tensor.numel() and any(tensor.stride()):
                held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return sum(held.values())

    def inner(self) -> list[Change]:
        """The changes that make modules stand aside."""
        changes = [instead(module, answering(answer)) for module, answer in self.answers.items()]
        enclosing, edited = self.recipe.enclosing, self.recipe.edited
        if enclosing is None or edited is None:
            return changes

        def alone(*_: Any, **__: Any) -> Any:
            output = edited(*self.args, **self.kwargs)
            return (output, *self.rest) if self.rest is not None else output

        return [*changes, instead(enclosing.module, alone)]


class Recording:
    """Makes a memo of a pass that computes everything.

    `inner` changes go below, `outer` ones above whatever else wraps a module: the edited module is called from outside.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._memo = Memo(recipe)
        self._times: Counter[nn.Module] = Counter()
        self._versions: list[tuple[torch.Tensor, int]] = []
        self._given: torch.Tensor | None = None
        self._handed_on = recipe.enclosing is None

    def inner(self) -> list[Change]:
        """Notes what the modules that will stand aside return."""
        recipe = self._memo.recipe
        changes = [(aside.module, self._noting(aside)) for aside in recipe.asides]
        if recipe.enclosing is not None:
            changes.append((recipe.enclosing.module, self._enclosing(recipe.enclosing)))
        return changes

    def outer(self) -> list[Change]:
        """Notes with what the edited module is called."""
        edited = self._memo.recipe.edited
        if edited is None:
            return []

        def change(forward: Forward) -> Forward:
            def noted(*args: Any, **kwargs: Any) -> Any:
                self._times[edited] += 1
                self._memo.args, self._memo.kwargs = args, kwargs
                self._watch((args, kwargs))
                output = forward(*args, **kwargs)
                self._given = leading(output)
                return output

            return noted

        return [(edited, change)]

    def memo(self) -> Memo | None:
        """What was remembered; None where this pass did not go as the one did that the recipe was made from."""
        once = all(self._times[module] == 1 for module in _modules(self._memo.recipe))
        untouched = all(tensor._version == version for tensor, version in self._versions)
        return self._memo if once and untouched and self._handed_on else None

    def _noting(self, aside: Aside) -> Callable[[Forward], Forward]:
        def change(forward: Forward) -> Forward:
            def noted(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                self._times[aside.module] += 1
                self._memo.answers[aside.module] = kept = _only_read(output, aside.read)
                self._watch(kept)
                return output

            return noted

        return change

    def _enclosing(self, aside: Aside) -> Callable[[Forward], Forward]:
        def change(forward: Forward) -> Forward:
            def noted(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                self._times[aside.module] += 1
                self._handed_on = leading(output) is self._given and self._given is not None
                if isinstance(output, tuple):
                    self._memo.rest = tuple(_only_read(output, aside.read)[1:])
                return output

            return noted

        return change

    def _watch(self, tree: Any) -> None:
        self._versions += [(tensor, tensor._version) for tensor in _tensors(tree)]


def recipes(trace: Trace, block: nn.Module, edited: Collection[nn.Module], tokens: int) -> list[Recipe]:
    """What may stand aside, the most first: all that can, then only what the block itself calls; perhaps nothing.

    Args:
        trace: of a pass through the block, with all its modules followed.
        edited: modules within the block.
        tokens: that went through.
    """
    whole = next((call for call in trace.calls if call.module is block and call.ended is not None), None)
    calls = [call for call in trace.calls if call.module in edited]
    if whole is None or {call.module for call in calls} != set(edited):
        return []  # a parameter that is used without a call of its module may be used anywhere
    first = calls[0]
    chain = [first]
    while chain[0] is not whole:
        parent = chain[0].parent
        if parent is None:
            return []
        chain.insert(0, parent)
    times = Counter(call.module for call in trace.calls)
    edit = trace.depending(parameter for module in edited for parameter in module.parameters(recurse=False))
    touched = [one.call for one in trace.operations if one.call is not None and (one.read | one.made) & edit]
    handing_on = [call for call in trace.calls if storages(call.output) & edit]
    dependent = {ancestor for call in {*touched, *handing_on, *calls} for ancestor in call.upwards()}

    def asides(parents: Sequence[Call]) -> list[Call]:
        return [
            call for call in trace.calls
            if call.ended is not None and call not in dependent and times[call.module] == 1
            and any(call.parent is parent for parent in parents) and _returns_tensors(call.output)
        ]  # fmt: skip

    found: list[Recipe | None] = []
    enclosing = next((i for i in range(1, len(chain) - 1) if _hands_on(chain[i], first, calls, times)), None)
    if enclosing is not None and not storages((first.args, first.kwargs)) & edit:
        found.append(_recipe(trace, whole, asides(chain[:enclosing]), chain[enclosing], first, tokens))
    if not any(found):
        found.append(_recipe(trace, whole, asides(chain), None, first, tokens))
    outermost = [call for call in asides(chain[:1]) if _costly(call.module)]
    found.append(_recipe(trace, whole, outermost, None, first, tokens))
    made = [recipe for recipe in found if recipe is not None]
    return made if len(made) < 2 or made[0].bytes_per_token > made[1].bytes_per_token else made[:1]


def _recipe(
    trace: Trace, whole: Call, asides: list[Call], enclosing: Call | None, first: Call, tokens: int
) -> Recipe | None:
    """None where nothing worth it stands aside, or where something would be missing."""

    def computed(call: Call | None) -> bool:
        """Whether what a call itself does still happens."""
        if call is None or call.within(first):
            return True
        return not any(call.within(gone) for gone in (*asides, *((enclosing,) if enclosing else ())))

    final = storages(leading(whole.output))  # all that a block which stands aside is known by

    def read(tensor: Any, since: int | None) -> bool:
        """Whether something still reads a tensor after it was returned."""
        own = storages(tensor)
        return bool(own & final) or any(
            one.when > (since or 0) and own & one.read and computed(one.call) for one in trace.operations
        )

    def reads(call: Call) -> tuple[bool, ...]:
        return tuple(read(one, call.ended) for one in _several(call.output))

    if enclosing is not None and any(reads(enclosing)[1:]):
        return None
    if not any(_costly(call.module) for call in asides) and enclosing is None:
        return None
    kept = [Aside(call.module, reads(call)) for call in asides]
    held: list[Any] = [_only_read(call.output, one.read) for call, one in zip(asides, kept, strict=True)]
    around = None
    if enclosing is not None:
        around = Aside(enclosing.module, (True,) + (False,) * (len(_several(enclosing.output)) - 1))
        held += [first.args, first.kwargs]
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(held) if any(t.stride())}
    edited = first.module if enclosing is not None else None
    return Recipe(tuple(kept), around, edited, sum(sizes.values()) / tokens)


def _hands_on(call: Call, first: Call, edited: Sequence[Call], times: Counter[nn.Module]) -> bool:
    """Whether a call returned just what the edited module within it had returned."""
    return (
        times[call.module] == times[first.module] == 1
        and _returns_tensors(call.output)
        and leading(call.output) is not None
        and leading(call.output) is first.output
        and call.version == first.version
        and not any(other is not first and other.within(call) for other in edited)
    )


def _modules(recipe: Recipe) -> list[nn.Module]:
    found = [aside.module for aside in recipe.asides]
    if recipe.enclosing is not None and recipe.edited is not None:
        found += [recipe.enclosing.module, recipe.edited]
    return found


def _costly(module: nn.Module) -> bool:
    """Whether it multiplies by a matrix: anything less is as soon computed as fetched."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _several(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _returns_tensors(output: Any) -> bool:
    several = _several(output)
    plain = type(output) is tuple or isinstance(output, torch.Tensor)
    return plain and all(one is None or isinstance(one, torch.Tensor) for one in several)


def _only_read(output: Any, read: tuple[bool, ...]) -> Any:
    """An output without what nobody reads: there stands something of the same form that takes no memory."""
    kept = tuple(one if wanted else _idle(one) for one, wanted in zip(_several(output), read, strict=True))
    return kept if isinstance(output, tuple) else kept[0]


def _idle(one: Any) -> Any:
    if not isinstance(one, torch.Tensor):
        return one
    return torch.full((), float("nan") if one.is_floating_point() else 0, dtype=one.dtype, device=one.device).expand(
        one.shape
    )


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [tensor for one in tree for tensor in _tensors(one)] if isinstance(tree, (tuple, list)) else []
