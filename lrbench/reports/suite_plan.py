"""A suite's plan before it runs: its tasks, the weights found in its models, its cells, and what would fail."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrbench.models.slots import Inventory
from lrbench.reducers.registry import Registry
from lrbench.reduction.greedy_plan import Composition, compositions_in_words, make_compositions
from lrbench.reduction.plan import Cell, Method, Plan, make_plan, methods, swept_slots
from lrbench.reports.render.number_format import by_reason
from lrbench.run.inputs import default_directory, structure_of, tasks_of
from lrbench.suite.load import ModelSpec, RaceSpec, SelectSpec, Suite
from lrbench.suite.roles import ROLES
from lrbench.system.text import printable

if TYPE_CHECKING:
    from lrbench.tasks.task_set import TaskSet


@dataclass(frozen=True)
class ModelPlan:
    """What a suite does to one model.

    Attributes:
        spec: the model, as the suite gives it.
        inventory: its weight slots.
        plan: its cells.
        compositions: its greedy sweeps, whose cells depend on scores.
    """

    spec: ModelSpec
    inventory: Inventory
    plan: Plan
    compositions: Sequence[Composition]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.display_name

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells in the order of the run, the baseline first."""
        return self.plan.cells

    @property
    def weights(self) -> list[str]:
        """Names of the weights that can be reduced."""
        return [slot.name for slot in self.inventory.slots]

    @property
    def missing_roles(self) -> list[str]:
        """Roles that no weight of the model has."""
        return [role for role in ROLES if role not in self.inventory.roles]

    @property
    def failures(self) -> list[tuple[Cell, str]]:
        """Cells that are known to fail, each with the reason."""
        return self.plan.impossible()

    @property
    def skips(self) -> list[tuple[Cell, str]]:
        """Cells that would be skipped, each with the reason."""
        return [(cell, cell.skip) for cell in self.cells if cell.skip]

    def lines(self) -> Iterator[str]:
        """The plan in words, as `lrbench check` prints it."""
        yield f"model {self.name}: {len(self.inventory.blocks)} blocks, {len(self.inventory.slots)} weight slots"
        yield from _slot_lines(self)
        yield ""
        yield from _cell_lines(self)
        for line in compositions_in_words(self.compositions):
            yield f"  {line}"


@dataclass(frozen=True, repr=False)
class SuitePlan:
    """What a run of a suite would do; nothing is computed. Printed, it reads as `lrbench check` shows it.

    Attributes:
        suite: the suite.
        directory: the run's directory.
        tasks: the tasks with their documents.
        methods: the reducers with their parameters.
        models: the plan of each model.
        calibration_characters: the length of the calibration text; None without calibration.
    """

    suite: Suite
    directory: Path
    tasks: TaskSet
    methods: Sequence[Method]
    models: Sequence[ModelPlan]
    calibration_characters: int | None = None

    @property
    def would_fail(self) -> bool:
        """Whether some cell is known to fail."""
        return any(model.failures for model in self.models)

    def heading(self) -> Iterator[str]:
        """Everything but the models, in words."""
        yield f"{self.suite.name}  (run directory {self.directory})"
        yield ""
        yield "tasks"
        for line in self.tasks.summary():
            yield f"  {line}"
        if self.suite.calibration is not None:
            yield ""
            yield "calibration"
            yield f"  text of {self.calibration_characters:,} characters, {self.suite.calibration.samples} samples"
        if self.suite.select is not None:
            yield ""
            yield from _selection_lines(self.suite.select, self.suite.race)

    def __repr__(self) -> str:
        lines = list(self.heading())
        for model in self.models:
            lines += ["", *model.lines()]
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def plan_suite(
    suite: Suite,
    registry: Registry,
    notify: Callable[[str], None],
    *,
    directory: Path | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> SuitePlan:
    """Plans a suite: reads its tasks and text, and its models' structure without their weights.

    Args:
        suite: the suite.
        registry: the reducers.
        notify: called with one line before slow steps.
        directory: the run's directory, by default the suite's.
        device: must be there.
        trust_remote_code: lets models whose suite asks for it run their repositories' own code.

    Raises:
        InputError: something in the suite is wrong.
    """
    suite_methods = methods(suite, registry)
    tasks = tasks_of(suite)
    text = None
    if suite.calibration is not None:
        from lrbench.reduction.calibration.sources import read_text
        from lrbench.tasks.saved_datasets import datasets_from

        with datasets_from(suite.datasets):
            text = read_text(suite.calibration, suite.task_paths, tasks.tasks, notify)
    inventories = [
        (spec, structure_of(spec, device, notify, trust_remote_code=trust_remote_code)) for spec in suite.models
    ]
    models = []
    for spec, inventory in inventories:
        if suite.delta is not None:
            from lrbench.reduction.delta import check_base

            slots = swept_slots(suite.sweep, inventory)
            check_base(suite.delta, inventory, slots, notify, trust_remote_code=trust_remote_code)
        plan = make_plan(suite, inventory, suite_methods)
        models.append(ModelPlan(spec, inventory, plan, make_compositions(suite, inventory, suite_methods)))
    characters = sum(map(len, text)) if text is not None else None
    return SuitePlan(suite, directory or default_directory(suite), tasks, suite_methods, models, characters)


def _selection_lines(select: SelectSpec, race: RaceSpec | None) -> Iterator[str]:
    choice = "each task" if select.on == "task" else "the mean over tasks"
    yield "selection"
    yield (
        f"  every cell on about {select.validation:.0%} of each task's documents; each method's best cell for {choice} "
        "on the others"
    )
    if race is not None:
        yield (
            f"  a race: with probability {1 - race.alpha:g} the chosen cell is within {race.margin:g} of the best on "
            "these documents"
        )


def _slot_lines(model: ModelPlan) -> Iterator[str]:
    inventory = model.inventory
    groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for slot in inventory.slots:
        groups.setdefault((slot.about.role or "no role", slot.about.shape), []).append(slot.name)
    sizes = {key: f"({key[1][0]}, {key[1][1]})" for key in groups}
    width = max(map(len, sizes.values()), default=0)
    for (role, shape), names in groups.items():
        yield f"  {role:9} {len(names):4} x {sizes[role, shape]:{width}}  {names[0]}{' ...' if len(names) > 1 else ''}"
    if model.missing_roles:
        yield f"  not found: {', '.join(model.missing_roles)}"
    for title, weights in (("only by glob", inventory.unnamed), ("not editable", inventory.left_out)):
        for line in by_reason(weights):
            yield f"  {title}: {line}"


def _cell_lines(model: ModelPlan) -> Iterator[str]:
    yield f"  {len(model.cells)} cells: the baseline, and"
    lines: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in model.cells:
        if cell.method is not None and cell.mode is not None:
            setting = f"{cell.setting}, {cell.allocation}" if cell.allocation else cell.setting
            lines.setdefault((cell.method.label, cell.mode, setting), []).append(cell)
    width = max((len(setting) for *_, setting in lines), default=0)
    impossible = dict(model.failures)
    for (label, mode, setting), cells in lines.items():
        possible = [cell for cell in cells if cell not in impossible and not cell.skip]
        ranks = sorted({rank for cell in possible for rank in cell.ranks() if rank is not None})
        spread = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else "rank found when run"
        slots = sum(len(cell.slots) for cell in cells)
        yield f"  {label:16} {mode:9} {setting:{max(width, 14)}} {len(cells):4} cells, {slots:5} reductions, {spread}"
    for title, reasons in (
        ("would fail", list(impossible.values())),
        ("would be skipped", [reason for _, reason in model.skips]),
    ):
        for reason in reasons[:5]:
            yield f"  {title}: {reason}"
        if len(reasons) > 5:
            yield f"  {title}: and {len(reasons) - 5} more"
