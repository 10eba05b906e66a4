"""What a plugin author writes: a `Reducer`, which turns a weight matrix into `Factors` of a given rank.

The least that works is a name and `reduce`:

    class TopColumns(lrbench.Reducer):
        \"""Keep the k columns of W with the largest norm.\"""
        name = "top-columns"

        def reduce(self, weight, rank, context):  # (out, in), k -> Factors
            columns = weight.norm(dim=0).topk(rank).indices
            return lrbench.ColumnSubset(weight[:, columns], columns, in_features=weight.shape[1])

Parameters are annotated class attributes with defaults; every subclass is made a keyword-only frozen dataclass, so
`oversample: int = 8` can be set from a suite and read as `self.oversample`. A string in `Annotated[int, "..."]`
documents the parameter for `lrbench plugins show`; `__post_init__` may raise ValueError on a bad combination.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

from lrbench.reducers.shared_results import Shared

if TYPE_CHECKING:  # torch is slow to import, and `lrbench --help` must not wait for it
    import torch

    from lrbench.reducers.factors import Factors

_T = TypeVar("_T")

#: How a reducer may be called.
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
#: What a reducer may ask for in `needs`, of the inputs x of a slot with W (m, n): `second_moment` E[x xᵀ] (n, n),
#: `absmean` E|x| (n,), and `fisher` Σ_i E[(∂loss/∂W_ij)²] (n,), one number for each input j.
STATISTICS = frozenset({"second_moment", "absmean", "fisher"})
#: What a reducer may promise of itself; `lrbench plugins test` checks each promise.
PROMISES = {
    "exact": "reproduces W at the full rank, and at any rank k >= rank(W)",
    "monotone": "the error never grows with the rank",
    "optimal": "attains the Eckart-Young optimum at every rank",
    "output-optimal": "attains the least E‖W x − Ŵ x‖² of every rank, for the second moment it is given",
    "columns": "the range of the result is spanned by columns of W (ColumnSubset, CUR, column Interpolative)",
    "rows": "the rows of the result are combinations of rows of W (CUR, row Interpolative)",
    "nested": "a smaller rank's skeleton is the beginning of a larger one's; or its directions are among the larger's",
    "refit": "coefficients are least-squares ones: the residual is orthogonal to the skeleton",
    "transposes": "the transpose of W is reduced to the transpose, where W is not square",
    "permutes": "permuting the columns of W permutes the result",
    "idempotent": "reducing the result again at the same rank changes nothing",
    "homogeneous": "reduce(c W) = c reduce(W)",
}


@dataclass(frozen=True)
class Slot:
    """What a reducer may know of the weight it is given.

    Attributes:
        name: the parameter's name, such as `model.layers.3.mlp.down_proj.weight`; a part of it in brackets, `...[q]`.
        layer: index of the decoder block, from 0; None outside the blocks.
        role: `attn.q` ... `mlp.down`, `head`, `embed`; None where no role was recognised.
        shape: (out, in) of the matrix as the reducer sees it.
    """

    name: str
    layer: int | None
    role: str | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class Context:
    """What a reducer is given beside the weight.

    Attributes:
        slot: which weight this is.
        generator: a CPU generator seeded from (seed, slot, reducer): the only randomness a reducer may use. Draw on
            the CPU and move: CPU and CUDA streams differ.
        statistics: calibration statistics by name, for the names in the reducer's `needs`.
        shared: what other reducers have computed from the same weight; see `once`.
    """

    slot: Slot
    generator: torch.Generator
    statistics: Mapping[str, torch.Tensor] = field(default_factory=lambda: MappingProxyType({}))
    shared: Shared = field(default_factory=Shared, repr=False)

    def once(self, make: Callable[..., _T], *arguments: Any) -> _T:
        """`make(*arguments)`, computed once for all reducers of this weight; see `Shared.once`.

        Thus `context.once(linalg.gram, weight)`.
        """
        return self.shared.once(make, *arguments)

    @classmethod
    def seeded(cls, slot: Slot, reducer: Reducer, seed: int = 0, **kwargs: Any) -> Context:
        """The context of one reducer on one slot: its generator depends on (seed, slot name, reducer name) alone."""
        import torch

        digest = hashlib.sha256(f"{seed}|{slot.name}|{reducer.name}".encode()).digest()
        generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return cls(slot=slot, generator=generator, **kwargs)

    def fork(self) -> Context:
        """The same context with a generator of its own, in the state this one is in now."""
        return dataclasses.replace(self, generator=self.generator.clone_state())


class Prepared:
    """The work that the ranks of one weight share. Returned by `Reducer.prepare`."""

    def at_rank(self, rank: int) -> Factors:
        """The factors of rank `rank`. Must not depend on which other ranks were or will be asked, beyond rounding.

        Called for the ranks announced to `prepare`, and for any smaller one where a rank is searched for
        (`error: 0.1`, or `keep` for a reducer without `stored_numbers`).
        """
        raise NotImplementedError

    def errors(self, ranks: Sequence[int]) -> Sequence[float] | None:
        """The exact absolute Frobenius error at each rank, without building factors; None where not known."""
        return None

    def chosen(self, rank: int) -> Mapping[str, Any]:
        """What the method chose for itself at a rank, such as `{"algorithm": "gram"}`; stands in the row's params."""
        return {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Reducer:
    """A decomposition method. Subclass it, give it a `name`, override `reduce` or `prepare`.

    Attributes (of the class):
        name: how suites call the method; lower case, words joined by hyphens.
        needs: calibration statistics wanted: any of `second_moment`, `absmean`, `fisher`.
        promises: which of `PROMISES` hold; `lrbench plugins test` checks them.
        rank_of: what has the rank that the method is asked for. Of anything but the "weight", such as "each block", the
            factors may be of a higher rank than asked; what they store is still held against `stored_numbers`.
        randomized: results depend on `context.generator`. A suite's `seeds` repeat such methods, and no others. May be
            a property, where parameters decide it.
        one_preparation: the work of `prepare` does not depend on which ranks are asked. Then it is done once for all
            ranks of a weight, and its time stands in each one's; else `prepare` is called for each rank alone, so
            that a small rank is not charged for what a large one needs.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[frozenset[str]] = frozenset()
    rank_of: ClassVar[str] = "weight"
    randomized: ClassVar[bool] = False
    one_preparation: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True)(cls)

    def reduce(self, weight: torch.Tensor, rank: int, context: Context) -> Factors:
        """Reduces one matrix to one rank.

        Args:
            weight: (out, in), finite, float32 or float64, on the run's device; not to be written to.
            rank: between 1 and `max_rank(weight.shape)`.
            context: the slot, and the generator to draw from.

        Returns:
            Factors that stand in for `weight`, on its device.
        """
        if type(self).prepare is Reducer.prepare:
            raise NotImplementedError(f"{type(self).__name__} overrides neither reduce nor prepare")
        return self.prepare(weight, [rank], context).at_rank(rank)

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: Context) -> Prepared:
        """Does what `ranks` share; by default nothing.

        Args:
            weight: as for `reduce`.
            ranks: ascending; all that the plan asks of this slot where `one_preparation` holds, else one.
            context: as for `reduce`.
        """
        return _EachRankAlone(self, weight, context)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int | None:
        """How many numbers the factors of an (out, in) matrix store at a rank; None to have it found by building."""
        return None

    def max_rank(self, shape: tuple[int, int]) -> int:
        """The largest rank that makes sense for a shape (out, in)."""
        return min(shape)

    def supports(self, slot: Slot) -> str | None:
        """None, or the reason why this slot is to be skipped (it becomes a `skipped` row)."""
        return None


class _EachRankAlone(Prepared):
    """For reducers with `reduce` alone: nothing is shared, each rank draws from a fresh generator."""

    def __init__(self, reducer: Reducer, weight: torch.Tensor, context: Context) -> None:
        self._reducer, self._weight, self._context = reducer, weight, context

    def at_rank(self, rank: int) -> Factors:
        return self._reducer.reduce(self._weight, rank, self._context.fork())
