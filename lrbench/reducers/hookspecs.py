"""The hook that a plugin implements with `@lrbench.hookimpl`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer

_hookspec = pluggy.HookspecMarker("lrbench")


@_hookspec
def lrbench_reducers() -> list[type[Reducer]]:  # type: ignore[empty-body]
    """Returns the plugin's reducers, as a list of classes (not instances).

    Each class needs a unique `name` (lower-case words joined by hyphens), and a default for each parameter. Called once
    per process. If it raises, `lrbench plugins list` shows the error, and other plugins still load.
    """
