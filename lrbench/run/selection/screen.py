"""Screening: only the cells that a first-order expansion of the loss makes most of are scored."""

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
    recorder: Recorder, model_run: ModelRun, split: Split, aims: Sequence[Objective], spec: ScreenSpec
) -> Plan:
    """The plan with what is predicted of its cells; all but the most promising ones of each method are skipped.

    Cells stay whose change of loss cannot be predicted: where a rank is known only once factors are built, or is none
    of the weight's; and those that a prediction says nothing about, since it holds for dropping singular components.

    Raises:
        SuiteError: no document of some choice has an answer that is known to be right.
    """
    before = _as_before(recorder, model_run, split)
    if before is not None:
        return before
    documents = {task: indices[: spec.documents] for task, indices in split.validation.items()}
    engine = model_run.engine.restricted(documents)
    asked = right_answers(engine)
    for aim in aims:
        if not any(asked[task] for task in aim.tasks):
            raise spec.error_at(f"{aim.name}: no answer is known to be right, so there is no loss; leave 'screen' out")
    terms = _terms(recorder, model_run, engine.requests, asked)
    predicted = {cell: _predicted(cell, aims, terms) for cell in model_run.plan.cells}
    stays = _promising(model_run.plan, aims, predicted, spec.top)
    unknown = sum(predicted[cell] is None and _is_candidate(cell) for cell in model_run.plan.cells)
    if unknown:
        recorder.progress.note(f"screening: nothing can be predicted of {unknown} cells; they are scored")
    cells = []
    for cell in model_run.plan.cells:
        change = predicted[cell]
        if change is not None and cell not in stays:
            text = ", ".join(f"{name} {value:+.3g}" for name, value in change.items())
            names = ", ".join(slot.name for slot in cell.slots[:3]) + (", ..." if len(cell.slots) > 3 else "")
            why = f"screened out: log-loss is predicted to change by {text} nats a document ({names})"
            cell = replace(cell, skip=why)
        cells.append(replace(cell, predicted=change))
    return Plan(tuple(cells))


def right_answers(engine: BaseEngine) -> dict[str, list[list[ScoredTokens]]]:
    """Task -> of each document, the tokens of what is right: its right choice, its only continuation, or its text."""
    requests, longest = engine.requests, engine.lm.max_length
    found: dict[str, dict[int, list[ScoredTokens]]] = {name: defaultdict(list) for name in requests.tasks}
    counts = Counter((instance.task_name, instance.doc_id) for instance in requests.pair_requests)
    for instance, (_, context, continuation) in zip(requests.pair_requests, requests.pairs, strict=True):
        gold = requests.tasks[instance.task_name].gold.get(instance.doc_id)
        right = gold if isinstance(gold, list) else [gold]
        if instance.idx == right[0] or (gold is None and counts[instance.task_name, instance.doc_id] == 1):
            asked = _asked(context, continuation, longest)
            found[instance.task_name][instance.doc_id].append(asked)
    start = 0
    for instance, count in zip(requests.rolling_requests, requests.window_counts, strict=True):
        for _, context, continuation in requests.windows[start : start + count]:
            found[instance.task_name][instance.doc_id].append(_asked(context, continuation, longest))
        start += count
    return {name: list(documents.values()) for name, documents in found.items()}


def _asked(context: Sequence[int], continuation: Sequence[int], longest: int) -> ScoredTokens:
    """As lm-eval would give them to the model: cut from the left."""
    tokens = [*context, *continuation][-(longest + 1) :]
    return ScoredTokens(torch.tensor(tokens), len(continuation))


def _terms(
    recorder: Recorder,
    model_run: ModelRun,
    requests: FrozenRequests,
    asked: Mapping[str, Sequence[Sequence[ScoredTokens]]],
) -> Terms:
    """The sensitivities of every slot that is edited, task by task; kept on disk, so that a restart goes on alike."""
    slots = list(dict.fromkeys(slot for cell in model_run.plan.cells if _is_candidate(cell) for slot in cell.slots))
    model, code = (model_run.loaded.weight_hash, model_run.loaded.config_hash), code_hash("linalg", "reduction")
    made = json.dumps([*model, code, requests.hashes(), [slot.name for slot in slots]])
    name = f"screening-{hashlib.sha256(made.encode()).hexdigest()[:32]}"
    for entry in recorder.directory.partial(name):
        return {task: {slot: _from_plain(one) for slot, one in of_task.items()} for task, of_task in entry.items()}
    count = sum(map(len, asked.values()))
    recorder.progress.note(f"screening: the gradient of the loss on {count} documents, for {len(slots)} weights")
    found = {
        task: sensitivities(model_run.loaded.model, slots, documents, recorder.progress.note)
        for task, documents in asked.items()
        if documents
    }
    plain = {task: {slot: _to_plain(one) for slot, one in of_task.items()} for task, of_task in found.items()}
    recorder.directory.add_partial(name, plain)
    return found


def _predicted(cell: Cell, aims: Sequence[Objective], terms: Terms) -> dict[str, float] | None:
    """Each choice's predicted change of log-loss; None where there is none."""
    if not _is_candidate(cell):
        return None
    assert cell.method is not None
    changes: dict[str, list[float]] = defaultdict(list)
    for slot in cell.slots:
        for task, of_task in terms.items():
            sensitivity = of_task[slot.name]
            try:
                rank = closed_rank(cell.request_of(slot), cell.method.reducer, slot.about, sensitivity.singular_values)
            except ReducerError:  # it will fail, and say so itself
                return None
            if rank is None or cell.method.reducer.rank_of != "weight" or slot.users > 1:
                return None  # of a tied weight the gradient is that of all its users, and the edit is one's
            changes[task].append(sensitivity.change(rank))
    total = {task: sum(of_slots) for task, of_slots in changes.items()}
    found = {}
    for aim in aims:
        parts = [[total[task] for task in tasks if task in total] for tasks in aim.parts.values()]
        known = [sum(part) / len(part) for part in parts if part]
        found[aim.name] = sum(known) / len(known)
    return found


def _promising(
    plan: Plan, aims: Sequence[Objective], predicted: Mapping[Cell, Mapping[str, float] | None], top: int
) -> set[Cell]:
    """The cells that are among the `top` of their method for some choice; seeds of one count once."""
    stays: set[Cell] = set()
    for aim in aims:
        of_label: dict[str, list[tuple[float, Candidate]]] = defaultdict(list)
        for candidate in candidates(plan):
            change = predicted[candidate.cells[0]]
            if change is not None:
                of_label[candidate.label].append((change[aim.name], candidate))
        for known in of_label.values():
            best = sorted(known, key=lambda one: one[0])[:top]
            stays.update(*(candidate.cells for _, candidate in best))
    return stays


def _as_before(recorder: Recorder, model_run: ModelRun, split: Split) -> Plan | None:
    """The plan as an earlier run screened it, where every cell has its row; else None."""
    race = model_run.suite.race
    more = {"race": race.resolved()} if race is not None else None
    keys = model_run.keys(model_run.plan, model_run.engine.restricted(split.validation), more)
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
