"""Updates in a suite: the base that a model was fine-tuned from, held to the plan before and after it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lrbench.errors import ModelError
from lrbench.models.base_model import Base, load_base, not_run, refuse_other_base
from lrbench.models.load import LoadedModel, load_structure
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reduction.plan import Cell, Plan
from lrbench.suite.load import Suite

if TYPE_CHECKING:
    from lrbench.reduction.calibration.statistics import Calibration


def definition_of(cell: Cell, calibration: Calibration | None, base: Base | None) -> dict[str, Any]:
    """What of calibration and base defines a cell's result; nothing of the baseline's."""
    if cell.method is None:
        return {}
    calibrated = calibration.definition(cell) if calibration is not None else {}
    return calibrated if base is None else {**calibrated, "delta": {"base": base.weight_hash}}


def check_base(suite: Suite, inventory: Inventory, plan: Plan, *, trust_remote_code: bool = False) -> None:
    """Refuses a base that a model's weights cannot have come from, as far as its structure tells.

    Raises:
        SuiteError: it cannot be had, or does not fit; at the suite's line.
    """
    if suite.delta is None:
        return
    spec = suite.delta.base
    try:
        base = load_structure(not_run(spec), trust_remote_code=trust_remote_code)
        refuse_other_base(spec.display_name, base, inventory, dict.fromkeys(s for c in plan.cells for s in c.slots))
    except ModelError as error:
        raise suite.error(spec.path, str(error)) from None


def base_of(
    suite: Suite, loaded: LoadedModel, notify: Callable[[str], None], *, trust_remote_code: bool = False
) -> Base | None:
    """The base of a model's updates; None where the suite has none. Raises SuiteError at its line."""
    if suite.delta is None:
        return None
    notify(f"loading base {suite.delta.base.display_name}")
    try:
        return load_base(suite.delta.base, loaded, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise suite.error(suite.delta.base.path, str(error)) from None


def without_unchanged(plan: Plan, changed: Callable[[WeightSlot], bool]) -> Plan:
    """The plan once the base's weights are known: a weight that is the base's own has no update to reduce.

    Cells with such a weight are skipped, since a method that does without one would be another experiment; the cell
    without updates does without them.
    """
    same = {slot.name for slot in {slot for cell in plan.cells for slot in cell.slots} if not changed(slot)}
    cells = []
    for cell in plan.cells:
        own = next((slot.name for slot in cell.slots if slot.name in same), None)
        if own is not None and cell.drops_updates:
            slots = tuple(slot for slot in cell.slots if slot.name not in same)
            if slots:
                cell = replace(cell, slots=slots)
            else:
                cell = replace(cell, skip="every weight is the base's own")
        elif own is not None and not cell.failure:
            cell = replace(cell, skip=f"{own}: the weight is the base's own, so there is no update to reduce")
        cells.append(cell)
    return Plan(tuple(cells))
