"""The base class of plugins: a `Reducer` turns a weight matrix into `Factors` of a given rank.

A minimal reducer has a name and `reduce`:

    class TopColumns(lrbench.Reducer):
        \"""Keep the k columns of W with the largest norm.\"""
        name = "top-columns"

        def reduce(self, weight, rank, context):  # (out, in), k -> Factors
            columns = weight.norm(dim=0).topk(rank).indices
            return lrbench.ColumnSubset(weight[:, columns], columns, in_features=weight.shape[1])

Parameters are annotated class attributes with defaults. Every subclass becomes a keyword-only frozen dataclass, so
`oversample: int = 8` can be set in a suite and read as `self.oversample`. A string in `Annotated[int, "..."]`
documents the parameter for `lrbench plugins show`; `__post_init__` may raise ValueError for an invalid combination.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

from lrbench.reducers.shared_results import SharedResults

if TYPE_CHECKING:  # torch is slow to import, and `lrbench --help` must not wait for it
    import torch

    from lrbench.reducers.factors import Factors

_T = TypeVar("_T")

#: The form of a reducer's name.
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
#: The calibration statistics that `needs` may name, for a slot with W (m, n) and inputs x: `second_moment` E[x xᵀ]
#: (n, n), `absmean` E|x| (n,), `fisher` Σ_i E[(∂loss/∂W_ij)²] (n,), one value per input j, and
#: `output_gradient_moment` E[g gᵀ] (m, m), g the gradient of a window's summed loss in the output y, token by token.
STATISTICS = frozenset({"second_moment", "absmean", "fisher", "output_gradient_moment"})
#: The properties that `promises` may name; `lrbench plugins test` checks each.
PROMISES = {
    "exact": "reproduces W at the full rank, and at any rank k >= rank(W)",
    "monotone": "the error does not increase with the rank",
    "optimal": "attains the Eckart-Young optimum at every rank",
    "output-optimal": "attains the smallest E‖W x − Ŵ x‖² at every rank, for the second moment in its statistics",
    "columns": "the range of the result is spanned by columns of W (ColumnSubset, CUR, column Interpolative)",
    "rows": "the rows of the result are combinations of rows of W (CUR, row Interpolative)",
    "nested": "the skeleton of a rank is a prefix of a larger rank's, or its row or column space is a subspace of it",
    "refit": "coefficients are least-squares solutions: the residual is orthogonal to the skeleton",
    "transposes": "reduces the transpose of W to the transposed result, if W is not square",
    "permutes": "permuting the columns of W permutes the result",
    "idempotent": "reducing the result again at the same rank changes nothing",
    "homogeneous": "reduce(c W) = c reduce(W)",
}


@dataclass(frozen=True)
class Slot:
    """The weight that a reducer reduces: its name, place and shape.

    Attributes:
        name: the parameter's name, such as `model.layers.3.mlp.down_proj.weight`, with its part in brackets, `...[q]`.
        layer: index of the decoder block, from 0; None outside the blocks.
        role: `attn.q` ... `mlp.down`, `head`, `embed`; None if no role was recognised.
        shape: (out, in) of the matrix that the reducer receives.
    """

    name: str
    layer: int | None
    role: str | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class Context:
    """The inputs of a reducer beside the weight.

    Attributes:
        slot: the weight's name, layer, role and shape.
        generator: a CPU generator seeded from (seed, slot, reducer), the only randomness a reducer may use. Draw on
            the CPU, then move: CPU and CUDA streams differ.
        statistics: the calibration statistics in the reducer's `needs`, by name.
        shared: results that reducers of the same weight share; see `once`.
    """

    slot: Slot
    generator: torch.Generator
    statistics: Mapping[str, torch.Tensor] = field(default_factory=lambda: MappingProxyType({}))
    shared: SharedResults = field(default_factory=SharedResults, repr=False)

    def once(self, make: Callable[..., _T], *arguments: Any) -> _T:
        """`make(*arguments)`, computed once for all reducers of this weight, as `context.once(linalg.gram, weight)`.

        See `SharedResults.once`.
        """
        return self.shared.once(make, *arguments)

    @classmethod
    def seeded(cls, slot: Slot, reducer: Reducer, seed: int = 0, **kwargs: Any) -> Context:
        """The context of a reducer on a slot, with a generator seeded from (seed, slot name, reducer name)."""
        import torch

        digest = hashlib.sha256(f"{seed}|{slot.name}|{reducer.name}".encode()).digest()
        generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return cls(slot=slot, generator=generator, **kwargs)

    def fork(self) -> Context:
        """A copy of the context with its own generator, in the current state of this one."""
        return dataclasses.replace(self, generator=self.generator.clone_state())


class Prepared:
    """Work on a weight that is shared by its ranks. Returned by `Reducer.prepare`."""

    def at_rank(self, rank: int) -> Factors:
        """The factors of rank `rank`. They must not depend on other requested ranks, beyond rounding.

        Called for the ranks passed to `prepare`, and for smaller ones if a rank is searched for (`error: 0.1`, or
        `keep` for a reducer without `stored_numbers`).
        """
        raise NotImplementedError

    def errors(self, ranks: Sequence[int]) -> Sequence[float] | None:
        """The exact Frobenius error ‖W − Ŵ‖_F at each rank, without building factors; None if unknown."""
        return None

    def predicted_losses(
        self, ranks: Sequence[int], second_moment: torch.Tensor, output_gradient_moment: torch.Tensor
    ) -> Sequence[float] | None:
        """½ tr(G Δ H Δᵀ), Δ = W − Ŵ, at each rank, without building factors; None if unknown.

        Args:
            second_moment: H = E[x xᵀ] (in, in).
            output_gradient_moment: G = E[g gᵀ] (out, out).
        """
        return None

    def chosen(self, rank: int) -> Mapping[str, Any]:
        """Choices that the method made at a rank, such as `{"algorithm": "gram"}`, for the row's `params`."""
        return {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Reducer:
    """A decomposition method. Subclass it, give it a `name`, override `reduce` or `prepare`.

    Attributes (of the class):
        name: the method's name in suites; lower-case words joined by hyphens.
        needs: the calibration statistics that the method uses, of `STATISTICS`.
        promises: the properties in `PROMISES` that hold; `lrbench plugins test` checks them.
        rank_of: the object whose rank a suite requests. If it is not "weight" but, say, "each block", the factors may
            have a higher rank than requested; their size is still compared with `stored_numbers`.
        randomized: whether results depend on `context.generator`. A suite's `seeds` repeat only such methods. May be a
            property, if it depends on parameters.
        one_preparation: whether the work of `prepare` is independent of the requested ranks. If so, it is done once for
            all ranks of a weight, and counted in the time of each. Else `prepare` is called for each rank separately,
            so that a small rank does not include the time of a large one.
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
        """Reduces a matrix to a rank.

        Args:
            weight: (out, in), finite, float32 or float64, on the run's device; must not be written to.
            rank: between 1 and `max_rank(weight.shape)`.
            context: the slot, generator and statistics.

        Returns:
            Factors that approximate `weight`, on its device.
        """
        if type(self).prepare is Reducer.prepare:
            raise NotImplementedError(f"{type(self).__name__} overrides neither reduce nor prepare")
        return self.prepare(weight, [rank], context).at_rank(rank)

    def prepare(self, weight: torch.Tensor, ranks: Sequence[int], context: Context) -> Prepared:
        """Does the work that `ranks` share; by default none.

        Args:
            weight: as for `reduce`.
            ranks: ascending; with `one_preparation` all ranks that the plan requests of this slot, else a single one.
            context: as for `reduce`.
        """
        return _EachRankAlone(self, weight, context)

    def stored_numbers(self, shape: tuple[int, int], rank: int) -> int | None:
        """The number of parameters that factors of an (out, in) matrix store at a rank; None to count built factors."""
        return None

    def max_rank(self, shape: tuple[int, int]) -> int:
        """The largest rank for a shape (out, in)."""
        return min(shape)

    def supports(self, slot: Slot) -> str | None:
        """The reason to skip this slot, shown in a `skipped` row; None to reduce it."""
        return None


class _EachRankAlone(Prepared):
    """For reducers without `prepare`: ranks share no work, and each draws from a fresh copy of the generator."""

    def __init__(self, reducer: Reducer, weight: torch.Tensor, context: Context) -> None:
        self._reducer, self._weight, self._context = reducer, weight, context

    def at_rank(self, rank: int) -> Factors:
        return self._reducer.reduce(self._weight, rank, self._context.fork())
