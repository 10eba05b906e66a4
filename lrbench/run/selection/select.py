"""Choosing on validation documents, and reporting on test documents what was chosen, and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrbench.reduction.plan import Cell, Plan
from lrbench.results.rows import Row, Selection
from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Recorder, Scope
from lrbench.run.selection.choice import Candidate, Choice, candidates, choose, is_reference
from lrbench.run.selection.greedy import compose
from lrbench.run.selection.objective import Objective, objectives
from lrbench.run.selection.race import Race
from lrbench.run.selection.screen import screened
from lrbench.run.selection.split import Split, split_of
from lrbench.suite.selection import SelectSpec

#: Choice -> what was composed for it, and what the row says of that.
Composed = dict[str, list[tuple[Cell, Selection]]]


@dataclass(frozen=True)
class Chosen:
    """What one method is reported with for one objective, and among how many it was chosen."""

    objective: Objective
    choice: Choice
    among: int


def run_selection(recorder: Recorder, model_run: ModelRun, spec: SelectSpec) -> None:
    """Scores every cell on validation, chooses for each objective and method, scores the chosen on test.

    In a race, cells that cannot be chosen are not scored on all of validation.

    Nothing but rows and what they hold decides, so that a run which is started again decides the same.

    Raises:
        SuiteError: a task has too few documents for two sides.
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    split = split_of(spec, model_run.engine.requests)
    aims = objectives(model_run.engine.requests, model_run.tasks.named, spec.on)
    if model_run.suite.screen is not None:
        model_run.plan = screened(recorder, model_run, split, aims, model_run.suite.screen)
    race = model_run.suite.race
    how = "every cell" if race is None else "a race"
    recorder.progress.note(f"{model_run.loaded.label}: {how} on {_in_words(split, 'validation')}")
    rows = (
        validated(recorder, model_run, split)
        if race is None
        else Race(recorder, model_run, split, aims, spec, race).run()
    )
    found = [one for aim in aims for one in chosen(recorder, model_run, aim, rows)]
    baseline = next(rows[cell] for cell in model_run.plan.cells if cell.method is None)
    composed: Composed = {aim.name: [] for aim in aims}
    for aim in aims:
        for composition in model_run.compositions:
            recorder.progress.note(f"{composition.method.label}: composing edits for {aim.name}")
            composed[aim.name].append(compose(recorder, model_run, split, aim, composition, baseline))
    recorder.progress.note(f"{model_run.loaded.label}: what was chosen on {_in_words(split, 'test')}")
    report(recorder, model_run, split, found, composed)


def validated(recorder: Recorder, model_run: ModelRun, split: Split) -> dict[Cell, Row]:
    """Every cell's row on the validation documents."""
    engine = model_run.engine.restricted(split.validation)
    sizes = split.sizes("validation")

    def selection(cell: Cell) -> Selection:
        return Selection(split="validation", documents=sizes, predicted=cell.predicted)

    return recorder.score(model_run, Scope(model_run.plan, engine, selection))


def chosen(recorder: Recorder, model_run: ModelRun, aim: Objective, rows: dict[Cell, Row]) -> list[Chosen]:
    """The best candidate of each method; a method without any is said, and has none."""
    of_label: dict[str, list[Candidate]] = {}
    for candidate in candidates(model_run.plan):
        of_label.setdefault(candidate.label, []).append(candidate)
    found = []
    for label, among in of_label.items():
        in_full = {key: row for key, row in rows.items() if not _stopped(row, aim)}
        choice = choose(among, aim, in_full, recorder.directory.samples)
        if choice is None:
            recorder.progress.note(f"{label}: none of its {len(among)} cells has a score on {aim.name}: nothing chosen")
        else:
            found.append(Chosen(aim, choice, len(among)))
    return found


def report(recorder: Recorder, model_run: ModelRun, split: Split, found: Sequence[Chosen], composed: Composed) -> None:
    """Scores on test the models that others are compared with, on all tasks, and what was chosen, each on its own."""
    references = Plan(tuple(cell for cell in model_run.plan.cells if is_reference(cell)))
    everything = Selection(split="test", documents=split.sizes("test"))
    recorder.score(model_run, Scope(references, model_run.engine.restricted(split.test), lambda _: everything))
    for aim, compositions in composed.items():
        choices = [one for one in found if one.objective.name == aim]
        of_cell = {cell: _selection(one, split) for one in choices for cell in one.choice.candidate.cells}
        of_cell |= dict(compositions)
        if not of_cell:
            continue
        cells = [cell for cell in model_run.plan.cells if cell in of_cell]
        plan = Plan((*cells, *sorted((cell for cell, _ in compositions), key=lambda cell: cell.first_block or 0)))
        documents = {task: split.test[task] for task in next(iter(of_cell.values())).documents}
        recorder.score(model_run, Scope(plan, model_run.engine.restricted(documents), of_cell.__getitem__))


def _stopped(row: Row, aim: Objective) -> bool:
    """Whether a race gave a cell up for an objective."""
    return row.selection is not None and any(task in (row.selection.stopped or {}) for task in aim.tasks)


def _selection(one: Chosen, split: Split) -> Selection:
    tasks = one.objective.tasks
    return Selection(
        split="test",
        documents={task: len(split.test[task]) for task in tasks},
        chosen_for=one.objective.name,
        candidates=one.among,
        validated_on={task: len(split.validation[task]) for task in tasks},
        validation_cells=[row.cell for row in one.choice.rows],
    )


def _in_words(split: Split, side: str) -> str:
    sizes = split.sizes(side)
    return f"{sum(sizes.values()):,} {side} documents of {len(sizes)} {'task' if len(sizes) == 1 else 'tasks'}"
