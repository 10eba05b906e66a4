"""The suite's `calibration`: the text on which calibrated methods compute statistics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StrictFloat, StrictInt, model_validator

from lrbench.suite.fields import Count, Spec, Text
from lrbench.suite.messages import misplaced


class TextSpec(Spec):
    """The source of calibration text: exactly one of a file, a data set and a task.

    Attributes:
        file: .txt, or .jsonl with the text under `column`; absolute once located.
        dataset, config, split: arguments of `datasets.load_dataset`; a data set may be a folder relative to the suite.
        column: name of the text column of a .jsonl file or a data set.
        task: an lm-eval task or group, whose training split is used.
    """

    file: Text | None = None
    dataset: Text | None = None
    config: Text | None = None
    split: Text | None = None
    column: Text | None = None
    task: Text | None = None
    _as_written: str | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> TextSpec:
        kinds = [kind for kind in ("file", "dataset", "task") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise misplaced("calibration text is exactly one of file, dataset, task", *kinds[1:2], key=bool(kinds))
        for key in ("config", "split", "column"):
            if getattr(self, key) is not None and not (kinds == ["dataset"] or (kinds == ["file"] and key == "column")):
                raise misplaced(f"{key!r} does not go with {kinds[0]!r}", key, key=True)
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain data, with paths as written in the suite."""
        data = {key: value for key, value in self.model_dump().items() if value is not None}
        if self._as_written is not None:
            data["file" if self.file is not None else "dataset"] = self._as_written
        return data


class CalibrationSpec(Spec):
    """The sample of text on which calibrated methods compute statistics.

    Attributes:
        name: bundled text; instead of `text`.
        text: the source of the text.
        samples: number of windows.
        length: tokens per window; None for 512, or the model's maximum if that is smaller.
        seed: of the windows' random positions.
        damping: added to the diagonal of second moments, in units of its mean.
        fisher: the labels of the loss that is differentiated: the text's next tokens, or tokens drawn from the model.
    """

    name: Text | None = None
    text: TextSpec | None = None
    samples: Count = 128
    length: Annotated[StrictInt, Field(ge=2)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    damping: Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)] = 0.01
    fisher: Literal["empirical", "sampled"] = "empirical"

    @model_validator(mode="after")
    def _one_source(self) -> CalibrationSpec:
        if (self.name is None) == (self.text is None):
            raise misplaced("a calibration has either 'name' (bundled text) or 'text' (a file, data set or task)")
        return self

    @property
    def source(self) -> str:
        """The key that names the source of the text, `name` or `text`."""
        return "name" if self.text is None else "text"

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(exclude={"text"}) | {"text": self.text and self.text.resolved()}
