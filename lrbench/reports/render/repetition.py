"""The differences of a repeated run as plain lines: first possible causes, then values."""

from __future__ import annotations

from collections.abc import Iterator

from lrbench.reports.render.number_format import clean
from lrbench.run.repeat import Repetition


def lines(repetition: Repetition) -> Iterator[str]:
    """One line per difference, and a summary of identical cells."""
    if not repetition.comparison.other_differences:
        yield "Machine, versions, suite, data and code are the same."
    for where, what, before, now in repetition.comparison.other_differences:
        place = what if what.startswith(where) else f"{where} {what}"
        yield f"{clean(place)}: {clean(before) or '—'} -> {clean(now) or '—'}"
    for side, cells in (
        ("only before", repetition.comparison.only_first),
        ("only now", repetition.comparison.only_second),
    ):
        for name, row in cells:
            yield f"{clean(name)}: {side} ({row.status})"
    for difference in repetition.differences:
        before, now = clean(difference.first), clean(difference.second)
        yield f"{clean(difference.cell)}: {clean(difference.field)}: {before} -> {now}"
    others = len({difference.cell for difference in repetition.differences})
    both = f"{repetition.cells} cell{'' if repetition.cells == 1 else 's'} in both"
    yield f"{both}: {repetition.cells - others} bit-identical, {others} different."
