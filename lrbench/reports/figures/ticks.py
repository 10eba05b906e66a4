"""Round tick values for nonlinear axes, which Vega labels badly."""

from __future__ import annotations

import math

#: The Vega expression that formats tick labels.
LABEL = "datum.value && (abs(datum.value) >= 1e5 || abs(datum.value) < 1e-4) ? format(datum.value, '.0e') : datum.value"


def logarithmic(low: float, high: float) -> list[float]:
    """Ticks between two positive numbers: 1, 2, 5 per decade; 1, 3 beyond two decades; 1 beyond four."""
    decades = math.log10(high / low) if high > low else 0.0
    steps = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 4 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
    return [value for value in ticks if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def about_zero(low: float, high: float, middle: float) -> list[float]:
    """Logarithmic ticks on both sides of zero, none much closer to it than `middle`."""
    ticks = [0.0]
    for sign, end in ((1, high), (-1, -low)):
        if end > middle:
            ticks += [sign * value for value in logarithmic(middle, end)][-6:]
    return sorted(ticks)
