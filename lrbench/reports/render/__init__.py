"""Leaderboards as text: one module per format, each with `render(board) -> str`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrbench.analysis.leaderboard import Leaderboard

#: Format -> module, imported at first use.
FORMATS = {
    "terminal": "lrbench.reports.render.terminal",
    "markdown": "lrbench.reports.render.markdown",
    "latex": "lrbench.reports.render.latex",
    "html": "lrbench.reports.render.html",
    "csv": "lrbench.reports.render.csv",
    "json": "lrbench.reports.render.json",
}


def renderer(name: str) -> Callable[[Leaderboard], str]:
    """The function `render` of a format."""
    render: Callable[[Leaderboard], str] = importlib.import_module(FORMATS[name]).render
    return render
