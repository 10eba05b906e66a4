"""What a suite may say of how the cells that are reported are chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictFloat, model_validator

from lrbench.suite.derived_columns import DerivedColumn
from lrbench.suite.fields import Count, Seed, Spec
from lrbench.suite.messages import misplaced
from lrbench.suite.yaml_reader import describe

Inside = Annotated[StrictFloat, Field(gt=0, lt=1, allow_inf_nan=False)]


class SelectSpec(Spec):
    """A choice on some documents, reported on the others.

    Attributes:
        validation: the fraction of each task's documents that the choice is made on.
        seed: of the split, and of the order in which a race takes documents.
        on: one choice for each `task` of the suite, or one for the `mean` over them.
    """

    validation: Inside = 0.2
    seed: Seed = 0
    on: Literal["task", "mean"] = "task"

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump()


class RaceSpec(Spec):
    """When a cell stops before all validation documents.

    Attributes:
        alpha: with at most this probability the choice is worse than the best cell by `margin` or more.
        margin: of accuracy, on the validation documents.
        block: documents of the first block; each further one is half as large as all before it together.
    """

    alpha: Inside = 0.05
    margin: Annotated[StrictFloat, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.01
    block: Count = 32

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump()


class ScreenSpec(Spec):
    """Which cells are worth scoring, as a first-order expansion of the loss says.

    Attributes:
        by: `gradient`: what the gradient of the loss in the singular values predicts.
        documents: of each task's validation documents, so many at most.
        top: cells of each method, for each choice, that are scored; the others are skipped.
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
    """`true` stands for all defaults, `false` for leaving the key out."""
    return {} if value is True else None if value is False else value


def derived_columns(value: Any) -> tuple[DerivedColumn, ...]:
    """`{NAME: {mean: [TERM, ...]}, ...}`, each made of tasks and of the means before it."""
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
