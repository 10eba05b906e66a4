"""lrbench: low-rank decompositions of language-model weights, under one protocol.

The names here are what a plugin author needs, and what notebooks call: `reduce`, `load`, `read_results`. They load on
first use, so that importing lrbench does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from lrbench.export.load import load
    from lrbench.factors import (
        CUR,
        BlockDiagonalProduct,
        ClusteredLowRank,
        ColumnSubset,
        Dense,
        Factors,
        Interpolative,
        LowRank,
    )
    from lrbench.low_rank import LowRankReducer
    from lrbench.reduced import Reduced, reduce
    from lrbench.reducer import Context, Prepared, Reducer, Slot
    from lrbench.results import Results, read_results

__version__ = "0.1.0"

#: Marks a plugin's `lrbench_reducers()`.
hookimpl = pluggy.HookimplMarker("lrbench")

_HOMES = {
    "BlockDiagonalProduct": "lrbench.factors",
    "CUR": "lrbench.factors",
    "ClusteredLowRank": "lrbench.factors",
    "ColumnSubset": "lrbench.factors",
    "Dense": "lrbench.factors",
    "Factors": "lrbench.factors",
    "Interpolative": "lrbench.factors",
    "LowRank": "lrbench.factors",
    "LowRankReducer": "lrbench.low_rank",
    "Context": "lrbench.reducer",
    "Prepared": "lrbench.reducer",
    "Reducer": "lrbench.reducer",
    "Slot": "lrbench.reducer",
    "Reduced": "lrbench.reduced",
    "reduce": "lrbench.reduced",
    "load": "lrbench.export.load",
    "Results": "lrbench.results",
    "read_results": "lrbench.results",
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
