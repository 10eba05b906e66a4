"""What a suite may say of the text that calibrated methods see."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PrivateAttr, StrictFloat, StrictInt, model_validator

from lrbench.suite.fields import Count, Spec, Text
from lrbench.suite.messages import misplaced


class TextSpec(Spec):
    """Where calibration text comes from: exactly one of a file, a data set and a task.

    Attributes:
        file: .txt, or .jsonl with the text under `column`; absolute once located.
        dataset, config, split: as `datasets.load_dataset` takes them; a folder relative to the suite where it exists.
        column: that holds the text, of a .jsonl file or a data set.
        task: an lm-eval task or group, whose training split is taken.
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
        """Plain data, with paths as they were given."""
        data = {key: value for key, value in self.model_dump().items() if value is not None}
        if self._as_written is not None:
            data["file" if self.file is not None else "dataset"] = self._as_written
        return data


class CalibrationSpec(Spec):
    """What calibrated methods see of the model's inputs.

    Attributes:
        name: bundled text; instead of `text`.
        text: where the text comes from.
        samples, length: how many windows, of how many tokens; None for 512, or the model's own where that is less.
        seed: places the windows.
        damping: added to the diagonal of second moments, in units of its mean.
    """

    name: Text | None = None
    text: TextSpec | None = None
    samples: Count = 128
    length: Annotated[StrictInt, Field(ge=2)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    damping: Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)] = 0.01

    @model_validator(mode="after")
    def _one_source(self) -> CalibrationSpec:
        if (self.name is None) == (self.text is None):
            raise misplaced("a calibration has either 'name' (bundled text) or 'text' (a file, data set or task)")
        return self

    @property
    def source(self) -> str:
        """The key that says where the text comes from."""
        return "name" if self.text is None else "text"

    def resolved(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(exclude={"text"}) | {"text": self.text and self.text.resolved()}
