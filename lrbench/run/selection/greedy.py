"""Composes edits: one decision for each block, last block first. An edit is accepted if validation improves."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrbench.reduction.greedy_plan import Composition
from lrbench.reduction.plan import Cell, Plan
from lrbench.results.rows import Decision, Row, Selection
from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Recorder, Scope
from lrbench.run.selection.choice import candidates, choose
from lrbench.run.selection.objective import Objective
from lrbench.run.selection.split import Split


@dataclass
class _Chain:
    """The state of a composition.

    Attributes:
        accepted: the cell with all accepted edits; None for the baseline.
        row: its row on validation.
        value, log_loss: the objective's value and the log-loss of this row.
        tried: the number of cells scored so far.
    """

    accepted: Cell | None
    row: Row
    value: float
    log_loss: float
    tried: int = 0
    decisions: list[Decision] = field(default_factory=list)


def compose(
    recorder: Recorder, model_run: ModelRun, split: Split, objective: Objective, composition: Composition, baseline: Row
) -> tuple[Cell, Selection]:
    """Composes edits for one objective; returns the composition, and the `selection` of its row on test.

    At each block, every candidate edit is scored together with the accepted ones. The best of them, by the objective
    and then by log-loss, is accepted if it is better than no edit of this block. Only rows decide, so that a run that
    is started again continues after its last decision.

    Args:
        baseline: the baseline's row on validation.

    Raises:
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    samples = recorder.directory.samples
    chain = _Chain(None, baseline, objective.value(baseline), objective.log_loss(samples(baseline.cell)))
    engine = model_run.engine.restricted(split.validation)
    if model_run.calibration is not None:  # so that one pass collects the statistics for all blocks
        levels = range(len(composition.levels))
        model_run.calibration.expect(cell for level in levels for cell in composition.trials(None, level))
    on_validation = Selection(split="validation", documents=split.sizes("validation"))
    for level in range(len(composition.levels)):
        trials = Plan(tuple(composition.trials(chain.accepted, level)))
        rows = recorder.score(model_run, Scope(trials, engine, lambda _: on_validation))
        chain.tried += len(trials.cells)
        choice = choose(candidates(trials), objective, rows, samples)
        if choice is None:  # every edit of the block failed
            continue
        [cell], [row] = choice.candidate.cells, choice.rows
        log_loss = objective.log_loss(samples(row.cell))
        accepted = (choice.value, -log_loss) > (chain.value, -chain.log_loss)
        chain.decisions.append(Decision(cell=row.cell, weight=cell.slots[-1].name, accepted=accepted))
        if accepted:
            chain.accepted, chain.row, chain.value, chain.log_loss = cell, row, choice.value, log_loss
    return composition.composed(chain.accepted), Selection(
        split="test",
        documents={task: len(split.test[task]) for task in objective.tasks},
        chosen_for=objective.name,
        candidates=chain.tried,
        validated_on={task: len(split.validation[task]) for task in objective.tasks},
        validation_cells=[chain.row.cell],
        decisions=chain.decisions,
    )
