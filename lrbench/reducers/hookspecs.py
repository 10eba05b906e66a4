"""The hooks a plugin may implement, with `@lrbench.hookimpl`. There is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer

_hookspec = pluggy.HookspecMarker("lrbench")


@_hookspec
def lrbench_reducers() -> list[type[Reducer]]:  # type: ignore[empty-body]
    """The reducers this plugin offers: classes, not instances.

    Each has a `name` of its own (lower case, digits, hyphens) that no other plugin uses, and parameters with defaults.
    Called once per process and plugin. What it raises is shown by `lrbench plugins list`, and breaks nothing else.
    """
