"""The results of reducers on one matrix, as a document, as CSV and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrbench.analysis.spectra import Figures
from lrbench.reduction.single_matrix import MatrixResult
from lrbench.reports.render.document import Heading, Part, Table, TextReport, csv_text
from lrbench.reports.render.json import finite
from lrbench.reports.render.number_format import MISSING
from lrbench.system.environment import in_words

_COLUMNS = (
    *("reducer", "label", "params", "requested", "status", "rank", "relative_error", "optimal_error", "ratio"),
    *("stored_numbers", "stored_bytes", "stored_as", "keep", "seconds", "reason"),
)
_HEADINGS = ("reducer", "setting", "rank", "error", "optimum", "ratio", "parameters", "keep", "stored as", "seconds")
_LEGEND = (
    "Rank: of Ŵ, at most. Error: ‖W − Ŵ‖ / ‖W‖ after rounding to the matrix's dtype. Optimum: the least error of any "
    "matrix of that rank; — for methods whose rank is that of blocks or clusters, since their Ŵ may have full rank. "
    "Keep: stored parameters over those of the matrix; dense if factors would store more. Seconds: preparation and "
    "construction of this rank alone."
)


@dataclass(frozen=True)
class MatrixReport:
    """The results of `lrbench matrix`.

    Attributes:
        matrix: `file`, `key`, `shape`, `dtype`, `norm`.
        figures: of the matrix's singular values.
        outcomes: in the order of methods and requests.
        environment: hardware and versions, as in rows.
    """

    matrix: Mapping[str, Any]
    figures: Figures
    outcomes: Sequence[MatrixResult]
    environment: dict[str, Any]

    def ordered(self) -> list[MatrixResult]:
        """Results by request in the given order, then by error; failed and skipped ones last."""
        requests = list(dict.fromkeys(outcome.request for outcome in self.outcomes))

        def order(outcome: MatrixResult) -> tuple[bool, int, float]:
            error = outcome.edit.relative_error if outcome.edit else math.inf
            return outcome.edit is None, requests.index(outcome.request), error

        return sorted(self.outcomes, key=order)


def document(report: MatrixReport) -> TextReport:
    """A table by request, the methods without result, and a legend."""
    about = report.matrix
    rows: list[list[str]] = []
    sections, last_request = set(), None
    reduced = [outcome for outcome in report.ordered() if outcome.edit is not None]
    for outcome in reduced:
        if outcome.request != last_request:
            sections.add(len(rows))
            last_request = outcome.request
        rows.append(_line(outcome))
    parts: list[Part] = [_figures(report.figures)]
    if rows:
        parts.append(Table(_HEADINGS, rows, words=2, sections=frozenset(sections)))
    missing = [outcome for outcome in report.ordered() if outcome.edit is None]
    if missing:
        lines = [[o.status, o.method.label, _setting(o), o.reason or ""] for o in missing]
        parts += [Heading("Not reduced"), Table(["status", "reducer", "setting", "reason"], lines, words=4)]
    parts += [_LEGEND, f"Computed on {in_words(report.environment)}."]
    shape = " × ".join(map(str, about["shape"]))
    return TextReport(f"{about['key'] or about['file']}: {shape}, {about['dtype']}, ‖W‖ = {about['norm']:.6g}", parts)


def csv(report: MatrixReport) -> str:
    """One line per method and request."""
    rows = [
        [json.dumps(value) if isinstance(value, dict) else value for value in _row(outcome).values()]
        for outcome in report.ordered()
    ]
    return csv_text(_COLUMNS, rows)


def as_json(report: MatrixReport) -> str:
    """`{"matrix": ..., "environment": ..., "rows": [...]}`; null for missing numbers."""
    data = {
        "matrix": {**report.matrix, **report.figures.values()},
        "environment": report.environment,
        "rows": [_row(outcome) for outcome in report.ordered()],
    }
    return json.dumps(finite(data), indent=2, allow_nan=False) + "\n"


def _row(outcome: MatrixResult) -> dict[str, Any]:
    edit = outcome.edit
    return {
        "reducer": outcome.method.reducer.name,
        "label": outcome.method.label,
        "params": dict(outcome.method.params),
        "requested": outcome.request.requested,
        "status": outcome.status,
        "rank": edit and edit.rank,
        "relative_error": edit and edit.relative_error,
        "optimal_error": outcome.optimum,
        "ratio": outcome.ratio,
        "stored_numbers": edit and edit.stored_numbers,
        "stored_bytes": edit and edit.stored_bytes,
        "stored_as": edit and edit.stored_as,
        "keep": outcome.keep,
        "seconds": outcome.seconds,
        "reason": outcome.reason,
    }


def _line(outcome: MatrixResult) -> list[str]:
    edit, seconds, keep = outcome.edit, outcome.seconds, outcome.keep
    assert edit is not None
    assert seconds is not None
    return [
        outcome.method.label, _setting(outcome), str(edit.rank), f"{edit.relative_error:.4g}",
        f"{outcome.optimum:.4g}" if outcome.optimum is not None else MISSING,
        f"{outcome.ratio:.3f}x" if outcome.ratio is not None else MISSING,
        f"{edit.stored_numbers:,}", f"{keep:.3f}", edit.stored_as, f"{seconds:.4f}",
    ]  # fmt: skip


def _setting(outcome: MatrixResult) -> str:
    return f"{outcome.request.kind} {outcome.request.value:g}"


def _figures(figures: Figures) -> str:
    if figures.zero:
        return "A matrix of zeros."
    return (
        f"Stable rank {figures.stable_rank:.1f}, effective rank {figures.effective_rank:.1f} of {figures.size}; the "
        f"top 10 % of the singular values hold {100 * figures.energy_10:.1f} % of the energy, the top 20 % "
        f"{100 * figures.energy_20:.1f} %; 90 % takes rank {figures.rank_90}, 99 % rank {figures.rank_99}."
    )
