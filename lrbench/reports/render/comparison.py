"""A comparison of two runs or rows as text: terminal, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lrbench.analysis.comparison import Comparison, Contrast, Match
from lrbench.analysis.leaderboard import Column
from lrbench.reports.render.csv import field
from lrbench.reports.render.json import finite
from lrbench.reports.render.markdown import escape, line
from lrbench.reports.render.number_format import clean, number, p_value, signed
from lrbench.stats.metric_names import is_fraction

FORMATS = ("terminal", "markdown", "csv", "json")

_NOTE = (
    "Differences are second minus first; accuracies in %. [95 %]: bootstrap interval (BCa), documents resampled in "
    "pairs. p: exact sign-flip test paired by document (McNemar's where answers are right or wrong), after Holm's "
    "correction over the compared cells of each metric; * at most 5 %."
)
_HEADER = ("cell", "task", "metric", "first", "second", "difference", "[95 %]", "p (Holm)")


def render(comparison: Comparison, name: str) -> str:
    """The comparison in one of `FORMATS`, without escape sequences; `terminal` is as wide as needed."""
    if name == "terminal":
        out = io.StringIO()
        Console(file=out, width=_width(comparison), color_system=None, force_terminal=False).print(_page(comparison))
        return "\n".join(text.rstrip() for text in out.getvalue().splitlines()) + "\n"
    return {"markdown": _markdown, "csv": _csv, "json": _json}[name](comparison)


def show(comparison: Comparison) -> None:
    """Prints the comparison to standard output."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(_page(comparison))
    else:
        console.file.write(render(comparison, "terminal"))


def summary(comparison: Comparison) -> list[str]:
    """Sentences on matched cells, differing cells and significant differences."""
    matches = comparison.matches
    ways = {"hash": "by hash", "description": "by model, label, setting, weights and seed", "request": "as requested"}
    counts = [f"{n} {words}" for by, words in ways.items() if (n := sum(match.by == by for match in matches))]
    first, second = (clean(name) for name in comparison.names)
    lines = [*_nothing_shared(comparison), f"First: {first}. Second: {second}."]
    lines.append(
        f"{len(matches)} cell{'' if len(matches) == 1 else 's'} in both"
        + (f" ({'; '.join(counts)})." if counts else ".")
    )
    same = sum(match.same for match in matches)
    significant = sum(any(contrast.significant and contrast.main for contrast in match.contrasts) for match in matches)
    if matches:
        lines.append(
            f"{same} with the same scores in every digit, {len(matches) - same} that differ, "
            f"{significant} of them by more than chance."
        )
    unpaired = sorted({contrast.unpaired for match in matches for contrast in match.contrasts if contrast.unpaired})
    if unpaired:
        lines.append(f"Some scores could not be paired by document: {'; '.join(unpaired)}.")
    return lines


def _nothing_shared(comparison: Comparison) -> Iterator[str]:
    """A note if the two runs have no model, and therefore no cell, in common."""
    first, second = (
        list(dict.fromkeys(row.model for _, row in rows)) for rows in (comparison.only_first, comparison.only_second)
    )
    if not comparison.matches and first and second and not set(first) & set(second):
        yield (
            f"No model is in both: the first has {clean(', '.join(first))}, the second {clean(', '.join(second))}. "
            "There is nothing to compare; `--rows A B` compares any two rows."
        )


def _width(comparison: Comparison) -> int:
    rows = [_HEADER, *(row for _, row in _rows(comparison))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADER))]
    return max(100, min(400, sum(widths) + 2 * len(widths)))


def _rows(comparison: Comparison) -> Iterator[tuple[Contrast, tuple[str, ...]]]:
    """The displayed rows: the primary metric of each task in cells whose scores differ."""
    for match in comparison.matches:
        for contrast in match.contrasts:
            if contrast.main and not contrast.same:
                yield contrast, _words(match, contrast)


def _words(match: Match, contrast: Contrast) -> tuple[str, ...]:
    percent = is_fraction(contrast.metric)
    column, scale = Column("", ("", ""), "share" if percent else "score"), 100.0 if percent else 1.0
    difference = contrast.difference
    ends = (
        [signed(end * scale, column) for end in difference.interval]
        if difference is not None and difference.interval
        else []
    )
    p = p_value(contrast.p_holm) if contrast.p_holm is not None else contrast.unpaired
    return (
        clean(match.name), clean(contrast.task), clean(contrast.metric) + (" %" if percent else ""),
        number(contrast.first * scale, column), number(contrast.second * scale, column),
        signed(contrast.delta * scale, column) + ("*" if contrast.significant else ""),
        f"[{', '.join(ends)}]" if ends else "", p,
    )  # fmt: skip


def _statuses(comparison: Comparison) -> list[tuple[str, str, str]]:
    return [
        (clean(m.name), _status(m.first), _status(m.second))
        for m in comparison.matches
        if m.first.status != m.second.status
    ]


def _status(row: Any) -> str:
    return clean(f"{row.status}: {row.reason}" if row.reason else row.status)


def _missing(comparison: Comparison) -> Iterator[tuple[str, list[str]]]:
    for words, rows in (("first", comparison.only_first), ("second", comparison.only_second)):
        if rows:
            yield f"Only in the {words} ({len(rows)})", [clean(f"{name} ({row.status})") for name, row in rows]


def _page(comparison: Comparison) -> Group:
    parts: list[RenderableType] = [
        Text(text, style="bold" if not place else "") for place, text in enumerate(summary(comparison))
    ]
    rows = list(_rows(comparison))
    if rows:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for place, heading in enumerate(_HEADER):
            table.add_column(Text(heading), justify="left" if place < 3 else "right", overflow="fold")
        for contrast, of_contrast in rows:
            table.add_row(*(Text(word) for word in of_contrast), style="" if contrast.significant else "dim")
        parts += [Text(), table, Text(), Text(_NOTE, style="dim")]
    for title, cells in _missing(comparison):
        parts += [Text(), Text(title, style="bold"), *(Text(f"  {cell}") for cell in cells)]
    for name, header, lines in _tables(comparison):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for heading in header:
            table.add_column(Text(heading), overflow="fold")
        for words in lines:
            table.add_row(*(Text(word) for word in words))
        parts += [Text(), Text(name, style="bold"), table]
    return Group(*parts)


def _tables(comparison: Comparison) -> Iterator[tuple[str, Sequence[str], list[Sequence[str]]]]:
    statuses = _statuses(comparison)
    if statuses:
        yield "Scored in only one", ("cell", "first", "second"), list(statuses)
    others = [tuple(clean(word) for word in words) for words in comparison.other_differences]
    if others:
        yield "Other differences", ("where", "what", "first", "second"), list(others)
    else:
        yield "Other differences", ("nothing recorded",), []


def _markdown(comparison: Comparison) -> str:
    lines = [escape(text) + "  " for text in summary(comparison)]
    rows = list(_rows(comparison))
    if rows:
        lines += ["", line([escape(word) for word in _HEADER]), line([*[":--"] * 3, *["--:"] * 5])]
        lines += [line([escape(word) for word in words]) for _, words in rows]
        lines += ["", escape(_NOTE)]
    for title, cells in _missing(comparison):
        lines += ["", f"{escape(title)}:", "", *(f"- {escape(cell)}" for cell in cells)]
    for name, header, of_table in _tables(comparison):
        lines += ["", f"{escape(name)}:", "", line([escape(word) for word in header]), line([":--"] * len(header))]
        lines += [line([escape(cell) for cell in cells]) for cells in of_table]
    return "\n".join(lines) + "\n"


def _csv(comparison: Comparison) -> str:
    """One line per metric and cell; cells of only one run have no values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    records = list(_records(comparison))
    writer.writerow(_FIELDS)
    for record in records:
        writer.writerow([field(record[name]) for name in _FIELDS])
    return text.getvalue()


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


def _json(comparison: Comparison) -> str:
    document = {
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
    return json.dumps(finite(document), indent=2, allow_nan=False) + "\n"
