"""Many tests at once: of a hundred edits that do nothing, five pass at 5 %, and the luckiest looks like a finding."""

from __future__ import annotations

from collections.abc import Sequence

#: The chance, at most, that a table claims a difference where there is none.
LEVEL = 0.05


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: reject those at most `LEVEL`, and the chance of any false rejection is at most that.

    Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6, 1979: the
    i-th smallest of m is multiplied by m − i + 1, and no adjusted value is below one that comes before it. It holds
    however the tests depend on one another, as those against one baseline do.

    Args:
        p_values: of one family of tests; None where there was nothing to test, which takes no part.
    """
    places = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(places):
        highest = max(highest, min(1.0, (len(places) - rank) * p))
        adjusted[place] = highest
    return adjusted
