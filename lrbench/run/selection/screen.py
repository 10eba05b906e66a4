"""Screening: scores only the cells ranked highest by a first-order prediction of the loss."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lrbench.errors import ReducerError
from lrbench.evaluation.base_engine import BaseEngine
from lrbench.reducers.ranks import closed_rank
from lrbench.reducers.source_hash import code_hash
from lrbench.reduction.gradient_sensitivity import ScoredTokens, Sensitivity, sensitivities
from lrbench.reduction.plan import Cell, Plan
from lrbench.run.model_run import ModelRun
from lrbench.run.recorder import Recorder
from lrbench.run.selection.choice import Candidate, candidates
from lrbench.run.selection.objective import Objective
from lrbench.run.selection.split import Split
from lrbench.suite.selection import ScreenSpec
from lrbench.tasks.frozen_requests import FrozenRequests

Terms = dict[str, dict[str, Sensitivity]]  # task -> slot's name -> its sensitivity


def screened(
    recorder: Recorder, model_run: ModelRun, split: Split, objectives: Sequence[Objective], spec: ScreenSpec
) -> Plan:
    """The plan with predictions; all cells of each method but the most promising ones are skipped.

    The prediction is that of dropping singular components. Cells without one are scored: their rank is known only after
    the reduction, or is not a rank of the weight.

    Raises:
        SuiteError: no document of an objective has a known gold answer.
    """
    earlier = _earlier_plan(recorder, model_run, split)
    if earlier is not None:
        return earlier
    documents = {task: indices[: spec.documents] for task, indices in split.validation.items()}
    engine = model_run.engine.restricted(documents)
    answers = gold_answers(engine)
    for objective in objectives:
        if not any(answers[task] for task in objective.tasks):
            raise spec.error_at(f"{objective.name}: no gold answer is known, so there is no loss; leave 'screen' out")
    terms = _terms(recorder, model_run, engine.requests, answers)
    predicted = {cell: _predicted(cell, objectives, terms) for cell in model_run.plan.cells}
    promising = _promising(model_run.plan, objectives, predicted, spec.top)
    unknown = sum(predicted[cell] is None and _is_candidate(cell) for cell in model_run.plan.cells)
    if unknown:
        recorder.progress.note(f"screening: no prediction for {unknown} cells; they are scored")
    cells = []
    for cell in model_run.plan.cells:
        change = predicted[cell]
        if change is not None and cell not in promising:
            text = ", ".join(f"{name} {value:+.3g}" for name, value in change.items())
            names = ", ".join(slot.name for slot in cell.slots[:3]) + (", ..." if len(cell.slots) > 3 else "")
            reason = f"screened out: log-loss is predicted to change by {text} nats a document ({names})"
            cell = replace(cell, skip=reason)
        cells.append(replace(cell, predicted=change))
    return Plan(tuple(cells))


def gold_answers(engine: BaseEngine) -> dict[str, list[list[ScoredTokens]]]:
    """Task -> token ids of each document's gold answer: its gold choice, its only continuation, or its whole text."""
    requests, longest = engine.requests, engine.lm.max_length
    answers: dict[str, dict[int, list[ScoredTokens]]] = {name: defaultdict(list) for name in requests.tasks}
    counts = Counter((instance.task_name, instance.doc_id) for instance in requests.pair_requests)
    for instance, (_, context, continuation) in zip(requests.pair_requests, requests.pairs, strict=True):
        gold = requests.tasks[instance.task_name].gold.get(instance.doc_id)
        gold_choices = gold if isinstance(gold, list) else [gold]
        if instance.idx == gold_choices[0] or (gold is None and counts[instance.task_name, instance.doc_id] == 1):
            tokens = _scored_tokens(context, continuation, longest)
            answers[instance.task_name][instance.doc_id].append(tokens)
    start = 0
    for instance, count in zip(requests.rolling_requests, requests.window_counts, strict=True):
        for _, context, continuation in requests.windows[start : start + count]:
            tokens = _scored_tokens(context, continuation, longest)
            answers[instance.task_name][instance.doc_id].append(tokens)
        start += count
    return {name: list(documents.values()) for name, documents in answers.items()}


def _scored_tokens(context: Sequence[int], continuation: Sequence[int], longest: int) -> ScoredTokens:
    """Truncated on the left, as by lm-eval."""
    tokens = [*context, *continuation][-(longest + 1) :]
    return ScoredTokens(torch.tensor(tokens), len(continuation))


def _terms(
    recorder: Recorder,
    model_run: ModelRun,
    requests: FrozenRequests,
    answers: Mapping[str, Sequence[Sequence[ScoredTokens]]],
) -> Terms:
    """The sensitivities of all edited slots for each task. Stored on disk, so that a restarted run uses the same."""
    slots = list(dict.fromkeys(slot for cell in model_run.plan.cells if _is_candidate(cell) for slot in cell.slots))
    model, code = (model_run.loaded.weight_hash, model_run.loaded.config_hash), code_hash("linalg", "reduction")
    made = json.dumps([*model, code, requests.hashes(), [slot.name for slot in slots]])
    name = f"screening-{hashlib.sha256(made.encode()).hexdigest()[:32]}"
    for entry in recorder.directory.partial(name):
        return {task: {slot: _from_plain(plain) for slot, plain in of_task.items()} for task, of_task in entry.items()}
    count = sum(map(len, answers.values()))
    recorder.progress.note(f"screening: the gradient of the loss on {count} documents, for {len(slots)} weights")
    terms = {
        task: sensitivities(model_run.loaded.model, slots, documents, recorder.progress.note)
        for task, documents in answers.items()
        if documents
    }
    plain = {task: {slot: _to_plain(term) for slot, term in of_task.items()} for task, of_task in terms.items()}
    recorder.directory.add_partial(name, plain)
    return terms


def _predicted(cell: Cell, objectives: Sequence[Objective], terms: Terms) -> dict[str, float] | None:
    """Objective -> predicted change of log-loss; None if there is no prediction."""
    if not _is_candidate(cell):
        return None
    assert cell.method is not None
    changes: dict[str, list[float]] = defaultdict(list)
    for slot in cell.slots:
        for task, of_task in terms.items():
            sensitivity = of_task[slot.name]
            try:
                rank = closed_rank(cell.request_of(slot), cell.method.reducer, slot.about, sensitivity.singular_values)
            except ReducerError:  # the cell will fail, and its row will have the reason
                return None
            if rank is None or cell.method.reducer.rank_of != "weight" or slot.users > 1:
                return None  # the gradient of a tied weight is that of all its users, and the edit is that of one
            changes[task].append(sensitivity.change(rank))
    total = {task: sum(of_slots) for task, of_slots in changes.items()}
    predicted = {}
    for objective in objectives:
        parts = [[total[task] for task in tasks if task in total] for tasks in objective.parts.values()]
        means = [sum(part) / len(part) for part in parts if part]
        predicted[objective.name] = sum(means) / len(means)
    return predicted


def _promising(
    plan: Plan, objectives: Sequence[Objective], predicted: Mapping[Cell, Mapping[str, float] | None], top: int
) -> set[Cell]:
    """The cells that are among the `top` candidates of their method for some objective."""
    cells: set[Cell] = set()
    for objective in objectives:
        of_label: dict[str, list[tuple[float, Candidate]]] = defaultdict(list)
        for candidate in candidates(plan):
            change = predicted[candidate.cells[0]]
            if change is not None:
                of_label[candidate.label].append((change[objective.name], candidate))
        for changes in of_label.values():
            best = sorted(changes, key=lambda entry: entry[0])[:top]
            cells.update(*(candidate.cells for _, candidate in best))
    return cells


def _earlier_plan(recorder: Recorder, model_run: ModelRun, split: Split) -> Plan | None:
    """The plan as screened by an earlier run, if every cell has its row; else None."""
    race = model_run.suite.race
    definition = {"race": race.resolved()} if race is not None else None
    keys = model_run.keys(model_run.plan, model_run.engine.restricted(split.validation), definition)
    rows = [recorder.done.get(keys[cell]) for cell in model_run.plan.cells]
    cells = []
    for cell, row in zip(model_run.plan.cells, rows, strict=True):
        if row is None or row.selection is None:
            return None
        skip = row.reason if row.status == "skipped" else None
        cells.append(replace(cell, skip=skip, predicted=row.selection.predicted))
    return Plan(tuple(cells))


def _is_candidate(cell: Cell) -> bool:
    return cell.method is not None and not cell.drops_updates and not cell.skip and not cell.failure


def _to_plain(sensitivity: Sensitivity) -> dict[str, Any]:
    return {"values": sensitivity.singular_values.tolist(), "terms": sensitivity.terms.tolist()}


def _from_plain(entry: Mapping[str, Any]) -> Sensitivity:
    return Sensitivity(*(torch.tensor(entry[key], dtype=torch.float64) for key in ("values", "terms")))
