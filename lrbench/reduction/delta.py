"""Reducing updates W − W_base: loads the base of a fine-tuned model and checks that it fits the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lrbench.errors import ModelError
from lrbench.models.base_model import Base, check_base_slots, load_base, with_eager_attention
from lrbench.models.load import LoadedModel, load_structure
from lrbench.models.slots import Inventory, WeightSlot
from lrbench.reduction.plan import Cell, Plan
from lrbench.suite.load import DeltaSpec

if TYPE_CHECKING:
    from lrbench.reduction.calibration.statistics import Calibration


def definition_of(cell: Cell, calibration: Calibration | None, base: Base | None) -> dict[str, Any]:
    """The parts of calibration and base that enter a cell's hash; empty for the baseline."""
    if cell.method is None:
        return {}
    calibrated = calibration.definition(cell) if calibration is not None else {}
    return calibrated if base is None else {**calibrated, "delta": {"base": base.weight_hash}}


def check_base(
    delta: DeltaSpec | None,
    inventory: Inventory,
    slots: Iterable[WeightSlot],
    notify: Callable[[str], None],
    *,
    trust_remote_code: bool = False,
) -> None:
    """Checks by structure alone that the base of `delta` can be the model's base.

    Args:
        inventory: the model's.
        slots: the ones to reduce.
        notify: called with one line before a slow step.

    Raises:
        SuiteError: the base cannot be loaded or does not fit; names the suite's line.
    """
    if delta is None:
        return
    spec = delta.base
    try:
        base = load_structure(with_eager_attention(spec), notify, trust_remote_code=trust_remote_code)
        check_base_slots(spec.display_name, base, inventory, slots)
    except ModelError as error:
        raise spec.error_at(str(error)) from None


def base_of(
    delta: DeltaSpec | None, loaded: LoadedModel, notify: Callable[[str], None], *, trust_remote_code: bool = False
) -> Base | None:
    """Loads the base of `delta`. Raises SuiteError at the suite's line."""
    if delta is None:
        return None
    notify(f"loading base {delta.base.display_name}")
    try:
        return load_base(delta.base, loaded, notify, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise delta.base.error_at(str(error)) from None


def without_unchanged(plan: Plan, changed: Callable[[WeightSlot], bool]) -> Plan:
    """Removes weights that equal the base's, which have no update to reduce.

    Cells that contain such a weight are skipped, since leaving it out would be another experiment. Only the cell that
    drops all updates is kept, without these weights.
    """
    slots_of_plan = {slot for cell in plan.cells for slot in cell.slots}
    unchanged_names = {slot.name for slot in slots_of_plan if not changed(slot)}
    tuned = [slot.about.role or slot.name for slot in slots_of_plan if slot.name not in unchanged_names]
    remedy = f"; fine-tuning changed {len(tuned)} of the suite's weights ({', '.join(sorted(set(tuned)))})"
    cells = []
    for cell in plan.cells:
        unchanged = next((slot.name for slot in cell.slots if slot.name in unchanged_names), None)
        if unchanged is not None and cell.drops_updates:
            slots = tuple(slot for slot in cell.slots if slot.name not in unchanged_names)
            if slots:
                cell = replace(cell, slots=slots)
            else:
                cell = replace(cell, skip="every weight is the base's own")
        elif unchanged is not None and not cell.failure:
            reason = f"{unchanged}: the weight is the base's own, so there is no update to reduce"
            cell = replace(cell, skip=reason + remedy)
        cells.append(cell)
    return Plan(tuple(cells))
