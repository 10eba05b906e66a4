"""Correction for multiple tests: of a hundred edits without effect, five are significant at 5 % without it."""

from __future__ import annotations

from collections.abc import Sequence

#: Family-wise error rate: the largest probability of any false rejection in a table.
LEVEL = 0.05


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values: rejecting all up to α makes any false rejection at most as likely as α.

    Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6, 1979: the
    i-th smallest of m is multiplied by m − i + 1, and no adjusted value is below a previous one. It is valid under any
    dependence between the tests, such as a common baseline.

    Args:
        p_values: the p-values of one family of tests; None where no test was made, which stays None.
    """
    places = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(places):
        highest = max(highest, min(1.0, (len(places) - rank) * p))
        adjusted[place] = highest
    return adjusted
