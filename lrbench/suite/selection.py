"""The suite's `select`, `race` and `screen`: how reported cells are chosen; and its `derived` columns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictFloat, model_validator

from lrbench.suite.derived_columns import DerivedColumn
from lrbench.suite.fields import Count, Seed, Spec
from lrbench.suite.messages import misplaced
from lrbench.suite.yaml_reader import describe

Inside = Annotated[StrictFloat, Field(gt=0, lt=1, allow_inf_nan=False)]


class SelectSpec(Spec):
    """Choose cells on validation documents and report them on the others, the test documents.

    Attributes:
        validation: fraction of each task's documents used for the choice.
        seed: of the split and of a race's order of documents.
        on: one choice per `task`, or one by the `mean` over tasks.
    """

    validation: Inside = 0.2
    seed: Seed = 0
    on: Literal["task", "mean"] = "task"

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump()


class RaceSpec(Spec):
    """When scoring of a cell stops before all validation documents.

    Attributes:
        alpha: bound on the probability that the choice is worse than the best cell by `margin` or more.
        margin: of accuracy, on the validation documents.
        block: documents in the first block; each further block is half as large as all earlier ones together.
    """

    alpha: Inside = 0.05
    margin: Annotated[StrictFloat, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.01
    block: Count = 32

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump()


class ScreenSpec(Spec):
    """Which cells are scored, by a first-order expansion of the loss.

    Attributes:
        by: `gradient`: the change of the loss predicted by its gradient in the singular values.
        documents: at most this many of each task's validation documents.
        top: number of cells scored per method and choice; the others are skipped.
    """

    by: Literal["gradient"] = "gradient"
    documents: Count = 100
    top: Count = 32

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump()


def switched_on(value: Any) -> Any:
    """Replaces `true` by an empty mapping (all defaults), `false` by None (key left out)."""
    return {} if value is True else None if value is False else value


def derived_columns(value: Any) -> tuple[DerivedColumn, ...]:
    """Parses `{NAME: {mean: [TERM, ...]}, ...}`; terms are tasks and earlier means."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise misplaced(
            f"'derived' maps names of columns to {{mean: [...]}} or {{retention: [...]}}, not {describe(value)}"
        )
    columns: list[DerivedColumn] = []
    for name, definition in value.items():
        if not isinstance(name, str) or not name:
            raise misplaced(f"the name of a column is text, not {describe(name)}")
        try:
            columns.append(DerivedColumn.parse(name, definition, columns))
        except ValueError as error:
            raise misplaced(str(error), name) from None
    return tuple(columns)
