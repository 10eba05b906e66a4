"""A comparison of two runs or rows as a document, as CSV and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lrbench.analysis.comparison import Comparison, Contrast, Match
from lrbench.analysis.leaderboard import Column
from lrbench.reports.render.document import Heading, Part, Table, TextReport, csv_text
from lrbench.reports.render.json import finite
from lrbench.reports.render.number_format import number, p_value, signed
from lrbench.results.rows import Row
from lrbench.stats.metric_names import is_fraction

_NOTE = (
    "Differences are second minus first; accuracies in %. [95 %]: bootstrap interval (BCa), documents resampled in "
    "pairs. p: exact sign-flip test paired by document (McNemar's where answers are right or wrong), after Holm's "
    "correction over the compared cells of each metric; * at most 5 %."
)
_HEADER = ("cell", "task", "metric", "first", "second", "difference", "[95 %]", "p (Holm)")


def document(comparison: Comparison) -> TextReport:
    """A summary, the cells whose scores differ, the cells of only one run, and all other differences."""
    parts: list[Part] = [" ".join(_summary(comparison))]
    rows = [
        (contrast, _words(match, contrast))
        for match in comparison.matches
        for contrast in match.contrasts
        if contrast.main and not contrast.same
    ]
    if rows:
        faint = frozenset(index for index, (contrast, _) in enumerate(rows) if not contrast.significant)
        parts += [Table(_HEADER, [words for _, words in rows], words=3, faint=faint), _NOTE]
    for side, cells in (("first", comparison.only_first), ("second", comparison.only_second)):
        if cells:
            parts += [Heading(f"Only in the {side} ({len(cells)})")]
            parts += [Table(("cell", "status"), [(name, row.status) for name, row in cells], words=2)]
    statuses = [
        (match.name, _status(match.first), _status(match.second))
        for match in comparison.matches
        if match.first.status != match.second.status
    ]
    if statuses:
        parts += [Heading("Scored in only one"), Table(("cell", "first", "second"), statuses, words=3)]
    parts.append(Heading("Other differences"))
    if comparison.other_differences:
        parts.append(Table(("where", "what", "first", "second"), comparison.other_differences, words=4))
    else:
        parts.append("There are none on record.")
    return TextReport("First: {}. Second: {}.".format(*comparison.names), parts)


def _summary(comparison: Comparison) -> Iterator[str]:
    """Sentences on matched cells, differing cells and significant differences."""
    matches = comparison.matches
    first, second = (
        list(dict.fromkeys(row.model for _, row in rows)) for rows in (comparison.only_first, comparison.only_second)
    )
    if not matches and first and second and not set(first) & set(second):
        yield (
            f"No model is in both: the first has {', '.join(first)}, the second {', '.join(second)}. "
            "There is nothing to compare; `--rows A B` compares any two rows."
        )
    ways = {"hash": "by hash", "description": "by model, label, setting, weights and seed", "request": "as requested"}
    counts = [f"{n} {words}" for by, words in ways.items() if (n := sum(match.by == by for match in matches))]
    how = f" ({'; '.join(counts)})" if counts else ""
    yield f"{len(matches)} cell{'' if len(matches) == 1 else 's'} in both{how}."
    same = sum(match.same for match in matches)
    significant = sum(any(contrast.significant and contrast.main for contrast in match.contrasts) for match in matches)
    if matches:
        yield (
            f"{same} with the same scores in every digit, {len(matches) - same} that differ, "
            f"{significant} of them by more than chance."
        )
    unpaired = sorted({contrast.unpaired for match in matches for contrast in match.contrasts if contrast.unpaired})
    if unpaired:
        yield f"Some scores could not be paired by document: {'; '.join(unpaired)}."


def _words(match: Match, contrast: Contrast) -> tuple[str, ...]:
    percent = is_fraction(contrast.metric)
    column, scale = Column("", ("", ""), "share" if percent else "score"), 100.0 if percent else 1.0
    difference = contrast.difference
    interval = difference.interval if difference is not None else None
    ends = [signed(end * scale, column) for end in interval or ()]
    p = p_value(contrast.p_holm) if contrast.p_holm is not None else contrast.unpaired
    return (
        match.name, contrast.task, contrast.metric + (" %" if percent else ""),
        number(contrast.first * scale, column), number(contrast.second * scale, column),
        signed(contrast.delta * scale, column) + ("*" if contrast.significant else ""),
        f"[{', '.join(ends)}]" if ends else "", p,
    )  # fmt: skip


def _status(row: Row) -> str:
    return f"{row.status}: {row.reason}" if row.reason else row.status


def csv(comparison: Comparison) -> str:
    """One line per metric and cell; cells of only one run have no values."""
    return csv_text(_FIELDS, (list(record.values()) for record in _records(comparison)))


_FIELDS = (
    *("first_cell", "second_cell", "matched_by", "name", "task", "metric", "first", "second", "delta", "delta_stderr"),
    *("delta_low", "delta_high", "n", "p_value", "p_holm", "significant", "unpaired", "first_status", "second_status"),
)


def _records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(_FIELDS)
    for match in comparison.matches:
        about = {
            **empty, "first_cell": match.first.cell, "second_cell": match.second.cell, "matched_by": match.by,
            "name": match.name, "first_status": match.first.status, "second_status": match.second.status,
        }  # fmt: skip
        if not match.contrasts:
            yield about
        for contrast in match.contrasts:
            difference = contrast.difference
            low, high = (difference.interval if difference is not None else None) or (None, None)
            yield {
                **about, "task": contrast.task, "metric": contrast.metric, "first": contrast.first,
                "second": contrast.second, "delta": contrast.delta, "delta_low": low, "delta_high": high,
                "delta_stderr": difference.stderr if difference is not None else None,
                "n": difference.n if difference is not None else None,
                "p_value": difference.p_value if difference is not None else None,
                "p_holm": contrast.p_holm, "significant": contrast.significant, "unpaired": contrast.unpaired or None,
            }  # fmt: skip
    for side, rows in (("first", comparison.only_first), ("second", comparison.only_second)):
        for name, row in rows:
            yield {**empty, f"{side}_cell": row.cell, "name": name, f"{side}_status": row.status}


def as_json(comparison: Comparison) -> str:
    """`{"first", "second", "cells", "only_first", "only_second", "elsewhere"}`; null for missing numbers."""
    data = {
        "first": comparison.names[0],
        "second": comparison.names[1],
        "cells": [record for record in _records(comparison) if record["matched_by"]],
        "only_first": [{"cell": row.cell, "name": name, "status": row.status} for name, row in comparison.only_first],
        "only_second": [{"cell": row.cell, "name": name, "status": row.status} for name, row in comparison.only_second],
        "elsewhere": [
            {"where": where, "what": what, "first": first, "second": second}
            for where, what, first, second in comparison.other_differences
        ],
    }
    return json.dumps(finite(data), indent=2, allow_nan=False) + "\n"
