"""lrbench: low-rank decompositions of language-model weights, under one protocol.

The names here are what a plugin author needs, and what notebooks call: `run`, `plan`, `leaderboard`, `reduce`, `load`,
`read_results`. They load on first use, so that importing lrbench does not import torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from lrbench._version import __version__

if TYPE_CHECKING:
    from lrbench.api.leaderboard import leaderboard
    from lrbench.api.plan import plan
    from lrbench.api.reduced import Reduced, reduce
    from lrbench.api.results import Results, read_results
    from lrbench.api.run import run
    from lrbench.export.load import load
    from lrbench.reducers.base import Context, Prepared, Reducer, Slot
    from lrbench.reducers.factors import (
        CUR,
        BlockDiagonalProduct,
        ClusteredLowRank,
        ColumnSubset,
        Dense,
        Factors,
        Interpolative,
        LowRank,
    )
    from lrbench.reducers.low_rank import LowRankReducer

#: Marks a plugin's `lrbench_reducers()`.
hookimpl = pluggy.HookimplMarker("lrbench")

_HOMES = {
    "BlockDiagonalProduct": "lrbench.reducers.factors",
    "CUR": "lrbench.reducers.factors",
    "ClusteredLowRank": "lrbench.reducers.factors",
    "ColumnSubset": "lrbench.reducers.factors",
    "Dense": "lrbench.reducers.factors",
    "Factors": "lrbench.reducers.factors",
    "Interpolative": "lrbench.reducers.factors",
    "LowRank": "lrbench.reducers.factors",
    "LowRankReducer": "lrbench.reducers.low_rank",
    "Context": "lrbench.reducers.base",
    "Prepared": "lrbench.reducers.base",
    "Reducer": "lrbench.reducers.base",
    "Slot": "lrbench.reducers.base",
    "Reduced": "lrbench.api.reduced",
    "reduce": "lrbench.api.reduced",
    "load": "lrbench.export.load",
    "Results": "lrbench.api.results",
    "read_results": "lrbench.api.results",
    "leaderboard": "lrbench.api.leaderboard",
    "plan": "lrbench.api.plan",
    "run": "lrbench.api.run",
}

__all__ = [
    "CUR",
    "BlockDiagonalProduct",
    "ClusteredLowRank",
    "ColumnSubset",
    "Context",
    "Dense",
    "Factors",
    "Interpolative",
    "LowRank",
    "LowRankReducer",
    "Prepared",
    "Reduced",
    "Reducer",
    "Results",
    "Slot",
    "__version__",
    "hookimpl",
    "leaderboard",
    "load",
    "plan",
    "read_results",
    "reduce",
    "run",
]


class _Package(ModuleType):
    """The package. Importing `lrbench.run.runner` does not hide the public function `lrbench.run`.

    The import system binds a subpackage to its parent's attribute of the same name; a public name is left out of that.
    `from lrbench.run.runner import ...` finds the subpackage in `sys.modules` all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lrbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
