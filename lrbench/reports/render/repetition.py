"""What a repeated run differs in, as plain lines: first what may explain it, then the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from lrbench.reports.render.number_format import clean
from lrbench.run.repeat import Repetition


def lines(found: Repetition) -> Iterator[str]:
    """A line for each difference, and one that says how many cells are the same."""
    if not found.comparison.other_differences:
        yield "Machine, versions, suite, data and code are the same."
    for where, what, before, now in found.comparison.other_differences:
        place = what if what.startswith(where) else f"{where} {what}"
        yield f"{clean(place)}: {clean(before) or '—'} -> {clean(now) or '—'}"
    for side, cells in (("only before", found.comparison.only_first), ("only now", found.comparison.only_second)):
        for name, row in cells:
            yield f"{clean(name)}: {side} ({row.status})"
    for difference in found.differences:
        before, now = clean(difference.first), clean(difference.second)
        yield f"{clean(difference.cell)}: {clean(difference.field)}: {before} -> {now}"
    others = len({difference.cell for difference in found.differences})
    both = f"{found.cells} cell{'' if found.cells == 1 else 's'} in both"
    yield f"{both}: {found.cells - others} with the same numbers to the last bit, {others} with others."
