"""Cases that `make slow` runs and `make test` leaves out."""

from typing import Any

import pytest


def slow_cases(*cases: Any) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`, each marked slow."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
