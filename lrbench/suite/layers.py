"""The decoder blocks of a sweep: `all`, `3`, `-1`, `[0, 3]`, `"4-7"`, `"last 2"`, `"first half"`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from lrbench.suite.yaml_reader import describe
from lrbench.system.text import did_you_mean

_PARTS = {"half": 2, "third": 3, "quarter": 4}
_FORMS = 'all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"'


@dataclass(frozen=True)
class Layers:
    """A choice of decoder blocks, which becomes indices once the model's number of blocks is known.

    Attributes:
        kind: `all`; `indices` (`numbers`, negative ones from the end); `range` (`numbers` = first and last, both
            included); `first` and `last` with `numbers` = a count, or with `part`.
        part: `half`, `third` or `quarter`; rounded up, so that halves of an odd number share the middle block.
    """

    kind: Literal["all", "indices", "range", "first", "last"]
    numbers: tuple[int, ...] = ()
    part: str | None = None

    @classmethod
    def parse(cls, value: Any) -> Layers:
        """Parses a choice of layers.

        Raises:
            ValueError: another form.
        """
        if isinstance(value, Layers):
            return value
        if _is_int(value):
            return cls("indices", (value,))
        if isinstance(value, list | tuple):
            if not value or not all(_is_int(entry) for entry in value):
                wrong = next((describe(entry) for entry in value if not _is_int(entry)), "an empty list")
                raise ValueError(f"a list of layers holds integers such as [0, 3], not {wrong}")
            return cls("indices", tuple(value))
        if not isinstance(value, str):
            raise ValueError(f"layers are one of {_FORMS}; got {describe(value)}")
        text = " ".join(value.split())
        if text == "all":
            return cls("all")
        if re.fullmatch(r"-?[0-9]{1,9}", text):
            return cls("indices", (int(text),))
        if match := re.fullmatch(r"([0-9]{1,9}) ?- ?([0-9]{1,9})", text):
            first, last = int(match[1]), int(match[2])
            if first > last:
                raise ValueError(f"layers {text!r} run backwards; write '{last}-{first}'")
            return cls("range", (first, last))
        if match := re.fullmatch(r"(first|last) (?:([0-9]{1,9})|(half|third|quarter))", text):
            kind: Literal["first", "last"] = "first" if match[1] == "first" else "last"
            if match[3]:
                return cls(kind, part=match[3])
            if int(match[2]) == 0:
                raise ValueError(f"layers {text!r} are none")
            return cls(kind, (int(match[2]),))
        words = ["all", *(f"{end} {part}" for end in ("first", "last") for part in _PARTS)]
        raise ValueError(f"layers {value!r} are not one of {_FORMS}{did_you_mean(text, words)}")

    def spelled(self) -> str | int | list[int]:
        """The canonical spelling, which parses to an equal value."""
        if self.kind == "all":
            return "all"
        if self.kind == "range":
            return f"{self.numbers[0]}-{self.numbers[1]}"
        if self.kind == "indices":
            return list(self.numbers) if len(self.numbers) != 1 else self.numbers[0]
        return f"{self.kind} {self.part or self.numbers[0]}"

    def resolve(self, count: int) -> list[int]:
        """The indices of the chosen blocks of a model with `count` blocks, ascending and distinct.

        Raises:
            ValueError: a block that the model does not have.
        """
        if self.kind == "all":
            return list(range(count))
        if self.kind == "indices":
            return sorted({self._in_range(number, count) for number in self.numbers})
        if self.kind == "range":
            first, last = (self._in_range(number, count) for number in self.numbers)
            return list(range(first, last + 1))
        size = -(-count // _PARTS[self.part]) if self.part else self.numbers[0]
        if size > count:
            raise ValueError(f"layers '{self.spelled()}' are out of range: the model has {count} blocks")
        return list(range(size)) if self.kind == "first" else list(range(count - size, count))

    @staticmethod
    def _in_range(number: int, count: int) -> int:
        if not -count <= number < count:
            raise ValueError(
                f"layer {number} is out of range: the model has {count} blocks, 0 to {count - 1} (or -{count} to -1)"
            )
        return number % count


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
