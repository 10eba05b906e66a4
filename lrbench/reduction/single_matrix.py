"""Reducers on one matrix that belongs to no model: the harness's own path, so that figures are those of a run."""

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
from lrbench.reduction.cell_reducer import Reductions
from lrbench.reduction.plan import Cell, Method, refusal
from lrbench.results.rows import Edit
from lrbench.suite.yaml_reader import parse_yaml


@dataclass(frozen=True)
class Outcome:
    """One method at one request on the matrix: an `edit` and its seconds, or the reason why there is none."""

    method: Method
    request: RankRequest
    edit: Edit | None = None
    seconds: float | None = None
    status: str = "ok"
    reason: str | None = None

    @property
    def optimum(self) -> float | None:
        """The least relative error of any matrix of the edit's rank.

        None for a method that is not asked for a rank of the matrix: what it makes of blocks of a small rank may have
        full rank, of which the optimum is 0 and says nothing.
        """
        return self.edit.optimal_error if self.edit and self.method.reducer.rank_of == "weight" else None

    @property
    def ratio(self) -> float | None:
        """Relative error over the optimum; None without one, or where it is below single precision's rounding."""
        if self.edit is None or self.optimum is None or self.optimum <= 1e-6:
            return None
        return self.edit.relative_error / self.optimum

    @property
    def keep(self) -> float | None:
        """Stored numbers over those of the matrix."""
        if self.edit is None:
            return None
        rows, columns = self.edit.shape
        return self.edit.stored_numbers / (rows * columns)


def slot_of(matrix: torch.Tensor, name: str) -> WeightSlot:
    """A weight slot without a model around it.

    Args:
        matrix: (out, in), of the dtype that factors are to be stored in.
        name: what messages call it; reducers' random draws depend on it, as in a run.
    """
    holder = nn.Module()
    holder.weight = nn.Parameter(matrix, requires_grad=False)
    return WeightSlot(Slot(name=name, layer=None, role=None, shape=(matrix.shape[0], matrix.shape[1])), holder)


def method(text: str, registry: Registry) -> Method:
    """A method as a person types it: `NAME` or `NAME:param=value,param=value`, values as in YAML.

    Raises:
        PluginError: no such reducer or parameter, a wrong value, or text that is none of this.
    """
    name, colon, rest = text.partition(":")
    params = {}
    for part in _split(rest) if colon else ():
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
) -> Iterator[Outcome]:
    """Each method at each request, measured as in a run: after rounding to the matrix's dtype, checked, timed.

    Methods that need calibration, or that do not support the slot, are outcomes of status `skipped`.

    Args:
        slot: as `slot_of` makes it.
        methods, requests: every pair is an outcome.
        seed: of what methods draw.
        skip_inapplicable: whether a method that cannot be asked for ranks of that kind is skipped; else it fails.
    """
    reductions = Reductions(seed)
    for each in methods:
        skip, failure = _refused(each, slot)
        if skip or failure:
            status = "skipped" if skip else "failed"
            yield from (Outcome(each, request, status=status, reason=skip or failure) for request in requests)
            continue
        reasons = [inapplicable(request, each.reducer) if skip_inapplicable else None for request in requests]
        yield from (
            Outcome(each, request, status="skipped", reason=reason)
            for request, reason in zip(requests, reasons, strict=True)
            if reason
        )
        cells = [
            Cell(each, "each", (slot,), request)
            for request, reason in zip(requests, reasons, strict=True)
            if reason is None
        ]
        for cell, done in reductions.of_group(cells) if cells else ():
            assert cell.request is not None
            if isinstance(done, LrbenchError):
                yield Outcome(each, cell.request, status="failed", reason=str(done))
            else:
                yield Outcome(each, cell.request, done[0].edit, done[0].seconds)


def _refused(each: Method, slot: WeightSlot) -> tuple[str | None, str | None]:
    if each.reducer.needs:
        needs = ", ".join(sorted(each.reducer.needs))
        return f"{each.label} needs calibration ({needs}), which a matrix without its model has not", None
    return refusal(each, (slot,))


def _split(text: str) -> list[str]:
    """At commas that stand in no brackets or quotes."""
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
