"""What a screening predicted of cells, beside what became of them on the same kind of documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrbench.analysis.edit_summary import describe
from lrbench.analysis.score import document_loss
from lrbench.analysis.scored_run import ScoredRun
from lrbench.results.directory import RunDirectory
from lrbench.results.rows import Row


@dataclass(frozen=True)
class Foreseen:
    """One cell and one choice that it was screened for.

    Attributes:
        choice: the task or group, or `mean`.
        weights: names of the edited weights.
        predicted: change of the log-loss by a first-order expansion, in nats a document.
        measured: the same by the scores, on the validation documents that both models were scored on.
    """

    model: str
    choice: str
    method: str
    setting: str
    edited: str
    weights: tuple[str, ...]
    predicted: float
    measured: float


def foreseen(runs: Sequence[RunDirectory]) -> list[Foreseen]:
    """All cells that were screened and scored; none of runs without a screening.

    Raises:
        InputError: a run's files cannot be read.
    """
    found = []
    for directory in runs:
        run = ScoredRun(directory, directory.path.name, "validation")
        losses: dict[str, dict[tuple[str, int], float]] = {}
        for row in run.rows.values():
            predicted = row.selection.predicted if row.selection is not None else None
            baseline = run.baseline_of(row)
            if row.status != "ok" or not predicted or baseline is None:
                continue
            for one in (row, baseline):
                if one.cell not in losses:
                    losses[one.cell] = _losses(run, one)
            for choice, change in predicted.items():
                measured = _change(run, row, choice, losses[row.cell], losses[baseline.cell])
                if measured is not None:
                    edited = describe(row.edits, run.blocks.get(row.model))
                    weights = tuple(edit.weight for edit in row.edits)
                    about = (row.model, choice, row.label or "", row.setting, edited, weights)
                    found.append(Foreseen(*about, change, measured))
    return found


def _losses(run: ScoredRun, row: Row) -> dict[tuple[str, int], float]:
    """(task, document) -> minus the log-likelihood of what is right."""
    found = {}
    for sample in run.run.samples(row.cell):
        loss = document_loss(sample)
        if loss is not None and math.isfinite(loss):
            found[sample["task"], sample["doc"]] = loss
    return found


def _change(
    run: ScoredRun, row: Row, choice: str, ours: dict[tuple[str, int], float], theirs: dict[tuple[str, int], float]
) -> float | None:
    """Of one choice, on the documents that both have; over several parts, the mean of theirs."""
    of_choice = [choice] if choice in row.scores else [task for task in row.scores if run.top_level(task)]
    parts = []
    for part in of_choice:
        leaves = set(run.leaves(part))
        common = [key for key in ours if key[0] in leaves and key in theirs]
        if common:
            parts.append(math.fsum(ours[key] - theirs[key] for key in common) / len(common))
    return math.fsum(parts) / len(parts) if parts else None
