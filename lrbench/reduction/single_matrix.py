"""Applies reducers to one matrix without a model, by the same code as a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lrbench.errors import LrbenchError, PluginError
from lrbench.models.slots import WeightSlot
from lrbench.reducers.base import Slot
from lrbench.reducers.parameters import values
from lrbench.reducers.ranks import RankRequest, inapplicable
from lrbench.reducers.registry import Registry
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.plan import Cell, Method, refusal
from lrbench.results.rows import Edit
from lrbench.suite.yaml_reader import parse_yaml


@dataclass(frozen=True)
class MatrixResult:
    """One method at one rank request: an `edit` with its seconds, or the reason why there is none."""

    method: Method
    request: RankRequest
    edit: Edit | None = None
    seconds: float | None = None
    status: str = "ok"
    reason: str | None = None

    @property
    def optimum(self) -> float | None:
        """The least relative error of any matrix of the edit's rank.

        None for methods whose rank is not that of the whole matrix: a product of low-rank blocks may have full rank.
        """
        return self.edit.optimal_error if self.edit and self.method.reducer.rank_of == "weight" else None

    @property
    def ratio(self) -> float | None:
        """Relative error over the optimum; None without an optimum or if it is below float32 rounding."""
        if self.edit is None or self.optimum is None or self.optimum <= 1e-6:
            return None
        return self.edit.relative_error / self.optimum

    @property
    def keep(self) -> float | None:
        """Stored parameters over those of the matrix."""
        if self.edit is None:
            return None
        rows, columns = self.edit.shape
        return self.edit.stored_numbers / (rows * columns)


def slot_of(matrix: torch.Tensor, name: str) -> WeightSlot:
    """A weight slot without a model.

    Args:
        matrix: (out, in), in the dtype in which factors are stored.
        name: used in messages; reducers' random draws depend on it, as in a run.
    """
    holder = nn.Module()
    holder.weight = nn.Parameter(matrix, requires_grad=False)
    return WeightSlot(Slot(name=name, layer=None, role=None, shape=(matrix.shape[0], matrix.shape[1])), holder)


def method(text: str, registry: Registry) -> Method:
    """Parses `NAME` or `NAME:param=value,param=value`, with values as in YAML.

    Raises:
        PluginError: no such reducer or parameter, a wrong value, or malformed text.
    """
    name, colon, settings = text.partition(":")
    params = {}
    for part in _split(settings) if colon else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or key.strip() in params:
            raise PluginError(f"--reducer {text}: write NAME:param=value,param=value, each parameter once")
        params[key.strip()] = parse_yaml(value, f"--reducer {text}", in_file=False).data
    reducer = registry.build(name.strip(), params)
    return Method(text, reducer, values(reducer), registry.source_hash(reducer.name))


def reduce_matrix(
    slot: WeightSlot,
    methods: Sequence[Method],
    requests: Sequence[RankRequest],
    seed: int = 0,
    *,
    skip_inapplicable: bool = False,
) -> Iterator[MatrixResult]:
    """Applies each method at each request: checked, timed, and measured after rounding to the matrix's dtype.

    Methods that need calibration or do not support the slot yield results with status `skipped`.

    Args:
        slot: as returned by `slot_of`.
        methods, requests: every pair gives one result.
        seed: of the methods' random draws.
        skip_inapplicable: skip a method that does not support this kind of request instead of failing.
    """
    reductions = CellReducer(seed)
    for method in methods:
        skip, failure = _refused(method, slot)
        if skip or failure:
            status = "skipped" if skip else "failed"
            yield from (MatrixResult(method, request, status=status, reason=skip or failure) for request in requests)
            continue
        reasons = [inapplicable(request, method.reducer) if skip_inapplicable else None for request in requests]
        yield from (
            MatrixResult(method, request, status="skipped", reason=reason)
            for request, reason in zip(requests, reasons, strict=True)
            if reason
        )
        cells = [
            Cell(method, "each", (slot,), request)
            for request, reason in zip(requests, reasons, strict=True)
            if reason is None
        ]
        for cell, outcome in reductions.reduce_group(cells) if cells else ():
            assert cell.request is not None
            if isinstance(outcome, LrbenchError):
                yield MatrixResult(method, cell.request, status="failed", reason=str(outcome))
            else:
                yield MatrixResult(method, cell.request, outcome[0].edit, outcome[0].seconds)


def _refused(method: Method, slot: WeightSlot) -> tuple[str | None, str | None]:
    if method.reducer.needs:
        needs = ", ".join(sorted(method.reducer.needs))
        return f"{method.label} needs calibration ({needs}), which requires a model", None
    return refusal(method, (slot,))


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        depth += (char in "[{") - (char in "]}") if not quote else 0
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts
