"""The suite's `sweep`: which weights are reduced, by which reducers, to which ranks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, PrivateAttr, StrictFloat, model_validator

from lrbench.reducers.ranks import AllocationKind, RankKind, RankRequest
from lrbench.suite.fields import Count, Fractions, Spec, Text, Weight, one_or_many
from lrbench.suite.layers import Layers
from lrbench.suite.messages import misplaced


class RankSpec(Spec):
    """Ranks of a sweep: values of exactly one kind."""

    fraction: Fractions | None = None
    rank: Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(one_or_many)] | None = None
    keep: Fractions | None = None
    energy: Fractions | None = None
    error: (
        Annotated[
            tuple[Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)], ...],
            Field(min_length=1),
            BeforeValidator(one_or_many),
        ]
        | None
    ) = None
    keep_model: Fractions | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> RankSpec:
        kinds = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise misplaced(
                f"a rank is exactly one of {', '.join(type(self).model_fields)}", *kinds[1:2], key=bool(kinds)
            )
        values = getattr(self, kinds[0])
        for index, value in enumerate(values):
            if value in values[:index]:
                raise misplaced(f"{value:g} is listed twice", kinds[0], index)
        return self

    @property
    def kind(self) -> RankKind:
        """The kind of these ranks."""
        kinds: tuple[RankKind, ...] = ("fraction", "rank", "keep", "energy", "error", "keep_model")
        return next(kind for kind in kinds if getattr(self, kind) is not None)

    @property
    def requests(self) -> tuple[RankRequest, ...]:
        """One request per value, in the order written."""
        return tuple(RankRequest(self.kind, value) for value in getattr(self, self.kind))

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return {self.kind: list(getattr(self, self.kind))}


class SweepSpec(Spec):
    """A rule that generates cells.

    Attributes:
        mode: `each` slot alone, each `layer` as a whole, all `together`, or a `greedy` composition of single edits.
        layers: the edited decoder blocks.
        weights: roles, groups, LASER names, globs on parameter names.
        rank: the ranks of each edit.
        reducers: labels; None for all reducers of the suite.
        allocation: how the parameters of `keep_model` are allocated to weights; None if left out.
    """

    mode: Literal["each", "layer", "together", "greedy"] = "each"
    layers: Annotated[InstanceOf[Layers], BeforeValidator(Layers.parse)] = Layers("all")
    weights: Annotated[tuple[Weight, ...], Field(min_length=1), BeforeValidator(one_or_many)] = ("all",)
    rank: RankSpec
    reducers: Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(one_or_many)] | None = None
    allocation: AllocationKind | None = None
    _default: AllocationKind = PrivateAttr(default="uniform")  # of a suite with calibration: `loss`

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: entry for k, entry in value.items() if entry is not None or k not in ("reducers", "allocation")}
        return value

    @model_validator(mode="after")
    def _allocated(self) -> SweepSpec:
        if self.rank.keep_model is not None and self.mode != "together":
            raise misplaced(
                f"'keep_model' is the size of the whole model, a budget for weights edited together; write "
                f"'mode: together' instead of {self.mode!r}, or 'keep'",
                "rank", "keep_model", key=True,
            )  # fmt: skip
        if self.allocation is not None and self.rank.keep_model is None:
            raise misplaced(
                f"'allocation' allocates the parameters of 'keep_model', and these ranks are by {self.rank.kind!r}; "
                "leave it out, or write 'rank: {keep_model: 0.8}'",
                "allocation", key=True,
            )  # fmt: skip
        return self

    @property
    def shared_by(self) -> AllocationKind | None:
        """How `keep_model` is allocated among the weights; None for other ranks.

        By default `loss` if the suite has calibration text, else `uniform`.
        """
        return (self.allocation or self._default) if self.rank.keep_model is not None else None

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "mode": self.mode,
            "layers": self.layers.spelled(),
            "weights": list(self.weights),
            "rank": self.rank.resolved(),
            "reducers": None if self.reducers is None else list(self.reducers),
            "allocation": self.shared_by,
        }
