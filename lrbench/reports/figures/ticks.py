"""Round numbers for axes that are not linear, on which Vega labels whatever happens to have room."""

from __future__ import annotations

import math

#: How a number of any size is written beside an axis.
LABEL = "datum.value && (abs(datum.value) >= 1e5 || abs(datum.value) < 1e-4) ? format(datum.value, '.0e') : datum.value"


def logarithmic(low: float, high: float) -> list[float]:
    """1, 2, 5 of each power of ten between two positive numbers, 1 and 3 of more than two, 1 of more than four."""
    decades = math.log10(high / low) if high > low else 0.0
    steps = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 4 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
    return [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def about_zero(low: float, high: float, middle: float) -> list[float]:
    """Powers of ten (or threes too) on both sides of zero, none much nearer to it than `middle`."""
    found = [0.0]
    for sign, most in ((1, high), (-1, -low)):
        if most > middle:
            found += [sign * value for value in logarithmic(middle, most)][-6:]
    return sorted(found)
