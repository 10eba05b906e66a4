"""The leaderboard as data: columns, entries, the best values of each setting and the values statistically tied with it.

`lrbench.reports.render` formats the values.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from lrbench.analysis.score import Measurement
from lrbench.analysis.scored_run import Split, split_of
from lrbench.results.rows import Row
from lrbench.stats import LEVEL, holm, p_value_between

Kind = Literal["text", "score", "share", "ratio", "times", "error", "loss", "seconds", "flag"]
Value = str | bool | float | Measurement | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: in `--sort` and the exports.
        heading: two lines: the title, and the metric or unit.
        kind: the kind of value, which determines its format.
        better: the better direction, if there is one.
        task, metric: of a score.
        subtask: whether its documents are part of another column's.
        detail: exported, but not shown in tables for readers.
        derived: whether the suite derives it from other columns.
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
    def is_score(self) -> bool:
        """Whether its values are scores or derived from scores."""
        return bool(self.task) or self.derived or self.name == "score"


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard.

    Attributes:
        row: the cell's row.
        run: the run's name.
        values: column -> value.
        metrics: all metrics of all tasks.
        scored_on: column of scores -> key that is equal for comparable entries: the same weights and requests.
        other_environment: whether the baseline was scored in another environment.
        repeats: the cell's rows of other seeds; scores, sizes, errors and times are means over all seeds.
    """

    row: Row
    run: str
    values: dict[str, Value]
    metrics: dict[str, dict[str, Measurement]]
    scored_on: dict[str, Hashable]
    other_environment: bool = False
    repeats: tuple[Row, ...] = ()

    @property
    def baseline(self) -> bool:
        """Whether this is the baseline."""
        return self.row.reducer is None

    @property
    def model_and_split(self) -> tuple[str, Split]:
        """The model, and the split of the scored documents."""
        return self.row.model, split_of(self.row)

    @property
    def pareto(self) -> bool:
        """Whether the entry is on the Pareto front of model size and score."""
        return self.values["pareto"] is True

    @property
    def chosen_for(self) -> str | None:
        """The choice that the cell was selected for, a task or the mean; None without a selection."""
        return self.row.selection.chosen_for if self.row.selection is not None else None

    @property
    def section(self) -> tuple[str, Value, bool]:
        """The key of entries that are adjacent in the default order."""
        return self.row.model, self.chosen_for or self.values["setting"], self.baseline

    @property
    def comparison_group(self) -> Hashable:
        """The key of entries that compete for the best value: one setting and weights, or one choice."""
        if self.chosen_for is not None:
            return self.row.model, self.chosen_for
        return self.row.model, self.values["setting"], self.values["edited"]


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboard.

    Attributes:
        columns: in the order of display.
        entries: scored cells, in order, the baselines first.
        failures: cells that failed or were skipped, with `row.reason`.
        sort: the column to sort by; None for the default order.
        left_out: the number of scored cells dropped by `top`.
        family: column -> number of comparisons with the baseline in Holm's correction.
        without_samples: the number of scored cells without per-document scores, which cannot be paired.
        below_chance: baselines below chance: (model, task, value, chance).
        screened_out: the number of cells that a screening left out.
        waiting: the number of cells scored on validation documents in runs that have not reported yet.
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
        """Whether the entries are cells chosen on other documents."""
        return any(entry.chosen_for is not None for entry in self.entries)

    def opens_section(self, index: int) -> bool:
        """Whether a rule separates an entry from the one before it."""
        before, entry = self.entries[max(0, index - 1)], self.entries[index]
        if self.sort is not None:
            return before.baseline and not entry.baseline
        return before.section != entry.section

    @property
    def other_environment(self) -> int:
        """The number of entries scored in another environment than their baseline."""
        return sum(entry.other_environment for entry in self.entries)

    def joined(self, other: Leaderboard) -> Leaderboard:
        """Appends the other table's entries and the columns that only it has."""
        known = {column.name for column in self.columns}
        columns = [*self.columns, *(column for column in other.columns if column.name not in known)]
        entries = [*self.entries, *other.entries]
        for entry in (*entries, *self.failures):
            for column in columns:
                entry.values.setdefault(column.name, None)
        return replace(self, columns=columns, entries=entries)

    def top(self, count: int) -> Leaderboard:
        """The first `count` entries of each setting, or of the whole table if sorted by a column; keeps baselines."""
        seen: dict[Any, int] = {}
        kept = []
        for entry in self.entries:
            place = None if self.sort else entry.section
            seen[place] = seen.get(place, 0) + (not entry.baseline)
            if entry.baseline or seen[place] <= count:
                kept.append(entry)
        return replace(self, entries=kept, left_out=self.left_out + len(self.entries) - len(kept))

    @cached_property
    def best(self) -> set[tuple[int, str]]:
        """(line, column) of the best values among the lines of each `comparison_group`.

        Scores compete only if they come from the same documents. If all are equal, none is best.
        """
        return {
            (line, column.name)
            for column in self.columns
            if column.better is not None
            for lines in self._rivals(column)
            for line in self._best_of(lines, column)
        }

    @cached_property
    def ties(self) -> set[tuple[int, str]]:
        """(line, column) of scores that do not differ significantly from the best of their setting.

        Uses the paired test of `lrbench.stats` with Holm's correction over all pairs of lines of a setting and column.
        """
        tied_cells: set[tuple[int, str]] = set()
        for column in self.columns:
            if column.better is None or not column.is_score:
                continue
            for lines in self._rivals(column):
                best = self._best_of(lines, column)
                pairs = list(combinations(lines, 2)) if best else []
                adjusted = dict(zip(pairs, holm([self._p_value(pair, column.name) for pair in pairs]), strict=True))
                for pair, p in adjusted.items():
                    if p is not None and p > LEVEL and len(best.intersection(pair)) == 1:
                        tied_cells.update((line, column.name) for line in pair if line not in best)
        return tied_cells

    def _rivals(self, column: Column) -> list[list[int]]:
        """The lines of each `comparison_group`, scored on the same documents."""
        settings: dict[Hashable, list[int]] = {}
        for index, entry in enumerate(self.entries):
            if not entry.baseline:
                settings.setdefault((entry.comparison_group, entry.scored_on.get(column.name)), []).append(index)
        return list(settings.values())

    def _best_of(self, lines: Sequence[int], column: Column) -> set[int]:
        values = {line: as_number(self.entries[line].values[column.name]) for line in lines}
        numbers = {number for number in values.values() if number is not None}
        if len(numbers) < 2:
            return set()
        best = max(numbers) if column.better == "higher" else min(numbers)
        return {line for line, number in values.items() if number == best}

    def _p_value(self, pair: tuple[int, int], column: str) -> float | None:
        first, second = (self.entries[line].values[column] for line in pair)
        if not (isinstance(first, Measurement) and isinstance(second, Measurement)):
            return None
        if first.difference is None or second.difference is None:
            return None
        return p_value_between(first.difference, second.difference)


def by_model_and_split(entries: Iterable[Entry]) -> dict[tuple[str, Split], list[Entry]]:
    """Entries by model, in order of appearance, and split; the validation documents of a selection come last."""
    groups: dict[tuple[str, Split], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.model_and_split, []).append(entry)
    models = list(dict.fromkeys(model for model, _ in groups))
    return dict(sorted(groups.items(), key=lambda group: (models.index(group[0][0]), group[0][1] == "validation")))


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the (size, merit) points that no point of at most the same size exceeds in merit."""
    front: set[int] = set()
    best: tuple[float, float] | None = None
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if best is None or points[index][1] > best[1] or points[index] == best:  # ties with the front are on it
            front.add(index)
            best = points[index]
    return front


def as_number(value: Value) -> float | None:
    """The number that a value is compared by; None if it has none or is NaN."""
    if isinstance(value, Measurement):
        value = value.value
    if isinstance(value, bool):
        return float(value)
    return value if isinstance(value, int | float) and not math.isnan(value) else None
