"""Chooses cells on validation documents, and reports the chosen ones and the baseline on test documents."""

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

#: Objective -> the compositions for it, each with the `selection` of its row.
Composed = dict[str, list[tuple[Cell, Selection]]]


@dataclass(frozen=True)
class Chosen:
    """The chosen candidate of one method for one objective, and the number of candidates."""

    objective: Objective
    choice: Choice
    among: int


def run_selection(recorder: Recorder, model_run: ModelRun, spec: SelectSpec) -> None:
    """Scores every cell on validation, chooses one for each objective and method, and scores the chosen cells on test.

    In a race, cells that cannot be chosen are not scored on all validation documents. Only rows decide, so that a run
    that is started again decides alike.

    Raises:
        SuiteError: a task has too few documents for two sides.
        KeyboardInterrupt: after the rows of all finished cells are on disk.
    """
    split = split_of(spec, model_run.engine.requests)
    all_objectives = objectives(model_run.engine.requests, model_run.tasks.named, spec.on)
    if model_run.suite.screen is not None:
        model_run.plan = screened(recorder, model_run, split, all_objectives, model_run.suite.screen)
    race = model_run.suite.race
    contestants = "every cell" if race is None else "a race"
    recorder.progress.note(f"{model_run.loaded.label}: {contestants} on {_in_words(split, 'validation')}")
    rows = (
        validated(recorder, model_run, split)
        if race is None
        else Race(recorder, model_run, split, all_objectives, spec, race).run()
    )
    choices = [choice for objective in all_objectives for choice in chosen(recorder, model_run, objective, rows)]
    baseline = next(rows[cell] for cell in model_run.plan.cells if cell.method is None)
    composed: Composed = {objective.name: [] for objective in all_objectives}
    for objective in all_objectives:
        for composition in model_run.compositions:
            recorder.progress.note(f"{composition.method.label}: composing edits for {objective.name}")
            composed[objective.name].append(compose(recorder, model_run, split, objective, composition, baseline))
    recorder.progress.note(f"{model_run.loaded.label}: the chosen cells on {_in_words(split, 'test')}")
    report(recorder, model_run, split, choices, composed)


def validated(recorder: Recorder, model_run: ModelRun, split: Split) -> dict[Cell, Row]:
    """Every cell's row on all validation documents."""
    engine = model_run.engine.restricted(split.validation)
    sizes = split.sizes("validation")

    def selection(cell: Cell) -> Selection:
        return Selection(split="validation", documents=sizes, predicted=cell.predicted)

    return recorder.score(model_run, Scope(model_run.plan, engine, selection))


def chosen(recorder: Recorder, model_run: ModelRun, objective: Objective, rows: dict[Cell, Row]) -> list[Chosen]:
    """The best candidate of each method. Notes methods of which no candidate has a value."""
    of_label: dict[str, list[Candidate]] = {}
    for candidate in candidates(model_run.plan):
        of_label.setdefault(candidate.label, []).append(candidate)
    choices = []
    for label, among in of_label.items():
        in_full = {key: row for key, row in rows.items() if not _stopped(row, objective)}
        choice = choose(among, objective, in_full, recorder.directory.samples)
        if choice is None:
            recorder.progress.note(
                f"{label}: none of its {len(among)} cells has a score on {objective.name}: nothing chosen"
            )
        else:
            choices.append(Chosen(objective, choice, len(among)))
    return choices


def report(
    recorder: Recorder, model_run: ModelRun, split: Split, choices: Sequence[Chosen], composed: Composed
) -> None:
    """Scores on test the references, on all tasks, and the chosen cells, on the tasks of their objective."""
    references = Plan(tuple(cell for cell in model_run.plan.cells if is_reference(cell)))
    everything = Selection(split="test", documents=split.sizes("test"))
    recorder.score(model_run, Scope(references, model_run.engine.restricted(split.test), lambda _: everything))
    for objective, compositions in composed.items():
        chosen_for = [chosen for chosen in choices if chosen.objective.name == objective]
        selections = {
            cell: _selection(chosen, split) for chosen in chosen_for for cell in chosen.choice.candidate.cells
        }
        selections |= dict(compositions)
        if not selections:
            continue
        cells = [cell for cell in model_run.plan.cells if cell in selections]
        plan = Plan((*cells, *sorted((cell for cell, _ in compositions), key=lambda cell: cell.first_block or 0)))
        documents = {task: split.test[task] for task in next(iter(selections.values())).documents}
        recorder.score(model_run, Scope(plan, model_run.engine.restricted(documents), selections.__getitem__))


def _stopped(row: Row, objective: Objective) -> bool:
    """Whether a race stopped a cell for an objective."""
    return row.selection is not None and any(task in (row.selection.stopped or {}) for task in objective.tasks)


def _selection(chosen: Chosen, split: Split) -> Selection:
    tasks = chosen.objective.tasks
    return Selection(
        split="test",
        documents={task: len(split.test[task]) for task in tasks},
        chosen_for=chosen.objective.name,
        candidates=chosen.among,
        validated_on={task: len(split.validation[task]) for task in tasks},
        validation_cells=[row.cell for row in chosen.choice.rows],
    )


def _in_words(split: Split, side: str) -> str:
    sizes = split.sizes(side)
    return f"{sum(sizes.values()):,} {side} documents of {len(sizes)} {'task' if len(sizes) == 1 else 'tasks'}"
