"""lrbench: low-rank decompositions of language-model weights, under one protocol.

The names here are what a plugin author needs, and what notebooks call: `reduce`, `load`, `read_results`. They load on
first use, so that importing lrbench does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pluggy

from lrbench._version import __version__

if TYPE_CHECKING:
    from lrbench.api.reduced import Reduced, reduce
    from lrbench.api.results import Results, read_results
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
    "load",
    "read_results",
    "reduce",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lrbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
