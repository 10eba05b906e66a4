"""Columns computed from a row's scores: the mean of several, and the fraction of the baseline's that is retained.

    derived:
      mcq: {mean: [boolq, {arc_easy: acc_norm}, ...]}
      retained: {retention: [wikitext2_tokens, mcq, ...]}

A term is a task (by its main metric), `{TASK: METRIC}`, or the name of an earlier mean. Both kinds come from
LowRankArena (github.com/Zishan-Shao/lowrankarena). Its MCQ average is the unweighted mean of seven accuracies. Its
quality retention is a mean of ratios to the dense model: reduced / dense if higher is better, dense / reduced if lower
is better; the mean is over two perplexities, the MCQ average and two mathematics tasks. Ratios above 1 are not clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["mean", "retention"]
KINDS: tuple[Kind, ...] = ("mean", "retention")


@dataclass(frozen=True)
class Term:
    """A component of a column: a task by one of its metrics, or the name of an earlier mean.

    Attributes:
        metric: None for the task's main metric, or for an earlier mean.
    """

    name: str
    metric: str | None = None

    @classmethod
    def parse(cls, definition: Any) -> Term:
        """Parses `TASK` or `{TASK: METRIC}`. Raises ValueError: another form."""
        if isinstance(definition, str) and definition:
            return cls(definition)
        if isinstance(definition, dict) and len(definition) == 1:
            [(name, metric)] = definition.items()
            if isinstance(name, str) and isinstance(metric, str) and name and metric:
                return cls(name, metric)
        raise ValueError(f"a term is TASK or {{TASK: METRIC}}, not {definition!r}")

    def resolved(self) -> str | dict[str, str]:
        """As written in a suite."""
        return self.name if self.metric is None else {self.name: self.metric}


@dataclass(frozen=True)
class DerivedColumn:
    """A column computed from others."""

    name: str
    kind: Kind
    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, name: str, definition: Any, above: Sequence[DerivedColumn] = ()) -> DerivedColumn:
        """Parses `{mean: [TERM, ...]}` or `{retention: [TERM, ...]}`.

        Args:
            above: the earlier columns.

        Raises:
            ValueError: another form, a term twice, or a retention as a term.
        """
        if not isinstance(definition, dict) or len(definition) != 1 or next(iter(definition)) not in KINDS:
            raise ValueError(f"column {name!r} is {{mean: [...]}} or {{retention: [...]}}, not {definition!r}")
        [(kind, listed)] = definition.items()
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"column {name!r}: {kind} takes a list of terms, not {listed!r}")
        terms = tuple(Term.parse(term) for term in listed)
        for index, term in enumerate(terms):
            if term in terms[:index]:
                raise ValueError(f"column {name!r}: {term.name!r} is listed twice")
            if term.name == name or any(other.name == term.name and other.kind == "retention" for other in above):
                raise ValueError(
                    f"column {name!r}: a term is a task, or a mean that stands above; {term.name!r} is not"
                )
        return cls(name, kind, terms)

    def resolved(self) -> dict[str, Any]:
        """As written in a suite."""
        return {self.kind: [term.resolved() for term in self.terms]}
