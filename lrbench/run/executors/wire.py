"""The messages between a run's process and its workers: JSON that preserves floating-point numbers exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lrbench.evaluation.interface import Partial, Step
from lrbench.models.slots import WeightSlot
from lrbench.reducers.ranks import RankRequest
from lrbench.reduction.plan import WITHOUT_UPDATE, Cell, Method
from lrbench.results.rows import Row
from lrbench.run.cell_scoring import Scored


def pack(data: Any) -> str:
    """Plain data as text, NaN and infinities included."""
    return json.dumps(data, ensure_ascii=False)


def unpack(text: str) -> Any:
    """The inverse of `pack`."""
    return json.loads(text)


def cell_data(cell: Cell) -> dict[str, Any]:
    """A cell as plain data: its method by label, its weights by name."""
    return {
        "method": cell.method.label if cell.method else None,
        "mode": cell.mode,
        "slots": [slot.name for slot in cell.slots],
        "request": _request_data(cell.request),
        "requests": [_request_data(request) for request in cell.requests],
        "first_block": cell.first_block,
        "skip": cell.skip,
        "failure": cell.failure,
        "seed": cell.seed,
        "allocation": cell.allocation,
    }


def cell_from(data: Mapping[str, Any], methods: Mapping[str, Method], slots: Mapping[str, WeightSlot]) -> Cell:
    """The inverse of `cell_data`, with the methods and weights of this process.

    Raises:
        KeyError: a method or weight is unknown.
    """
    label = data["method"]
    own = {**methods, WITHOUT_UPDATE.label: methods.get(WITHOUT_UPDATE.label, WITHOUT_UPDATE)}
    return Cell(
        method=None if label is None else own[label],
        mode=data["mode"],
        slots=tuple(slots[name] for name in data["slots"]),
        request=_request_from(data["request"]),
        first_block=data["first_block"],
        skip=data["skip"],
        failure=data["failure"],
        seed=data["seed"],
        allocation=data["allocation"],
        requests=tuple(request for item in data["requests"] if (request := _request_from(item)) is not None),
    )


def scored_data(scored: Scored) -> dict[str, Any]:
    """A row and its per-document scores as plain data."""
    return {"row": scored.row.model_dump_json(by_alias=True), "samples": scored.samples}


def scored_from(data: Mapping[str, Any]) -> Scored:
    """The inverse of `scored_data`."""
    return Scored(Row.model_validate_json(data["row"]), data["samples"])


def partial_data(partial: Partial) -> dict[str, Any]:
    """A partial answer as plain data."""
    return asdict(partial)


def partials_from(data: Sequence[Mapping[str, Any]]) -> list[Partial]:
    """The inverse of `partial_data`, for several."""
    return [Partial(**entry) for entry in data]


def step_data(step: Step) -> dict[str, Any]:
    """A step of an engine as plain data."""
    return asdict(step)


def step_from(data: Mapping[str, Any]) -> Step:
    """The inverse of `step_data`."""
    return Step(**data)


def _request_data(request: RankRequest | None) -> list[Any] | None:
    return None if request is None else [request.kind, request.value]


def _request_from(data: Sequence[Any] | None) -> RankRequest | None:
    return None if data is None else RankRequest(data[0], data[1])
