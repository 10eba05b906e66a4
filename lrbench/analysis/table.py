"""The table that rows become: columns, lines, which value of a setting is best, and what cannot be told from it.

A table holds values, not text; how they look is the concern of `lrbench.reports.render`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from lrbench.analysis.score import Measured
from lrbench.results.rows import Row
from lrbench.stats import LEVEL, holm, p_value_between

Kind = Literal["text", "score", "share", "ratio", "times", "error", "seconds", "flag"]
Value = str | bool | float | Measured | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what `--sort` and the exports call it.
        heading: two lines over it: what it is, and its metric or unit.
        kind: what its values are, and so how they are written.
        better: which way is better, where either is.
        task: the task, for scores (and `metric`).
        subtask: whether its documents are part of another column's.
        detail: worth keeping, but not in a table that people read.
        derived: whether a suite has it made of other columns.
    """

    name: str
    heading: tuple[str, str]
    kind: Kind
    better: Literal["higher", "lower"] | None = None
    task: str = ""
    metric: str = ""
    subtask: bool = False
    detail: bool = False
    derived: bool = False

    @property
    def of_scores(self) -> bool:
        """Whether its values are scores, or made of some."""
        return bool(self.task) or self.derived or self.name == "score"


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        row: the cell.
        run: the run that it is of.
        values: a value for each column.
        metrics: all metrics of all tasks.
        scored_on: of columns of scores, equal for lines that can be compared: the same weights asked the same of the
            same documents.
        elsewhere: whether the baseline that it is compared with was scored in another environment.
        repeats: the same cell at other seeds; scores, sizes, errors and times are then means over all of them.
    """

    row: Row
    run: str
    values: dict[str, Value]
    metrics: dict[str, dict[str, Measured]]
    scored_on: dict[str, Hashable]
    elsewhere: bool = False
    repeats: tuple[Row, ...] = ()

    @property
    def baseline(self) -> bool:
        """Whether this is the baseline."""
        return self.row.reducer is None

    @property
    def pareto(self) -> bool:
        """Whether no other line scored on the same documents keeps less and scores more."""
        return self.values["pareto"] is True

    @property
    def chosen_for(self) -> str | None:
        """Where methods are shown with what was chosen: the task, or the mean over tasks, for which this was."""
        return self.row.selection.chosen_for if self.row.selection is not None else None

    @property
    def section(self) -> tuple[str, Value, bool]:
        """Lines that stand together in the default order."""
        return self.row.model, self.chosen_for or self.values["setting"], self.baseline

    @property
    def rivals(self) -> Hashable:
        """Equal for lines among which one is best: of a setting and the same weights, or chosen for the same."""
        if self.chosen_for is not None:
            return self.row.model, self.chosen_for
        return self.row.model, self.values["setting"], self.values["edited"]


@dataclass(frozen=True)
class Leaderboard:
    """The table.

    Attributes:
        columns: in the order in which they are to be shown.
        entries: scored cells, in order, the baselines first.
        failures: cells that failed or were skipped, with `row.reason`.
        sort: the column asked for, None for the default order.
        left_out: scored cells that `top` dropped.
        family: how many comparisons with the baseline Holm's correction is over, by the name of the column.
        without_samples: scored cells whose per-document scores are not there, so that they cannot be paired.
        below_chance: what baselines know no better than chance: (model, task, value, chance).
        screened_out: cells that a screening left out; they are in no list.
        waiting: cells scored on validation documents in runs where nothing is reported yet.
    """

    columns: list[Column]
    entries: list[Entry]
    failures: list[Entry] = field(default_factory=list)
    sort: str | None = None
    left_out: int = 0
    family: Mapping[str, int] = field(default_factory=dict)
    without_samples: int = 0
    below_chance: tuple[tuple[str, str, float, float], ...] = ()
    waiting: int = 0
    screened_out: int = 0

    @property
    def selected(self) -> bool:
        """Whether lines are of cells that were chosen on other documents."""
        return any(entry.chosen_for is not None for entry in self.entries)

    @property
    def elsewhere(self) -> int:
        """How many lines were scored in another environment than the baseline that they are compared with."""
        return sum(entry.elsewhere for entry in self.entries)

    def beside(self, other: Leaderboard) -> Leaderboard:
        """Both tables in one: this one's columns, and those that only the other has; its entries, then the other's."""
        known = {column.name for column in self.columns}
        columns = [*self.columns, *(column for column in other.columns if column.name not in known)]
        entries = [*self.entries, *other.entries]
        for entry in (*entries, *self.failures):
            for column in columns:
                entry.values.setdefault(column.name, None)
        return replace(self, columns=columns, entries=entries)

    def top(self, count: int) -> Leaderboard:
        """The first `count` lines of each setting, or of the whole where a sort was asked for; baselines stay."""
        seen: dict[Any, int] = {}
        kept = []
        for entry in self.entries:
            place = None if self.sort else entry.section
            seen[place] = seen.get(place, 0) + (not entry.baseline)
            if entry.baseline or seen[place] <= count:
                kept.append(entry)
        return replace(self, entries=kept, left_out=self.left_out + len(self.entries) - len(kept))

    def best(self) -> set[tuple[int, str]]:
        """(line, column) of the best values among the lines with one model, setting and set of edited weights.

        Where cells were chosen, the lines chosen for the same compete instead.

        Scores compete only where they are of the same documents. Where all are equal none is best.
        """
        return {
            (line, column.name)
            for column in self.columns
            if column.better is not None
            for lines in self._rivals(column)
            for line in self._best_of(lines, column)
        }

    def ties(self) -> set[tuple[int, str]]:
        """(line, column) of scores that are not the best of their setting, but cannot be told from it.

        Two lines are told apart by the paired test of `lrbench.stats`, after Holm's correction over all pairs of lines
        of a setting and column: whichever turns out to be the best, it is among these pairs.
        """
        return self._ties

    @cached_property
    def _ties(self) -> set[tuple[int, str]]:
        found: set[tuple[int, str]] = set()
        for column in self.columns:
            if column.better is None or not column.of_scores:
                continue
            for lines in self._rivals(column):
                best = self._best_of(lines, column)
                pairs = list(combinations(lines, 2)) if best else []
                adjusted = dict(zip(pairs, holm([self._told_apart(pair, column.name) for pair in pairs]), strict=True))
                for pair, p in adjusted.items():
                    if p is not None and p > LEVEL and len(best.intersection(pair)) == 1:
                        found.update((line, column.name) for line in pair if line not in best)
        return found

    def _rivals(self, column: Column) -> list[list[int]]:
        """Lines that compete: of one setting and set of edited weights, and scored on the same documents."""
        settings: dict[Hashable, list[int]] = {}
        for index, entry in enumerate(self.entries):
            if not entry.baseline:
                settings.setdefault((entry.rivals, entry.scored_on.get(column.name)), []).append(index)
        return list(settings.values())

    def _best_of(self, lines: Sequence[int], column: Column) -> set[int]:
        values = {line: as_number(self.entries[line].values[column.name]) for line in lines}
        numbers = {number for number in values.values() if number is not None}
        if len(numbers) < 2:
            return set()
        best = max(numbers) if column.better == "higher" else min(numbers)
        return {line for line, number in values.items() if number == best}

    def _told_apart(self, pair: tuple[int, int], column: str) -> float | None:
        one, other = (self.entries[line].values[column] for line in pair)
        if not (isinstance(one, Measured) and isinstance(other, Measured)):
            return None
        if one.difference is None or other.difference is None:
            return None
        return p_value_between(one.difference, other.difference)


def as_number(value: Value) -> float | None:
    """The number to compare a value by; None where there is none, or it is not a number."""
    if isinstance(value, Measured):
        value = value.value
    if isinstance(value, bool):
        return float(value)
    return value if isinstance(value, int | float) and not math.isnan(value) else None
