"""Composing edits: from the last block down, one decision a block, each accepted only where validation gains by it."""

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
    """A composition as far as it has come.

    Attributes:
        row: of what has been accepted, on validation; at first the baseline's.
        tried: cells scored for it.
    """

    accepted: Cell | None
    row: Row
    value: float
    log_loss: float
    tried: int = 0
    decisions: list[Decision] = field(default_factory=list)


def compose(
    recorder: Recorder, model_run: ModelRun, split: Split, aim: Objective, composition: Composition, baseline: Row
) -> tuple[Cell, Selection]:
    """Decides block by block what is composed for one choice, and what the composition's row on test is to say.

    At each block every edit that it offers is scored on top of what has been accepted. The best of them, by the
    objective and then by log-loss, is accepted where it is better than what stands without it, and else the block
    stays as it is. Rows alone decide, so that a run which is started again goes on from its last decision.

    Args:
        baseline: the baseline's row on validation.

    Raises:
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    samples = recorder.directory.samples
    chain = _Chain(None, baseline, aim.value(baseline), aim.log_loss(samples(baseline.cell)))
    engine = model_run.engine.restricted(split.validation)
    if model_run.calibration is not None:  # so that one pass serves all blocks
        levels = range(len(composition.levels))
        model_run.calibration.expect(cell for level in levels for cell in composition.trials(None, level))
    on_validation = Selection(split="validation", documents=split.sizes("validation"))
    for level in range(len(composition.levels)):
        trials = Plan(tuple(composition.trials(chain.accepted, level)))
        rows = recorder.score(model_run, Scope(trials, engine, lambda _: on_validation))
        chain.tried += len(trials.cells)
        choice = choose(candidates(trials), aim, rows, samples)
        if choice is None:  # every edit of the block failed, and has its row
            continue
        [cell], [row] = choice.candidate.cells, choice.rows
        log_loss = aim.log_loss(samples(row.cell))
        accepted = (choice.value, -log_loss) > (chain.value, -chain.log_loss)
        chain.decisions.append(Decision(cell=row.cell, weight=cell.slots[-1].name, accepted=accepted))
        if accepted:
            chain.accepted, chain.row, chain.value, chain.log_loss = cell, row, choice.value, log_loss
    return composition.composed(chain.accepted), Selection(
        split="test",
        documents={task: len(split.test[task]) for task in aim.tasks},
        chosen_for=aim.name,
        candidates=chain.tried,
        validated_on={task: len(split.validation[task]) for task in aim.tasks},
        validation_cells=[chain.row.cell],
        decisions=chain.decisions,
    )
