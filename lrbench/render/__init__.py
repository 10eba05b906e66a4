"""Leaderboards as text: one file a format, each with `render(board) -> str`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from lrbench.leaderboard import Leaderboard

#: Format -> the module that writes it; loaded when it is asked for.
FORMATS = {
    "terminal": "lrbench.render.terminal",
    "markdown": "lrbench.render.markdown",
    "latex": "lrbench.render.latex",
    "html": "lrbench.render.html",
    "csv": "lrbench.render.csv",
    "json": "lrbench.render.json",
}


def renderer(name: str) -> Callable[[Leaderboard], str]:
    """The `render` of a format."""
    render: Callable[[Leaderboard], str] = importlib.import_module(FORMATS[name]).render
    return render
